"""Steps of `latent_generate` on a model of a few layers: compiled beside eager, in either phase."""

import itertools
import statistics
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from benchmarks.device import Device
from benchmarks.end_to_end.models import EOS, Model

# Few layers are soon compiled; what a step costs beside the model is the same.
LAYERS = 4
ROWS, PROMPT, STEPS = 32, 128, 32


def rollout_steps(model: Model, device: torch.device, backend: str) -> dict[str, Any]:
    """Seconds of a decoding step, the pass over the prompts left aside.

    Returns:
        ``seconds`` of a compiled latent step; for each way and phase ``seconds``, the median of a
        rollout's steps, and ``first``, seconds
        of the rollouts before it: those that compile, and record a CUDA graph. On a CPU, steps are
        of the same fixed size, and not compiled.
    """
    is_cuda = device.type == "cuda"
    rows, prompt = (ROWS, PROMPT) if is_cuda else (2, 3)
    built = replace(model, layers=min(LAYERS, model.layers)).build(device, torch.bfloat16)
    ids = torch.randint(1, model.vocab, (rows, prompt), device=device)
    clock = Device(device, time.perf_counter).timer
    found: dict[str, Any] = {"rows": rows}
    for name, settings in _ways(is_cuda):
        begun = clock()
        # The second one records a graph of what the first one compiled.
        for _ in range(2):
            _decode(built, ids, settings, backend)
        found[f"{name} first"] = clock() - begun
        marks = _decode(built, ids, settings, backend, clock)
        steps = [after - before for before, after in itertools.pairwise(marks)]
        found[f"{name} seconds"] = statistics.median(steps)
    # What is predicted.
    found["seconds"] = found["compiled, latent: seconds"]
    return found


def _ways(is_cuda: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    ways: dict[str, dict[str, Any]] = {
        "eager": {"cache_implementation": "dynamic"},
        "compiled": {"cache_implementation": "static", "compile_rollout": is_cuda},
    }
    for way, settings in ways.items():
        yield f"{way}, latent:", {**settings, "latent_length": STEPS}
        yield f"{way}, discrete:", {**settings, "latent_length": 0}


def _decode(
    model: Any,
    ids: torch.Tensor,  # [N, P]
    settings: dict[str, Any],
    backend: str,
    clock: Any = time.perf_counter,
) -> list[float]:
    """When each step was done, by ``clock``."""
    from lepo_kernels.rollout.config import LatentGenerationConfig
    from lepo_kernels.rollout.latent_generate import latent_generate

    config = LatentGenerationConfig(
        eos_token_ids=(EOS,), pad_token_id=EOS, max_new_tokens=STEPS, **settings
    )
    marks: list[float] = []
    latent_generate(
        model,
        ids,
        torch.ones_like(ids),
        config,
        backend=backend,
        progress=lambda *_: marks.append(clock()),
    )
    return marks
