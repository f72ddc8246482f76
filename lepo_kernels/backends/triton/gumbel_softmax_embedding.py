"""Triton kernels of the dense Gumbel-softmax mixture.

Contract: float32, bfloat16 and float16 in any combination; computes in float32. Noise and weights
exist for one tile of rows and ids at a time, inside a program, and are drawn anew from the counter
wherever they are needed; nothing of size [N, V] is stored but the gradient of the logits.

Forward reads the logits twice and the table once. A first pass over the vocabulary, an online
softmax, finds the statistics of each row, among them its peak, the largest ``q``. The second one
multiplies tiles of weights with tiles of the table on tensor cores. It leaves the peak's row out
and adds it at the end: so the deviation ``e - E_peak`` is a sum of small terms, no difference of
close ones, and no sum is ever rescaled. Both passes are split over the vocabulary where rows are
few; a last kernel adds up the parts in their order.

Backward reads the table and the logits once for the gradient of the logits, and the logits once per
block of columns for that of the table. Rows whose upstream gradients are all zero are sorted to the
end, and left out. Nothing waits for the device unless values are checked.

Products with a bfloat16 table take the float32 factor apart into two bfloat16 numbers; those with
other tables are ``tf32x3``. Deterministic: no atomics, and every sum has its order, which may
depend on the number of rows and on the device.
"""

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from lepo_kernels.backends.reference.numerics import check_positive, check_rows, check_steps
from lepo_kernels.backends.triton.launching import dense_rows, device_of, programs_wanted, step_of
from lepo_kernels.backends.triton.noise import gumbel_tile
from lepo_kernels.validation import FLOAT_DTYPES, check_tensor

# The sum of a product is not fused: every kernel must find the same bits of q.
_UNFUSED = {"enable_fp_fusion": False}
# Tiles, warps and stages of loads; not measured on a GPU yet. IDS are multiples of 4.
_STATISTICS = {"ROWS": 1, "IDS": 2048, "num_warps": 4, **_UNFUSED}
_COMBINE = {"COLUMNS": 1024, "num_warps": 4, **_UNFUSED}
# 64 rows fill a tensor core of Hopper; for fewer there is a smaller tile.
_ROWS = (16, 64)
# For a bfloat16 table, for others, and for any on ROCm, where there is less shared memory.
_MIX = {
    # Blackwell keeps the sums elsewhere, and would allow a thread 128 registers, which spills.
    "bfloat16": {
        "IDS": 64,
        "COLUMNS": 256,
        "num_warps": 8,
        "num_stages": 2,
        "maxnreg": 248,
        **_UNFUSED,
    },
    "float": {"IDS": 32, "COLUMNS": 128, "num_warps": 8, "num_stages": 2, **_UNFUSED},
    "rocm": {"IDS": 32, "COLUMNS": 128, "num_warps": 8, "num_stages": 2, **_UNFUSED},
}
_LOGITS_GRADIENT = {
    "bfloat16": {"IDS": 128, "COLUMNS": 64, "num_warps": 8, "num_stages": 3, **_UNFUSED},
    "float": {"IDS": 128, "COLUMNS": 32, "num_warps": 8, "num_stages": 2, **_UNFUSED},
    "rocm": {"IDS": 64, "COLUMNS": 32, "num_warps": 8, "num_stages": 2, **_UNFUSED},
}
_TABLE_GRADIENT = {
    "bfloat16": {"IDS": 64, "COLUMNS": 256, "num_warps": 8, "num_stages": 1, **_UNFUSED},
    "float": {"IDS": 64, "COLUMNS": 128, "num_warps": 8, "num_stages": 1, **_UNFUSED},
    "rocm": {"IDS": 64, "COLUMNS": 64, "num_warps": 8, "num_stages": 1, **_UNFUSED},
}
_SMALLEST_TILE = 16  # of a product on tensor cores
# Of a row's part of the vocabulary: largest q, what the others weigh beside it, largest a, mass,
# and the sum of p (a - largest a).
_PARTS = tl.constexpr(5)
_NO_ID = tl.constexpr(2**31 - 1)
_TINY = tl.constexpr(torch.finfo(torch.float32).tiny)


@triton.jit
def _inverse_tau(
    tau: tl.tensor,  # [N] or [1] float64
    tau_step: tl.tensor,
    rows: tl.tensor,  # [ROWS] int64
) -> tl.tensor:  # [ROWS], [ROWS] bool
    """1 / tau, 1 where that is infinite, and where it is: such rows are one-hot."""
    values = tl.load(tau + rows * tau_step).to(tl.float32)
    hard = tl.abs(values) < _TINY
    return 1.0 / tl.where(hard, 1.0, values), hard


