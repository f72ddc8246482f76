"""Calls whose kernels are compiled ahead of time, of sizes as they are trained and rolled out with.

The vocabularies are short, so that the tensors are small, and have the same divisors as real ones.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from lepo_kernels import dispatch

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def mix_embeddings(dtype: torch.dtype) -> None:
    ids, weights = torch.zeros(32, 30, dtype=torch.int64), torch.zeros(32, 30)
    embedding, grad = torch.empty(1024, 2048, dtype=dtype), torch.empty(32, 2048, dtype=dtype)
    dispatch.load("mix_embeddings", "triton")(ids, weights, embedding)
    dispatch.load("mix_embeddings_backward", "triton")(grad, ids, weights, embedding, True, True)


def gumbel_softmax_embedding(dtype: torch.dtype) -> None:
    logits, embedding = torch.zeros(64, 4096, dtype=dtype), torch.zeros(4096, 2048, dtype=dtype)
    one, zero = torch.ones(1, dtype=torch.float64), torch.tensor(0)
    shared = (logits, embedding, one, one, zero, torch.arange(64), torch.arange(64))
    grads, known = (
        (torch.zeros(64, 2048), torch.zeros(64)),
        (torch.zeros(64, 2048), torch.zeros(64, 5, dtype=torch.float64)),
    )
    dispatch.load("gumbel_softmax_embedding", "triton")(*shared)
    backward = dispatch.load("gumbel_softmax_embedding_backward", "triton")
    backward(*grads, *shared, *known, True, True)


def linear_log_probs(dtype: torch.dtype) -> None:
    rows, width, vocab, kept = 128, 1024, 1536, 30
    hidden, lm_head = torch.zeros(rows, width, dtype=dtype), torch.zeros(vocab, width, dtype=dtype)
    ids, one = torch.zeros(rows, kept, dtype=torch.int64), torch.ones(1)
    row, saved = torch.ones(rows), (torch.ones(rows, kept), *torch.ones(4, rows))
    alpha, gamma, eta, lse, entropy = saved
    logits = torch.zeros(rows, vocab, dtype=dtype)
    dispatch.load("gather_log_probs", "triton")(logits, ids, one)
    gather_backward = dispatch.load("gather_log_probs_backward", "triton")
    gather_backward(alpha, gamma, eta, logits, ids, one, lse, entropy)
    from lepo_kernels.backends.triton.linear_log_probs import STRATEGIES

    # With all that makes a kernel larger, in one block; without, in two blocks of rows and three
    # parts of the vocabulary, where sums begin, go on and end.
    for bias, softcap, scale, chunk in (
        (hidden.new_zeros(vocab), 30.0, row, rows),
        (None, None, one, 22),
    ):
        shared = (hidden, lm_head, ids, bias, softcap, scale)
        for strategy in STRATEGIES.values():
            strategy.forward(*shared, chunk)
            needs = (True, True, bias is not None)
            strategy.backward(alpha, gamma, eta, *shared, lse, entropy, chunk, *needs)


def philox(dtype: torch.dtype) -> None:
    seed, rows = torch.tensor(0), torch.arange(32)
    dispatch.load("philox_words", "triton")(seed, rows, rows, rows[None], 0)


# What makes every launch of a family.
CASES: dict[str, Callable[[torch.dtype], None]] = {
    "mix_embeddings": mix_embeddings,
    "gumbel_softmax_embedding": gumbel_softmax_embedding,
    "linear_log_probs": linear_log_probs,
    "philox": philox,
}


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
    from lepo_kernels.backends.triton import launching

    with pytest.MonkeyPatch.context() as patch:
        is_amd = target.startswith("gfx")
        hip: Any = "6.4" if is_amd else None
        patch.setattr(torch.version, "hip", hip)
        patch.setattr(launching, "device_family", lambda device: "rocm" if is_amd else target)
        yield
