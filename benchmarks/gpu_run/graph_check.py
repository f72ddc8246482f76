"""A decoding step as a CUDA graph: a replay sees the seed and step that its tensors hold then."""

import torch

import lepo_kernels as lk
from benchmarks.gpu_run.agreement import same_bits
from benchmarks.gpu_run.calls import Sizes
from benchmarks.gpu_run.serving import Place


def check_replay(sizes: Sizes, place: Place) -> None:
    """Capture one step, replay it with another seed, compare to a call; without a GPU call twice.

    Raises:
        AssertionError: the bits differ.
    """
    device = place.device
    torch.manual_seed(0)
    logits = torch.randn(sizes.rows, sizes.vocab, device=device).bfloat16()
    table = torch.randn(sizes.vocab, sizes.width, device=device).bfloat16()
    seed, step = (torch.tensor(number, device=device) for number in (7, 0))

    def call() -> lk.LatentStep:
        return lk.latent_step(
            logits, table, tau=0.7, top_k=30, seed=seed, step=step, backend="cuda"
        )

    if place.is_cuda:
        call()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            recorded = call()
        seed.fill_(101)
        step.fill_(5)
        graph.replay()
    else:
        seed.fill_(101)
        step.fill_(5)
        recorded = call()
    expected = call()
    ours, theirs = ({**x.sample._asdict(), "embedding": x.embedding} for x in (recorded, expected))
    differ = [name for name in ours if not same_bits(ours[name], theirs[name])]
    assert not differ, f"a replay differs in {', '.join(differ)}"
