"""What the Triton kernels of the dense Gumbel-softmax mixture make of tiles of rows and ids."""

import torch
import triton
import triton.language as tl

from lepo_kernels.backends.triton.common.logit_kernels import tanh
from lepo_kernels.backends.triton.common.noise_kernels import exponential, words_tile

_TINY = tl.constexpr(torch.finfo(torch.float32).tiny)


@triton.jit
def inverse_tau(
    tau: tl.tensor,  # [N] or [1] float64
    stride_tau: tl.tensor,
    rows: tl.tensor,  # [ROWS] int64
) -> tl.tensor:  # [ROWS], [ROWS] bool
    """1 / tau, 1 where that is infinite, and where it is: such rows are one-hot."""
    values = tl.load(tau + rows * stride_tau).to(tl.float32)
    hard = tl.abs(values) < _TINY
    return 1.0 / tl.where(hard, 1.0, values), hard


@triton.jit
def exponential_tile(
    seed: tl.tensor,  # []
    row_keys: tl.tensor,  # [N]
    step: tl.tensor,  # [N] or [1]
    stride_step: tl.tensor,
    rows: tl.tensor,  # [ROWS] int64
    first_id: tl.tensor,
    ROWS: tl.constexpr,
    IDS: tl.constexpr,
) -> tl.tensor:  # [ROWS, IDS]
    """``X = exp(-g)`` of neighbouring ids."""
    steps, keys = tl.load(step + rows * stride_step), tl.load(row_keys + rows)
    return exponential(words_tile(tl.load(seed), steps, keys, first_id, ROWS, IDS))


@triton.jit
def logits_tile(
    logits: tl.tensor,  # [N, V]
    row_stride: tl.tensor,
    rows: tl.tensor,  # [ROWS] int64
    ids: tl.tensor,  # [IDS]
    past: tl.tensor,
) -> tl.tensor:  # [ROWS, IDS]
    """-inf from ``past`` on."""
    at = rows[:, None] * row_stride + ids.to(tl.int64)[None, :]
    return tl.load(logits + at, mask=(ids < past)[None, :], other=-float("inf")).to(tl.float32)


@triton.jit
def table_tile(
    table: tl.tensor,  # [V, D]
    row_stride: tl.tensor,
    ids: tl.tensor,  # [IDS]
    past: tl.tensor,
    columns: tl.tensor,  # [COLUMNS]
    width: tl.tensor,
) -> tl.tensor:  # [IDS, COLUMNS]
    """Rows of the table, and 0 from ``past`` on."""
    return tl.load(
        table + ids.to(tl.int64)[:, None] * row_stride + columns[None, :],
        mask=(ids < past)[:, None] & (columns < width)[None, :],
        other=0.0,
    )


@triton.jit
def add_logits(
    logits: tl.tensor,  # [ROWS, IDS]
    hidden: tl.tensor,  # [N, D]
    hidden_row: tl.tensor,
    head: tl.tensor,  # [IDS, COLUMNS], a tile of the head
    rows: tl.tensor,  # [ROWS] int64
    columns: tl.tensor,  # [COLUMNS]
    width: tl.tensor,
    PRECISION: tl.constexpr,
) -> tl.tensor:  # [ROWS, IDS]
    """``logits + hidden @ head^T`` of a few columns."""
    at = rows[:, None] * hidden_row + columns[None, :]
    states = tl.load(hidden + at, mask=(columns < width)[None, :], other=0.0)
    return tl.dot(states, tl.trans(head), logits, input_precision=PRECISION)


@triton.jit
def capped(
    logits: tl.tensor,  # [ROWS, IDS]
    bias: tl.tensor,  # [V] or None
    softcap: tl.tensor,  # a number or None
    ids: tl.tensor,  # [IDS]
    past: tl.tensor,
) -> tl.tensor:  # [ROWS, IDS]
    """``softcap tanh((logits + bias) / softcap)``, as far as there are such."""
    if bias is not None:
        logits += tl.load(bias + ids, mask=ids < past, other=0.0).to(tl.float32)[None, :]
    if softcap is not None:
        logits = softcap * tanh(logits / softcap)
    return logits


@triton.jit
def finite(x: tl.tensor) -> tl.tensor:
    """What may be subtracted from a number that is not above it."""
    return tl.where(x == -float("inf"), 0.0, x)


@triton.jit
def halves(x: tl.tensor) -> tl.tensor:
    """Two bfloat16 numbers whose sum is x up to 2^-17 of it."""
    high = x.to(tl.bfloat16)
    return high, (x - high.to(tl.float32)).to(tl.bfloat16)