@triton.jit
def _noisy_tile(
    logits: tl.tensor,  # [N, V]
    row_stride: tl.tensor,
    temperature: tl.tensor,  # [N] or [1] float64
    temperature_step: tl.tensor,
    seed: tl.tensor,  # []
    row_keys: tl.tensor,  # [N]
    step: tl.tensor,  # [N] or [1]
    step_step: tl.tensor,
    rows: tl.tensor,  # [ROWS] int64
    first: tl.tensor,
    past: tl.tensor,
    ROWS: tl.constexpr,
    IDS: tl.constexpr,
) -> tl.tensor:  # [IDS], [ROWS, IDS], [ROWS, IDS]
    """Ids from ``first`` to ``past``, tempered logits ``a``, and ``q``; -inf where no id is."""
    ids = first + tl.arange(0, IDS)
    at = rows[:, None] * row_stride + ids.to(tl.int64)[None, :]
    x = tl.load(logits + at, mask=(ids < past)[None, :], other=-float("inf")).to(tl.float32)
    inverse = 1.0 / tl.load(temperature + rows * temperature_step).to(tl.float32)
    a = x * inverse[:, None]
    steps, keys = tl.load(step + rows * step_step), tl.load(row_keys + rows)
    return ids, a, a + gumbel_tile(tl.load(seed), steps, keys, first, ROWS, IDS)


@triton.jit
def _table_tile(
    embedding: tl.tensor,  # [V, D]
    row_stride: tl.tensor,
    first: tl.tensor,
    past: tl.tensor,
    columns: tl.tensor,  # [COLUMNS]
    width: tl.tensor,
    IDS: tl.constexpr,
) -> tl.tensor:  # [IDS, COLUMNS]
    """Rows of the table from ``first`` to ``past``, and 0."""
    ids = first + tl.arange(0, IDS)
    return tl.load(
        embedding + ids.to(tl.int64)[:, None] * row_stride + columns[None, :],
        mask=(ids < past)[:, None] & (columns < width)[None, :],
        other=0.0,
    )


@triton.jit
def _finite(x: tl.tensor) -> tl.tensor:
    """What may be subtracted from a number that is not above it."""
    return tl.where(x == -float("inf"), 0.0, x)


@triton.jit
def _halves(x: tl.tensor) -> tl.tensor:
    """Two bfloat16 numbers whose sum is x up to 2^-17 of it."""
    high = x.to(tl.bfloat16)
    return high, (x - high.to(tl.float32)).to(tl.bfloat16)


@triton.jit
def statistics_kernel(
    logits: tl.tensor,  # [N, V]
    row_stride: tl.tensor,
    tau: tl.tensor,  # [N] or [1]
    tau_step: tl.tensor,
    temperature: tl.tensor,  # [N] or [1]
    temperature_step: tl.tensor,
    seed: tl.tensor,  # []
    row_keys: tl.tensor,  # [N]
    step: tl.tensor,  # [N] or [1]
    step_step: tl.tensor,
    parts: tl.tensor,  # [N, splits, 5], written
    peaks: tl.tensor,  # [N, splits] int32, written
    total_rows: tl.tensor,
    vocab: tl.tensor,
    splits: tl.tensor,
    ids_per_split: tl.tensor,
    ROWS: tl.constexpr,
    IDS: tl.constexpr,
) -> None:
    """Rows' part of the vocabulary per program: an online softmax over tiles of ids."""
    program = tl.program_id(0)
    block, split = program // splits, program % splits
    wanted = block * ROWS + tl.arange(0, ROWS)
    # A row that is not there is the last one, once more.
    rows = tl.minimum(wanted, total_rows - 1).to(tl.int64)
    inverse, _ = _inverse_tau(tau, tau_step, rows)
    q_max = tl.full((ROWS,), -float("inf"), tl.float32)
    a_max = tl.full((ROWS,), -float("inf"), tl.float32)
    peak = tl.zeros((ROWS,), tl.int32)
    beside = tl.zeros((ROWS,), tl.float32)
    mass = tl.zeros((ROWS,), tl.float32)
    shifted = tl.zeros((ROWS,), tl.float32)
    past = tl.minimum((split + 1) * ids_per_split, vocab)
    for first in range(split * ids_per_split, past, IDS):
        ids, a, q = _noisy_tile(
            logits, row_stride, temperature, temperature_step, seed, row_keys, step, step_step,
            rows, first, past, ROWS, IDS,
        )  # fmt: skip
        q_top, a_top = tl.max(q, axis=1), tl.max(a, axis=1)
        # The first of equal ones; none where all are NaN.
        first_top = tl.min(tl.where(q == q_top[:, None], ids[None, :], _NO_ID), axis=1)
        wins = q_top > q_max
        q_new, a_new = tl.maximum(q_max, q_top), tl.maximum(a_max, a_top)
        shrink = tl.exp((q_max - _finite(q_new)) * inverse)
        p = tl.exp((q - _finite(q_new)[:, None]) * inverse[:, None])
        loser = tl.where(wins, shrink, tl.exp((q_top - _finite(q_new)) * inverse))
        below = tl.where(a_max == -float("inf"), 0.0, a_max - _finite(a_new))
        shifted += (beside + tl.where(q_max == -float("inf"), 0.0, 1.0)) * below
        shifted = shifted * shrink + tl.sum(
            tl.where(p == 0, 0.0, p * (a - _finite(a_new)[:, None])), axis=1
        )
        others = tl.sum(tl.where(ids[None, :] == first_top[:, None], 0.0, p), axis=1)
        beside = beside * shrink + others + loser
        mass = mass * tl.exp(a_max - _finite(a_new)) + tl.sum(
            tl.exp(a - _finite(a_new)[:, None]), axis=1
        )
        peak = tl.where(wins, first_top, peak)
        q_max, a_max = q_new, a_new
    mask = wanted < total_rows
    at = parts + (rows * splits + split) * _PARTS
    tl.store(at, q_max, mask=mask)
    tl.store(at + 1, beside, mask=mask)
    tl.store(at + 2, a_max, mask=mask)
    tl.store(at + 3, mass, mask=mask)
    tl.store(at + 4, shifted, mask=mask)
    tl.store(peaks + rows * splits + split, peak, mask=mask)


