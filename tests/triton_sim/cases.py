"""Calls whose kernels are compiled ahead of time, of sizes as they are trained and rolled out with.

The vocabularies are short, so that the tensors are small, and have the same divisors as real ones.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from lepo_kernels import dispatch
from lepo_kernels.structures import (
    Draw,
    Head,
    Mixtures,
    MixtureUpstream,
    Needs,
    Noise,
    Selection,
    Statistics,
    Upstream,
)

# Of the targets that are not one themselves.
FAMILIES = {"sm_89": "other"}
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def mix_embeddings(dtype: torch.dtype) -> None:
    ids, weights = torch.zeros(32, 30, dtype=torch.int64), torch.zeros(32, 30)
    embedding, grad = torch.empty(1024, 2048, dtype=dtype), torch.empty(32, 2048, dtype=dtype)
    dispatch.load("mix_embeddings", "triton")(ids, weights, embedding)
    dispatch.load("mix_embeddings_backward", "triton")(grad, ids, weights, embedding, True, True)


def gumbel_softmax_embedding(dtype: torch.dtype) -> None:
    logits, embedding = torch.zeros(64, 4096, dtype=dtype), torch.zeros(4096, 2048, dtype=dtype)
    shared = (logits, embedding, _noise())
    dispatch.load("gumbel_softmax_embedding", "triton")(*shared, False)
    backward = dispatch.load("gumbel_softmax_embedding_backward", "triton")
    for needs in ((True, True), (False, True)):
        backward(_grads(), *shared, _known(), *needs)


def linear_gumbel_softmax_embedding(dtype: torch.dtype) -> None:
    hidden, lm_head = torch.zeros(64, 2048, dtype=dtype), torch.zeros(4096, 2048, dtype=dtype)
    forward = dispatch.load("linear_gumbel_softmax_embedding", "triton")
    backward = dispatch.load("linear_gumbel_softmax_embedding_backward", "triton")
    other = torch.bfloat16 if dtype == torch.float32 else torch.float32
    untied = (torch.zeros(4096, 2048, dtype=dtype), torch.zeros(4096, dtype=dtype), 30.0)
    # Head and table of different sizes: the kernel that takes both has more registers to fill.
    mixed = (torch.zeros(4096, 2048, dtype=other), None, None)
    for table in ((None, None, None), untied, mixed):
        embedding, bias, softcap = table
        shared = (Head(hidden, lm_head, bias, softcap), embedding, _noise(), 1 << 20)
        forward(*shared, False)
        needs = Needs(True, True, bias is not None)
        backward(_grads(), *shared, _known(), needs, embedding is not None)


def _noise() -> Noise:
    one, zero = torch.ones(1, dtype=torch.float64), torch.tensor(0)
    return Noise(one, one, zero, torch.arange(64), torch.arange(64), 0)


def _grads() -> MixtureUpstream:
    return MixtureUpstream(torch.zeros(64, 2048), torch.zeros(64), torch.zeros(64))


def _known() -> Mixtures:
    statistics = torch.zeros(64, 8, dtype=torch.float64)
    return Mixtures(torch.zeros(64, 2048), torch.zeros(64, 2048), statistics)


def linear_log_probs(dtype: torch.dtype) -> None:
    rows, vocab, kept = 128, 1536, 30
    logits = torch.zeros(rows, vocab, dtype=dtype)
    selection = Selection(_ids(rows, kept), torch.ones(1))
    dispatch.load("gather_log_probs", "triton")(logits, selection)
    upstream, statistics = _saved(rows, kept)
    backward = dispatch.load("gather_log_probs_backward", "triton")
    backward(upstream, logits, selection, statistics)
    # With all that makes a kernel larger, in one block; without, in two blocks of rows and three
    # parts of the vocabulary, where sums begin, go on and end.
    for strategy in ("chunks", "tiles"):
        head(dtype, strategy, rows, 1024, vocab, kept, rows, full=True)
        head(dtype, strategy, rows, 1024, vocab, kept, 22)


def uneven_head(dtype: torch.dtype) -> None:
    # Rows that no tile divides, and strides of 1, which Triton takes for numbers.
    head(dtype, "tiles", 128, 1000, 1536, 30, 128, full=True)
    head(dtype, "tiles", 1, 1, 1536, 1, 1)


def head(
    dtype: torch.dtype,
    strategy: str,
    rows: int,
    width: int,
    vocab: int,
    kept: int,
    chunk_size: int,
    full: bool = False,
) -> None:
    from lepo_kernels.backends.triton.linear_log_probs import STRATEGIES

    hidden, lm_head = torch.zeros(rows, width, dtype=dtype), torch.zeros(vocab, width, dtype=dtype)
    bias, softcap = (hidden.new_zeros(vocab), 30.0) if full else (None, None)
    selection = Selection(_ids(rows, kept), torch.ones(rows if full else 1))
    shared = (Head(hidden, lm_head, bias, softcap), selection)
    STRATEGIES[strategy].forward(*shared, chunk_size, False)
    upstream, statistics = _saved(rows, kept)
    needs = Needs(True, True, full)
    STRATEGIES[strategy].backward(upstream, *shared, statistics, chunk_size, needs)


def _ids(rows: int, kept: int) -> torch.Tensor:
    return torch.zeros(rows, kept, dtype=torch.int64)


def _saved(rows: int, kept: int) -> tuple[Upstream, Statistics]:
    gamma, eta, lse, entropy = torch.ones(4, rows)
    return Upstream(torch.ones(rows, kept), gamma, eta), Statistics(lse, entropy)


def sample_latent(dtype: torch.dtype) -> None:
    draw(dtype, 30, "gumbel", excluded=True)
    draw(dtype, 30, "categorical")
    # The most entries that are selected by one program, and the noise that takes most registers.
    draw(dtype, 64, "dirichlet")
    # The wide kernels.
    draw(dtype, 4096, "dirichlet", excluded=True)
    draw(dtype, 4096, "categorical")


def draw(
    dtype: torch.dtype,
    top_k: int,
    noise: str,
    excluded: bool = False,
) -> None:
    logits = torch.zeros(32, 75 * 128, dtype=dtype)
    one, zero, rows = torch.ones(1, dtype=torch.float64), torch.tensor(0), torch.arange(32)
    ids = torch.tensor([3]) if excluded else None
    draws = 3 if noise == "categorical" else 1
    filters = (top_k, 0.9, 0.01, noise, 0.5, -1.0, 3.0, draws, ids)
    made = Draw(one, one, *filters, zero, rows, rows, 1.0, 1.0, 0, 0)
    dispatch.load("sample_latent", "triton")(logits, made)


def philox(dtype: torch.dtype) -> None:
    seed, rows = torch.tensor(0), torch.arange(32)
    dispatch.load("philox_words", "triton")(seed, rows, rows, rows[None], 0)


# What makes every launch of a family.
CASES: dict[str, Callable[[torch.dtype], None]] = {
    "mix_embeddings": mix_embeddings,
    "gumbel_softmax_embedding": gumbel_softmax_embedding,
    "linear_gumbel_softmax_embedding": linear_gumbel_softmax_embedding,
    "linear_log_probs": linear_log_probs,
    "philox": philox,
    "sample_latent": sample_latent,
}
# Shapes that no model has: they must run, and spill nothing, and may load by the element.
UNEVEN = {"uneven_head": uneven_head}
# Families that launch nothing but the kernels of others.
COMPOSED = {"latent_step", "lepo_loss"}


def planted(name: str) -> Callable[[torch.dtype], None]:
    """A kernel that the checks must find fault with."""

    def launch(dtype: torch.dtype) -> None:
        from tests.triton_sim import planted

        getattr(planted, name)[(1,)](torch.empty(1 << 15, dtype=dtype), num_warps=1)

    return launch


PLANTED = {name: planted(name) for name in ("broken", "endless", "spilling")}


@contextmanager
def launching_for(target: str) -> Iterator[None]:
    """Let launches be those for the vendor and the family of a target."""
    from lepo_kernels.backends.triton.common import launching

    family = "rocm" if target.startswith("gfx") else FAMILIES.get(target, target)
    hip: Any = "6.4" if family == "rocm" else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.version, "hip", hip)
        patch.setattr(launching, "device_family", lambda device: family)
        yield
