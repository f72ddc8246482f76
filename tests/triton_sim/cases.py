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


def sample_latent(dtype: torch.dtype) -> None:
    draw(dtype, 30, "gumbel", excluded=True)
    draw(dtype, 30, "categorical")
    # The most entries that are selected by one program, and the noise that takes most registers.
    draw(dtype, 64, "dirichlet")
    # The wide kernels.
    draw(dtype, 4096, "dirichlet", excluded=True)
    draw(dtype, 4096, "categorical")


def latent_step(dtype: torch.dtype) -> None:
    draw(dtype, 30, "gumbel", torch.zeros(75 * 128, 2048, dtype=dtype))


def draw(
    dtype: torch.dtype,
    top_k: int,
    noise: str,
    *embedding: torch.Tensor,  # [V, D], for a step
    excluded: bool = False,
) -> None:
    logits = torch.zeros(32, 75 * 128, dtype=dtype)
    one, zero, rows = torch.ones(1, dtype=torch.float64), torch.tensor(0), torch.arange(32)
    ids = torch.tensor([3]) if excluded else None
    draws = 3 if noise == "categorical" else 1
    filters = (top_k, 0.9, 0.01, noise, 0.5, -1.0, 3.0, draws, ids)
    kernel = dispatch.load("latent_step" if embedding else "sample_latent", "triton")
    kernel(logits, *embedding, one, one, *filters, zero, rows, rows)


def philox(dtype: torch.dtype) -> None:
    seed, rows = torch.tensor(0), torch.arange(32)
    dispatch.load("philox_words", "triton")(seed, rows, rows, rows[None], 0)


# What makes every launch of a family.
CASES: dict[str, Callable[[torch.dtype], None]] = {
    "mix_embeddings": mix_embeddings,
    "gumbel_softmax_embedding": gumbel_softmax_embedding,
    "philox": philox,
    "sample_latent": sample_latent,
    "latent_step": latent_step,
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
    """Let launches be those for the vendor of a target."""
    with pytest.MonkeyPatch.context() as patch:
        hip: Any = "6.4" if target.startswith("gfx") else None
        patch.setattr(torch.version, "hip", hip)
        yield