@triton.jit
def combine_statistics_kernel(
    logits: tl.tensor,  # [N, V]
    row_stride: tl.tensor,
    tau: tl.tensor,  # [N] or [1]
    tau_step: tl.tensor,
    temperature: tl.tensor,  # [N] or [1]
    temperature_step: tl.tensor,
    parts: tl.tensor,  # [N, splits, 5]
    peaks: tl.tensor,  # [N, splits] int32
    log_prob: tl.tensor,  # [N], written
    statistics: tl.tensor,  # [N, 5] float64, written
    vocab: tl.tensor,
    splits: tl.tensor,
    SPLITS: tl.constexpr,
) -> None:
    """One row per program; NaN where a row has no weights."""
    row = tl.program_id(0).to(tl.int64)
    inverse, hard = _inverse_tau(tau, tau_step, row)
    split = tl.arange(0, SPLITS)
    here = split < splits
    at = parts + (row * splits + split) * _PARTS
    q_part = tl.load(at, mask=here, other=-float("inf"))
    beside = tl.load(at + 1, mask=here, other=0.0)
    a_part = tl.load(at + 2, mask=here, other=-float("inf"))
    mass_part = tl.load(at + 3, mask=here, other=0.0)
    shifted_part = tl.load(at + 4, mask=here, other=0.0)
    peak_part = tl.load(peaks + row * splits + split, mask=here, other=0)
    q_max, a_max = tl.max(q_part, axis=0), tl.max(a_part, axis=0)
    winner = tl.min(tl.where(q_part == q_max, split, SPLITS), axis=0)
    peak = tl.minimum(tl.sum(tl.where(split == winner, peak_part, 0), axis=0), vocab - 1)
    shrink = tl.exp((q_part - _finite(q_max)) * inverse)
    weight = beside + tl.where(q_part == -float("inf"), 0.0, 1.0)
    others = tl.sum(tl.where(split == winner, beside, weight * shrink), axis=0)
    below = tl.where(a_part == -float("inf"), 0.0, a_part - _finite(a_max))
    shifted = tl.sum(shrink * (shifted_part + weight * below), axis=0)
    mass = tl.sum(mass_part * tl.exp(a_part - _finite(a_max)), axis=0)

    total = 1.0 + others.to(tl.float64)
    at_peak = tl.load(logits + row * row_stride + peak).to(tl.float32)
    at_peak *= 1.0 / tl.load(temperature + row * temperature_step).to(tl.float32)
    mean = tl.where(hard, at_peak - a_max, shifted / total.to(tl.float32))
    # False for NaN, too.
    good = mass > 0
    nan = tl.full((), float("nan"), tl.float64)
    tl.store(log_prob + row, tl.where(good, mean - tl.log(mass), float("nan")))
    out = statistics + row * 5
    tl.store(out, q_max.to(tl.float64))
    tl.store(out + 1, tl.where(good, tl.where(hard, 1.0, 1.0 / total), nan))
    tl.store(out + 2, a_max.to(tl.float64))
    tl.store(out + 3, tl.where(good, 1.0 / mass.to(tl.float64), nan))
    tl.store(out + 4, peak.to(tl.float64))


