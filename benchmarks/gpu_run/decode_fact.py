"""One eager decoding step of a whole model with random weights: its time and its launches."""

import statistics
import time
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

import lepo_kernels as lk
from benchmarks.device import Device
from benchmarks.end_to_end.models import Model

ROWS, PROMPT, STEPS = 32, 128, 10


def decode_step(model: Model, device: torch.device, backend: str) -> dict[str, Any]:
    """From the input embedding of a latent step to that of the next one, with a growing cache.

    Returns:
        ``seconds``, the median of `STEPS` steps; ``launches`` of kernels and copies in one more,
        0 without a GPU, and ``operations`` of torch's, nested ones included.
    """
    is_cuda = device.type == "cuda"
    rows, prompt = (ROWS, PROMPT) if is_cuda else (2, 3)
    step = _Steps(model, device, backend, rows, prompt)
    clock = Device(device, time.perf_counter).timer
    samples = []
    for _ in range(2 + STEPS):
        begun = clock()
        step()
        samples.append(clock() - begun)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if is_cuda else [])]
    with profile(activities=activities) as profiled:
        step()
        clock()
    counted = {event.key: event.count for event in profiled.key_averages()}
    return {
        "seconds": statistics.median(samples[2:]),
        "rows": rows,
        "launches": sum(n for name, n in counted.items() if is_launch(name)),
        "operations": sum(n for name, n in counted.items() if name.startswith("aten::")),
    }


def is_launch(name: str) -> bool:
    """Whether an event of the profiler is a call to the driver that starts work on the device."""
    return name.startswith(("cudaLaunchKernel", "cuLaunchKernel", "cudaMemcpy", "cudaMemset"))


class _Steps:
    """A model in the middle of a rollout; a call makes one more step."""

    def __init__(
        self, model: Model, device: torch.device, backend: str, rows: int, prompt: int
    ) -> None:
        import transformers

        from lepo_kernels.rollout.model_cache import cache_argument

        dtype = torch.bfloat16
        self.model, self.backend = model.build(device, dtype), backend
        self.table = self.model.get_input_embeddings().weight.detach()
        self.cached = {cache_argument(self.model): transformers.DynamicCache(), "use_cache": True}
        self.number = 0
        ids = torch.randint(1, model.vocab, (rows, prompt), device=device)
        self.embedding = self.table[ids]
        self()

    @torch.no_grad()
    def __call__(self) -> None:
        output = self.model(inputs_embeds=self.embedding, logits_to_keep=1, **self.cached)
        found = lk.latent_step(
            output.logits[:, -1],
            self.table,
            tau=0.7,
            top_k=30,
            top_p=0.95,
            seed=7,
            step=self.number,
            backend=self.backend,
        )
        self.embedding = found.embedding[:, None]
        self.number += 1