@triton.jit
def mix_beside_peak_kernel(
    logits: tl.tensor,  # [N, V]
    row_stride: tl.tensor,
    tau: tl.tensor,  # [N] or [1]
    tau_step: tl.tensor,
    temperature: tl.tensor,  # [N] or [1]
    temperature_step: tl.tensor,
    seed: tl.tensor,  # []
    row_keys: tl.tensor,  # [N]
    step: tl.tensor,  # [N] or [1]
    step_step: tl.tensor,
    statistics: tl.tensor,  # [N, 5]
    embedding: tl.tensor,  # [V, D]
    embedding_row: tl.tensor,
    sums: tl.tensor,  # [splits, N, D], written
    total_rows: tl.tensor,
    vocab: tl.tensor,
    width: tl.tensor,
    row_blocks: tl.tensor,
    column_blocks: tl.tensor,
    ids_per_split: tl.tensor,
    ROWS: tl.constexpr,
    IDS: tl.constexpr,
    COLUMNS: tl.constexpr,
    SPLIT: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    """A block of rows and columns per program and part of the vocabulary.

    Programs that read the same part of the table are neighbours.
    """
    program = tl.program_id(0)
    block, rest = program % row_blocks, program // row_blocks
    columns = (rest % column_blocks) * COLUMNS + tl.arange(0, COLUMNS)
    split = rest // column_blocks
    wanted = block * ROWS + tl.arange(0, ROWS)
    # A row that is not there is the last one, once more.
    rows = tl.minimum(wanted, total_rows - 1).to(tl.int64)
    inverse, hard = _inverse_tau(tau, tau_step, rows)
    q_max = tl.load(statistics + rows * 5).to(tl.float32)
    scale = tl.where(hard, 0.0, tl.load(statistics + rows * 5 + 1).to(tl.float32))
    peak = tl.load(statistics + rows * 5 + 4).to(tl.int32)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    past = tl.minimum((split + 1) * ids_per_split, vocab)
    for first in range(split * ids_per_split, past, IDS):
        ids, _, q = _noisy_tile(
            logits, row_stride, temperature, temperature_step, seed, row_keys, step, step_step,
            rows, first, past, ROWS, IDS,
        )  # fmt: skip
        z = tl.exp((q - q_max[:, None]) * inverse[:, None]) * scale[:, None]
        z = tl.where(ids[None, :] == peak[:, None], 0.0, z)
        table = _table_tile(embedding, embedding_row, first, past, columns, width, IDS)
        if SPLIT:
            high, low = _halves(z)
            total = tl.dot(low, table, total)
            total = tl.dot(high, table, total)
        else:
            total = tl.dot(z, table.to(tl.float32), total, input_precision=PRECISION)
    out = sums + (split.to(tl.int64) * total_rows + wanted[:, None]) * width + columns[None, :]
    tl.store(out, total, mask=(wanted < total_rows)[:, None] & (columns < width)[None, :])


@triton.jit
def combine_mixtures_kernel(
    sums: tl.tensor,  # [splits, N, D]
    statistics: tl.tensor,  # [N, 5]
    embedding: tl.tensor,  # [V, D]
    embedding_row: tl.tensor,
    mixed: tl.tensor,  # [N, D], written
    deviation: tl.tensor,  # [N, D], written
    total_rows: tl.tensor,
    width: tl.tensor,
    splits: tl.tensor,
    COLUMNS: tl.constexpr,
) -> None:
    """One row per program, and a block of columns: the parts in their order, and the peak."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < width
    total = tl.zeros((COLUMNS,), tl.float32)
    for split in range(splits):
        at = (row + split * total_rows) * width + columns
        total += tl.load(sums + at, mask=inside, other=0.0)
    # Both from the same sum: the larger of them may be much larger than the other.
    scale = tl.load(statistics + row * 5 + 1)
    at = tl.load(statistics + row * 5 + 4).to(tl.int64) * embedding_row
    peak = tl.load(embedding + at + columns, mask=inside, other=0.0)
    peak = peak.to(tl.float32)
    out = row * width + columns
    tl.store(mixed + out, total + scale.to(tl.float32) * peak, mask=inside)
    tl.store(deviation + out, total - (1.0 - scale).to(tl.float32) * peak, mask=inside)


@triton.jit
def upstream_kernel(
    grad: tl.tensor,  # [N, D]
    grad_log_prob: tl.tensor,  # [N]
    deviation: tl.tensor,  # [N, D]
    statistics: tl.tensor,  # [N, 5]
    embedding: tl.tensor,  # [V, D]
    embedding_row: tl.tensor,
    pulls: tl.tensor,  # [N, 2], written: E_peak . de and (e - E_peak) . de
    idle: tl.tensor,  # [N] int8, written: 1 where nothing is upstream
    high: tl.tensor,  # [N, D], written: the gradient as the products take it
    low: tl.tensor,  # [N, D], written with SPLIT: what it lacks
    width: tl.tensor,
    SPLIT: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    """One row per program: what of its upstream gradients is the same for all ids."""
    row = tl.program_id(0).to(tl.int64)
    at_peak = tl.load(statistics + row * 5 + 4).to(tl.int64) * embedding_row
    peak_pull = tl.zeros((COLUMNS,), tl.float32)
    mean_pull = tl.zeros((COLUMNS,), tl.float32)
    used = tl.zeros((COLUMNS,), tl.int32)
    for first in range(0, width, COLUMNS):
        columns = first + tl.arange(0, COLUMNS)
        inside = columns < width
        at = row * width + columns
        de = tl.load(grad + at, mask=inside, other=0.0).to(tl.float32)
        e = tl.load(embedding + at_peak + columns, mask=inside, other=0.0)
        peak_pull += e.to(tl.float32) * de
        mean_pull += tl.load(deviation + at, mask=inside, other=0.0).to(tl.float32) * de
        used |= (de != 0).to(tl.int32)
        if SPLIT:
            de_high, de_low = _halves(de)
            tl.store(high + at, de_high, mask=inside)
            tl.store(low + at, de_low, mask=inside)
        else:
            tl.store(high + at, de, mask=inside)
    active = (tl.max(used, axis=0) > 0) | (tl.load(grad_log_prob + row) != 0)
    tl.store(idle + row, 1 - active.to(tl.int8))
    tl.store(pulls + row * 2, tl.sum(peak_pull, axis=0))
    tl.store(pulls + row * 2 + 1, tl.sum(mean_pull, axis=0))


@triton.jit
def logits_gradient_kernel(
    logits: tl.tensor,  # [N, V]
    row_stride: tl.tensor,
    tau: tl.tensor,  # [N] or [1]
    tau_step: tl.tensor,
    temperature: tl.tensor,  # [N] or [1]
    temperature_step: tl.tensor,
    seed: tl.tensor,  # []
    row_keys: tl.tensor,  # [N]
    step: tl.tensor,  # [N] or [1]
    step_step: tl.tensor,
    statistics: tl.tensor,  # [N, 5]
    embedding: tl.tensor,  # [V, D]
    embedding_row: tl.tensor,
    high: tl.tensor,  # [N, D]
    low: tl.tensor,  # [N, D]
    pulls: tl.tensor,  # [N, 2]
    grad_log_prob: tl.tensor,  # [N]
    order: tl.tensor,  # [N], rows with gradients first
    count: tl.tensor,  # [], how many they are
    dlogits: tl.tensor,  # [N, V], written
    total_rows: tl.tensor,
    vocab: tl.tensor,
    width: tl.tensor,
    row_blocks: tl.tensor,
    ROWS: tl.constexpr,
    IDS: tl.constexpr,
    COLUMNS: tl.constexpr,
    SPLIT: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    """A block of rows and ids per program; neighbours read the same rows of the table."""
    program = tl.program_id(0)
    place = (program % row_blocks) * ROWS + tl.arange(0, ROWS)
    first = (program // row_blocks) * IDS
    ids = first + tl.arange(0, IDS)
    rows = tl.load(order + tl.minimum(place, total_rows - 1))
    active = place < tl.load(count)
    out = dlogits + rows[:, None] * vocab + ids.to(tl.int64)[None, :]
    stored = (place < total_rows)[:, None] & (ids < vocab)[None, :]
    da = tl.zeros((ROWS, IDS), tl.float32)
    if tl.sum(active.to(tl.int32)) > 0:
        pull = tl.zeros((ROWS, IDS), tl.float32)
        for start in range(0, width, COLUMNS):
            columns = start + tl.arange(0, COLUMNS)
            inside = columns < width
            table = _table_tile(embedding, embedding_row, first, vocab, columns, width, IDS)
            at = rows[:, None] * width + columns[None, :]
            mask = active[:, None] & inside[None, :]
            de = tl.load(high + at, mask=mask, other=0.0)
            if SPLIT:
                pull = tl.dot(tl.load(low + at, mask=mask, other=0.0), tl.trans(table), pull)
                pull = tl.dot(de, tl.trans(table), pull)
            else:
                turned = tl.trans(table.to(tl.float32))
                pull = tl.dot(de, turned, pull, input_precision=PRECISION)
        _, a, q = _noisy_tile(
            logits, row_stride, temperature, temperature_step, seed, row_keys, step, step_step,
            rows, first, vocab, ROWS, IDS,
        )  # fmt: skip
        inverse, hard = _inverse_tau(tau, tau_step, rows)
        q_max = tl.load(statistics + rows * 5).to(tl.float32)
        scale = tl.load(statistics + rows * 5 + 1).to(tl.float32)
        a_max = tl.load(statistics + rows * 5 + 2).to(tl.float32)
        pi_scale = tl.load(statistics + rows * 5 + 3).to(tl.float32)
        at_peak = ids[None, :] == tl.load(statistics + rows * 5 + 4).to(tl.int32)[:, None]
        soft = tl.exp((q - q_max[:, None]) * inverse[:, None]) * scale[:, None]
        z = tl.where(at_peak, scale[:, None], tl.where(hard[:, None], 0.0, soft))
        pi = tl.exp(a - a_max[:, None]) * pi_scale[:, None]
        # Measured from the peak, as the mean is: at the peak itself nothing is left but the mean.
        pull = tl.where(at_peak, 0.0, pull - tl.load(pulls + rows * 2)[:, None])
        pull -= tl.load(pulls + rows * 2 + 1)[:, None]
        # At tau = 0 the mixture is piecewise constant in the logits.
        inverse = tl.where(hard, 0.0, inverse)
        da = z * pull * inverse[:, None]
        da += tl.load(grad_log_prob + rows).to(tl.float32)[:, None] * (z - pi)
        da *= 1.0 / tl.load(temperature + rows * temperature_step).to(tl.float32)[:, None]
        da = tl.where(active[:, None], da, 0.0)
    tl.store(out, da.to(dlogits.dtype.element_ty), mask=stored)


@triton.jit
def dense_table_gradient_kernel(
    logits: tl.tensor,  # [N, V]
    row_stride: tl.tensor,
    tau: tl.tensor,  # [N] or [1]
    tau_step: tl.tensor,
    temperature: tl.tensor,  # [N] or [1]
    temperature_step: tl.tensor,
    seed: tl.tensor,  # []
    row_keys: tl.tensor,  # [N]
    step: tl.tensor,  # [N] or [1]
    step_step: tl.tensor,
    statistics: tl.tensor,  # [N, 5]
    high: tl.tensor,  # [N, D]
    low: tl.tensor,  # [N, D]
    order: tl.tensor,  # [N], rows with gradients first
    count: tl.tensor,  # [], how many they are
    dembedding: tl.tensor,  # [V, D], written
    vocab: tl.tensor,
    width: tl.tensor,
    column_blocks: tl.tensor,
    ROWS: tl.constexpr,
    IDS: tl.constexpr,
    COLUMNS: tl.constexpr,
    SPLIT: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    """A block of ids and columns per program, which adds up all rows; neighbours share ids."""
    program = tl.program_id(0)
    columns = (program % column_blocks) * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < width
    first = (program // column_blocks) * IDS
    ids = first + tl.arange(0, IDS)
    total = tl.zeros((IDS, COLUMNS), tl.float32)
    active_rows = tl.load(count)
    for start in range(0, active_rows, ROWS):
        place = start + tl.arange(0, ROWS)
        active = place < active_rows
        rows = tl.load(order + tl.minimum(place, active_rows - 1))
        _, _, q = _noisy_tile(
            logits, row_stride, temperature, temperature_step, seed, row_keys, step, step_step,
            rows, first, vocab, ROWS, IDS,
        )  # fmt: skip
        inverse, hard = _inverse_tau(tau, tau_step, rows)
        q_max = tl.load(statistics + rows * 5).to(tl.float32)
        scale = tl.load(statistics + rows * 5 + 1).to(tl.float32)
        at_peak = ids[None, :] == tl.load(statistics + rows * 5 + 4).to(tl.int32)[:, None]
        soft = tl.exp((q - q_max[:, None]) * inverse[:, None]) * scale[:, None]
        z = tl.where(at_peak, scale[:, None], tl.where(hard[:, None], 0.0, soft))
        turned = tl.trans(tl.where(active[:, None], z, 0.0))
        at = rows[:, None] * width + columns[None, :]
        mask = active[:, None] & inside[None, :]
        de = tl.load(high + at, mask=mask, other=0.0)
        if SPLIT:
            z_high, z_low = _halves(turned)
            total = tl.dot(z_high, tl.load(low + at, mask=mask, other=0.0), total)
            total = tl.dot(z_low, de, total)
            total = tl.dot(z_high, de, total)
        else:
            total = tl.dot(turned, de, total, input_precision=PRECISION)
    tl.store(
        dembedding + ids.to(tl.int64)[:, None] * width + columns[None, :],
        total.to(dembedding.dtype.element_ty),
        mask=(ids < vocab)[:, None] & inside[None, :],
    )


def gumbel_softmax_embedding(
    logits: Tensor,  # [N, V]
    embedding: Tensor,  # [V, D]
    tau: Tensor,  # [N] or [1]
    temperature: Tensor,  # [N] or [1]
    seed: Tensor,  # []
    row_keys: Tensor,  # [N]
    step: Tensor,  # [N] or [1]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # [N, D], [N], [N, D], [N, 5]
    """Mixtures ``z @ embedding``, log-probabilities ``sum z log pi``, and what backward takes over.

    The latter are the deviations ``e - E_peak`` and the statistics of the rows, see the op.
    """
    noisy = _noisy(logits, embedding, tau, temperature, seed, row_keys, step)
    embedding = dense_rows(embedding)
    check_positive("tau", tau, zero_included=True)
    check_positive("temperature", temperature)
    check_steps(step)
    with device_of(logits):
        log_prob, statistics = _statistics(noisy)
        check_rows("logits", log_prob)
        mixed, deviation = _mixtures(noisy, embedding, statistics)
    return mixed, log_prob, deviation, statistics


def gumbel_softmax_embedding_backward(
    grad_embedding: Tensor,  # [N, D]
    grad_log_prob: Tensor,  # [N]
    logits: Tensor,  # [N, V]
    embedding: Tensor,  # [V, D]
    tau: Tensor,  # [N] or [1]
    temperature: Tensor,  # [N] or [1]
    seed: Tensor,  # []
    row_keys: Tensor,  # [N]
    step: Tensor,  # [N] or [1]
    deviation: Tensor,  # [N, D]
    statistics: Tensor,  # [N, 5]
    need_dlogits: bool,
    need_dembedding: bool,
) -> tuple[Tensor, Tensor]:  # [N, V] or [0], [V, D] or [0]
    """da_j = z_j (E_j . de - e . de) / tau + dlogp (z_j - pi_j) and dE_j += z_j de."""
    noisy = _noisy(logits, embedding, tau, temperature, seed, row_keys, step)
    embedding = dense_rows(embedding)
    rows, width, device = noisy.rows, embedding.shape[1], logits.device
    check_tensor("grad_embedding", grad_embedding, (rows, width), FLOAT_DTYPES, device)
    check_tensor("grad_log_prob", grad_log_prob, (rows,), FLOAT_DTYPES, device)
    check_tensor("deviation", deviation, (rows, width), FLOAT_DTYPES, device)
    check_tensor("statistics", statistics, (rows, 5), (torch.float64,), device)
    dlogits = logits.new_empty((rows, noisy.vocab) if need_dlogits else (0,))
    dembedding = embedding.new_empty(embedding.shape if need_dembedding else (0,))
    if rows == 0:
        return dlogits, dembedding.zero_()
    with device_of(logits):
        upstream = _upstream(grad_embedding, grad_log_prob, deviation, statistics, embedding)
        if need_dlogits:
            _logits_gradient(noisy, embedding, upstream, dlogits)
        if dembedding.numel() > 0:
            _table_gradient(noisy, upstream, dembedding)
    return dlogits, dembedding


@dataclass
class _Noisy:
    """The logits, and all that their noise depends on, as every kernel takes them."""

    logits: Tensor  # [N, V]
    tau: Tensor  # [N] or [1]
    temperature: Tensor  # [N] or [1]
    seed: Tensor  # []
    row_keys: Tensor  # [N]
    step: Tensor  # [N] or [1]

    @property
    def rows(self) -> int:
        return self.logits.shape[0]

    @property
    def vocab(self) -> int:
        return self.logits.shape[1]

    def tempered(self) -> tuple[Any, ...]:
        """Arguments of a kernel, from the logits to the temperature."""
        return (
            self.logits,
            self.logits.stride(0),
            self.tau,
            step_of(self.tau),
            self.temperature,
            step_of(self.temperature),
        )

    def arguments(self) -> tuple[Any, ...]:
        """Arguments of a kernel, from the logits to the steps."""
        return (*self.tempered(), self.seed, self.row_keys, self.step, step_of(self.step))


def _noisy(
    logits: Tensor,  # [N, V]
    embedding: Tensor,  # [V, D]
    tau: Tensor,  # [N] or [1]
    temperature: Tensor,  # [N] or [1]
    seed: Tensor,  # []
    row_keys: Tensor,  # [N]
    step: Tensor,  # [N] or [1]
) -> _Noisy:
    """All tensors agree on N and V."""
    check_tensor("logits", logits, ("N", "V"), FLOAT_DTYPES)
    (rows, vocab), device = logits.shape, logits.device
    check_tensor("embedding", embedding, (vocab, "D"), FLOAT_DTYPES, device)
    for name, x, dtype in (
        ("tau", tau, torch.float64),
        ("temperature", temperature, torch.float64),
        ("step", step, torch.int64),
    ):
        check_tensor(name, x, (1 if x.shape == (1,) else rows,), (dtype,), device)
    check_tensor("seed", seed, (), (torch.int64,), device)
    check_tensor("row_keys", row_keys, (rows,), (torch.int64,), device)
    logits = dense_rows(logits)
    dense = (x.contiguous() for x in (tau, temperature, seed, row_keys, step))
    return _Noisy(logits, *dense)


def _options(table: dict[str, dict[str, int]], rows: int, like: Tensor, **least: int) -> Any:
    """Tiles for a table of this dtype; those that ``least`` names are no wider than need be."""
    size = (
        "rocm" if torch.version.hip else ("bfloat16" if like.dtype == torch.bfloat16 else "float")
    )
    options: dict[str, Any] = dict(table[size])
    for name, needed in least.items():
        options[name] = min(options[name], max(_SMALLEST_TILE, triton.next_power_of_2(needed)))
    options["ROWS"] = _ROWS[0] if rows <= _ROWS[0] else _ROWS[1]
    options["SPLIT"] = like.dtype == torch.bfloat16
    options["PRECISION"] = "ieee" if torch.version.hip else "tf32x3"
    return options


def _ids_per_split(vocab: int, tile: int, programs: int, device: torch.device) -> int:
    """So many ids, whole tiles, that all splits of ``programs`` blocks keep the device busy."""
    splits = max(1, programs_wanted(device) // programs)
    tiles: int = triton.cdiv(triton.cdiv(vocab, tile), splits)
    return tiles * tile


def _statistics(noisy: _Noisy) -> tuple[Tensor, Tensor]:  # [N], [N, 5]
    rows, vocab, device = noisy.rows, noisy.vocab, noisy.logits.device
    log_prob = torch.empty(rows, dtype=torch.float32, device=device)
    statistics = torch.empty(rows, 5, dtype=torch.float64, device=device)
    if rows == 0:
        return log_prob, statistics
    # A program of few warps: several of them keep a multiprocessor busy.
    ids_per_split = _ids_per_split(vocab, _STATISTICS["IDS"], max(1, rows // 8), device)
    splits = triton.cdiv(vocab, ids_per_split)
    parts = torch.empty(rows, splits, _PARTS.value, dtype=torch.float32, device=device)
    peaks = torch.empty(rows, splits, dtype=torch.int32, device=device)
    statistics_kernel[(triton.cdiv(rows, _STATISTICS["ROWS"]) * splits,)](
        *noisy.arguments(), parts, peaks, rows, vocab, splits, ids_per_split, **_STATISTICS
    )
    combine_statistics_kernel[(rows,)](
        *noisy.tempered(),
        parts,
        peaks,
        log_prob,
        statistics,
        vocab,
        splits,
        SPLITS=triton.next_power_of_2(splits),
        num_warps=1,
        **_UNFUSED,
    )
    return log_prob, statistics


def _mixtures(
    noisy: _Noisy,
    embedding: Tensor,  # [V, D]
    statistics: Tensor,  # [N, 5]
) -> tuple[Tensor, Tensor]:  # [N, D], [N, D]
    rows, vocab, width = noisy.rows, noisy.vocab, embedding.shape[1]
    mixed = torch.empty(rows, width, dtype=torch.float32, device=embedding.device)
    deviation = torch.empty_like(mixed)
    if mixed.numel() == 0:
        return mixed, deviation
    options = _options(_MIX, rows, embedding, COLUMNS=width)
    row_blocks = triton.cdiv(rows, options["ROWS"])
    column_blocks = triton.cdiv(width, options["COLUMNS"])
    blocks = row_blocks * column_blocks
    ids_per_split = _ids_per_split(vocab, options["IDS"], blocks, embedding.device)
    splits = triton.cdiv(vocab, ids_per_split)
    sums = mixed.new_empty(splits, rows, width)
    mix_beside_peak_kernel[(blocks * splits,)](
        *noisy.arguments(),
        statistics,
        embedding,
        embedding.stride(0),
        sums,
        rows,
        vocab,
        width,
        row_blocks,
        column_blocks,
        ids_per_split,
        **options,
    )
    combine_mixtures_kernel[(rows, triton.cdiv(width, _COMBINE["COLUMNS"]))](
        sums,
        statistics,
        embedding,
        embedding.stride(0),
        mixed,
        deviation,
        rows,
        width,
        splits,
        **_COMBINE,
    )
    return mixed, deviation


@dataclass
class _Upstream:
    """What the gradient kernels take of the upstream gradients and the forward pass."""

    high: Tensor  # [N, D]
    low: Tensor  # [N, D]
    pulls: Tensor  # [N, 2]
    grad_log_prob: Tensor  # [N]
    statistics: Tensor  # [N, 5]
    order: Tensor  # [N], rows with gradients first
    count: Tensor  # [], how many they are


def _upstream(
    grad_embedding: Tensor,  # [N, D]
    grad_log_prob: Tensor,  # [N]
    deviation: Tensor,  # [N, D]
    statistics: Tensor,  # [N, 5]
    embedding: Tensor,  # [V, D]
) -> _Upstream:
    (rows, width), device = grad_embedding.shape, grad_embedding.device
    split = embedding.dtype == torch.bfloat16
    dtype = torch.bfloat16 if split else torch.float32
    high = torch.empty(rows, width, dtype=dtype, device=device)
    low = torch.empty_like(high) if split else high
    pulls = torch.empty(rows, 2, dtype=torch.float32, device=device)
    idle = torch.empty(rows, dtype=torch.int8, device=device)
    grad_log_prob, statistics = grad_log_prob.contiguous(), statistics.contiguous()
    upstream_kernel[(rows,)](
        grad_embedding.contiguous(),
        grad_log_prob,
        deviation.contiguous(),
        statistics,
        embedding,
        embedding.stride(0),
        pulls,
        idle,
        high,
        low,
        width,
        SPLIT=split,
        **_COMBINE,
    )
    # Stable: a row's place depends on nothing but which rows have gradients.
    order, count = idle.argsort(stable=True), rows - idle.sum()
    return _Upstream(high, low, pulls, grad_log_prob, statistics, order, count)


def _logits_gradient(
    noisy: _Noisy,
    embedding: Tensor,  # [V, D]
    upstream: _Upstream,
    dlogits: Tensor,  # [N, V], written
) -> None:
    rows, vocab, width = noisy.rows, noisy.vocab, embedding.shape[1]
    options = _options(_LOGITS_GRADIENT, rows, embedding)
    row_blocks = triton.cdiv(rows, options["ROWS"])
    logits_gradient_kernel[(row_blocks * triton.cdiv(vocab, options["IDS"]),)](
        *noisy.arguments(),
        upstream.statistics,
        embedding,
        embedding.stride(0),
        upstream.high,
        upstream.low,
        upstream.pulls,
        upstream.grad_log_prob,
        upstream.order,
        upstream.count,
        dlogits,
        rows,
        vocab,
        width,
        row_blocks,
        **options,
    )


def _table_gradient(
    noisy: _Noisy,
    upstream: _Upstream,
    dembedding: Tensor,  # [V, D], written
) -> None:
    vocab, width = dembedding.shape
    options = _options(_TABLE_GRADIENT, noisy.rows, dembedding, COLUMNS=width)
    column_blocks = triton.cdiv(width, options["COLUMNS"])
    dense_table_gradient_kernel[(column_blocks * triton.cdiv(vocab, options["IDS"]),)](
        *noisy.arguments(),
        upstream.statistics,
        upstream.high,
        upstream.low,
        upstream.order,
        upstream.count,
        dembedding,
        vocab,
        width,
        column_blocks,
        **options,
    )
