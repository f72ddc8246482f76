"""Triton kernels of the gradients of the dense Gumbel-softmax mixture.

One kernel draws the noise of a chunk of the vocabulary. It writes the gradient of the logits and,
for the gradient of the table, the weights; a product takes them from there. Rows are worked off in
an order that has those with upstream gradients first, and the others are left out; a row's place
in that order is its row in the chunk's buffer.
"""

import triton
import triton.language as tl

from lepo_kernels.backends.triton.gumbel_softmax.statistics_kernels import STATISTICS
from lepo_kernels.backends.triton.gumbel_softmax.tile_kernels import (
    exponential_tile,
    halves,
    inverse_tau,
    logits_tile,
    table_tile,
)
from lepo_kernels.backends.triton.latent.row_scan_kernels import inverse_of

# Of a row: mixed . de, deviation . de, the gradients of log-probability and log-density, and
# 1 / temperature: kernels that hold tiles of logits have no registers for a division.
UPSTREAM = tl.constexpr(5)


@triton.jit
def upstream_kernel(
    grad: tl.tensor,  # [N, D]
    grad_log_prob: tl.tensor,  # [N]
    grad_log_density: tl.tensor,  # [N]
    tau: tl.tensor,  # [N] or [1]
    stride_tau: tl.tensor,
    temperature: tl.tensor,  # [N] or [1]
    stride_temperature: tl.tensor,
    mixed: tl.tensor,  # [N, D]
    deviation: tl.tensor,  # [N, D]
    statistics: tl.tensor,  # [N, 8]
    upstream: tl.tensor,  # [N, 5], written
    idle: tl.tensor,  # [N] int8, written: 1 where nothing is upstream
    high: tl.tensor,  # [N, D], written: the gradient as the products take it
    low: tl.tensor,  # [N, D], written with SPLIT: what it lacks
    width: tl.tensor,
    SPLIT: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    """One row per program: what of its upstream gradients is the same for all ids."""
    row = tl.program_id(0).to(tl.int64)
    mean_pull = tl.zeros((COLUMNS,), tl.float32)
    peak_pull = tl.zeros((COLUMNS,), tl.float32)
    used = tl.zeros((COLUMNS,), tl.int32)
    for first in range(0, width, COLUMNS):
        columns = first + tl.arange(0, COLUMNS)
        inside = columns < width
        at = row * width + columns
        de = tl.load(grad + at, mask=inside, other=0.0).to(tl.float32)
        mean_pull += tl.load(mixed + at, mask=inside, other=0.0).to(tl.float32) * de
        peak_pull += tl.load(deviation + at, mask=inside, other=0.0).to(tl.float32) * de
        used |= (de != 0).to(tl.int32)
        if SPLIT:
            de_high, de_low = halves(de)
            tl.store(high + at, de_high, mask=inside)
            tl.store(low + at, de_low, mask=inside)
        else:
            tl.store(high + at, de, mask=inside)
    _, hard = inverse_tau(tau, stride_tau, row)
    dlogp = tl.load(grad_log_prob + row).to(tl.float32)
    dlogq = tl.load(grad_log_density + row).to(tl.float32)
    # A single entry has no density, and the limit of tau = 0 has no gradient.
    dlogq = tl.where(hard | (tl.load(statistics + row * STATISTICS + 5) <= 1), 0.0, dlogq)
    out = upstream + row * UPSTREAM
    tl.store(out, tl.sum(mean_pull, axis=0))
    tl.store(out + 1, tl.sum(peak_pull, axis=0))
    tl.store(out + 2, dlogp)
    tl.store(out + 3, dlogq)
    tl.store(out + 4, inverse_of(temperature, stride_temperature, row))
    active = (tl.max(used, axis=0) > 0) | (dlogp != 0) | (dlogq != 0)
    tl.store(idle + row, 1 - active.to(tl.int8))


@triton.jit
def weights_of(
    q: tl.tensor,  # [ROWS, IDS]
    ids: tl.tensor,  # [IDS]
    rows: tl.tensor,  # [ROWS] int64
    tau: tl.tensor,  # [N] or [1]
    stride_tau: tl.tensor,
    statistics: tl.tensor,  # [N, 8]
) -> tl.tensor:  # [ROWS, IDS]
    """``z`` of scores; a peak of -1 is not among them."""
    inverse, hard = inverse_tau(tau, stride_tau, rows)
    known = statistics + rows * STATISTICS
    q_max = tl.load(known).to(tl.float32)
    scale = tl.load(known + 1).to(tl.float32)
    at_peak = ids[None, :] == tl.load(known + 4).to(tl.int32)[:, None]
    # Scores that are formed anew may come out a little larger than the largest was.
    below = tl.minimum(q - q_max[:, None], 0.0)
    soft = tl.exp(below * inverse[:, None]) * scale[:, None]
    return tl.where(at_peak, scale[:, None], tl.where(hard[:, None], 0.0, soft))


@triton.jit
def gradient_beside_weights(
    a: tl.tensor,  # [ROWS, IDS]
    x: tl.tensor,  # [ROWS, IDS]
    rows: tl.tensor,  # [ROWS] int64
    statistics: tl.tensor,  # [N, 8]
    upstream: tl.tensor,  # [N, 5]
) -> tl.tensor:  # [ROWS, IDS]
    """What the gradient of the tempered logits holds that no weight is a factor of."""
    known, above = statistics + rows * STATISTICS, upstream + rows * UPSTREAM
    a_max = tl.load(known + 2).to(tl.float32)
    # Logits that are formed anew may come out a little larger than the largest was.
    pi = tl.exp(tl.minimum(a - a_max[:, None], 0.0)) * tl.load(known + 3).to(tl.float32)[:, None]
    per_x = (tl.load(known + 5) * tl.load(known + 6)).to(tl.float32)
    share = tl.where(a == -float("inf"), 0.0, 1.0 - per_x[:, None] * x)
    return tl.load(above + 3)[:, None] * share - tl.load(above + 2)[:, None] * pi


@triton.jit
def gradient_per_weight(
    pull: tl.tensor,  # [ROWS, IDS], E_j . de
    ids: tl.tensor,  # [IDS]
    rows: tl.tensor,  # [ROWS] int64
    tau: tl.tensor,  # [N] or [1]
    stride_tau: tl.tensor,
    statistics: tl.tensor,  # [N, 8]
    upstream: tl.tensor,  # [N, 5]
) -> tl.tensor:  # [ROWS, IDS]
    """The factor of the weights in it."""
    inverse, hard = inverse_tau(tau, stride_tau, rows)
    above = upstream + rows * UPSTREAM
    at_peak = ids[None, :] == tl.load(statistics + rows * STATISTICS + 4).to(tl.int32)[:, None]
    pull = tl.where(at_peak, -tl.load(above + 1)[:, None], pull - tl.load(above)[:, None])
    # At tau = 0 the mixture is piecewise constant in the logits.
    return pull * tl.where(hard, 0.0, inverse)[:, None] + tl.load(above + 2)[:, None]


@triton.jit
def add_pull(
    pull: tl.tensor,  # [ROWS, IDS]
    small: tl.tensor,  # [ROWS, IDS], by what the gradient lacks
    table: tl.tensor,  # [IDS, COLUMNS]
    high: tl.tensor,  # [N, D]
    low: tl.tensor,  # [N, D]
    at: tl.tensor,  # [ROWS, COLUMNS]
    mask: tl.tensor,  # [ROWS, COLUMNS]
    SPLIT: tl.constexpr,
    PRECISION: tl.constexpr,
) -> tl.tensor:  # [ROWS, IDS], [ROWS, IDS]
    """``pull + de @ table^T`` of a few columns, in two sums, as the mixture has them."""
    de = tl.load(high + at, mask=mask, other=0.0)
    if SPLIT:
        small = tl.dot(tl.load(low + at, mask=mask, other=0.0), tl.trans(table), small)
        pull = tl.dot(de, tl.trans(table), pull)
    else:
        pull = tl.dot(de, tl.trans(table.to(tl.float32)), pull, input_precision=PRECISION)
    return pull, small


@triton.jit(do_not_specialize=["total_rows", "row_blocks"])
def logits_gradient_kernel(
    logits: tl.tensor,  # [N, V]
    row_stride: tl.tensor,
    tau: tl.tensor,  # [N] or [1]
    stride_tau: tl.tensor,
    seed: tl.tensor,  # []
    row_keys: tl.tensor,  # [N]
    step: tl.tensor,  # [N] or [1]
    stride_step: tl.tensor,
    first_id: tl.tensor,
    statistics: tl.tensor,  # [N, 8]
    embedding: tl.tensor,  # [V, D]
    embedding_row: tl.tensor,
    high: tl.tensor,  # [N, D]
    low: tl.tensor,  # [N, D]
    upstream: tl.tensor,  # [N, 5]
    order: tl.tensor,  # [N], rows with gradients first
    count: tl.tensor,  # [], how many they are
    dlogits: tl.tensor,  # [N, V], written
    weights: tl.tensor,  # [N, chunk], written with WEIGHTS
    total_rows: tl.tensor,
    vocab: tl.tensor,
    chunk: tl.tensor,
    first: tl.tensor,
    past: tl.tensor,
    width: tl.tensor,
    row_blocks: tl.tensor,
    ROWS: tl.constexpr,
    IDS: tl.constexpr,
    COLUMNS: tl.constexpr,
    WEIGHTS: tl.constexpr,
    SPLIT: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    """A block of rows and ids per program; neighbours read the same rows of the table."""
    program = tl.program_id(0)
    place = (program % row_blocks) * ROWS + tl.arange(0, ROWS)
    start = first + (program // row_blocks) * IDS
    ids = start + tl.arange(0, IDS)
    rows = tl.load(order + tl.minimum(place, total_rows - 1))
    active = place < tl.load(count)
    stored = (place < total_rows)[:, None] & (ids < past)[None, :]
    da = tl.zeros((ROWS, IDS), tl.float32)
    if tl.sum(active.to(tl.int32)) > 0:
        pull = tl.zeros((ROWS, IDS), tl.float32)
        small = tl.zeros((ROWS, IDS), tl.float32)
        for begin in range(0, width, COLUMNS):
            columns = begin + tl.arange(0, COLUMNS)
            table = table_tile(embedding, embedding_row, ids, past, columns, width)
            at = rows[:, None] * width + columns[None, :]
            mask = active[:, None] & (columns < width)[None, :]
            pull, small = add_pull(pull, small, table, high, low, at, mask, SPLIT, PRECISION)
        pull += small
        inv_temperature = tl.load(upstream + rows * UPSTREAM + 4)
        a = logits_tile(logits, row_stride, rows, ids, past) * inv_temperature[:, None]
        x = exponential_tile(seed, row_keys, step, stride_step, rows, first_id + start, ROWS, IDS)
        q = a - tl.log(x)
        da = gradient_beside_weights(a, x, rows, statistics, upstream)
        z = weights_of(q, ids, rows, tau, stride_tau, statistics)
        if WEIGHTS:
            at = weights + place.to(tl.int64)[:, None] * chunk + (ids - first)[None, :]
            tl.store(at, z, mask=stored)
        da += z * gradient_per_weight(pull, ids, rows, tau, stride_tau, statistics, upstream)
        da = tl.where(active[:, None], da * inv_temperature[:, None], 0.0)
    out = dlogits + rows[:, None] * vocab + ids.to(tl.int64)[None, :]
    tl.store(out, da.to(dlogits.dtype.element_ty), mask=stored)


@triton.jit(do_not_specialize=["total_rows", "tiles"])
def weights_kernel(
    logits: tl.tensor,  # [N, V]
    row_stride: tl.tensor,
    tau: tl.tensor,  # [N] or [1]
    stride_tau: tl.tensor,
    temperature: tl.tensor,  # [N] or [1]
    stride_temperature: tl.tensor,
    seed: tl.tensor,  # []
    row_keys: tl.tensor,  # [N]
    step: tl.tensor,  # [N] or [1]
    stride_step: tl.tensor,
    first_id: tl.tensor,
    statistics: tl.tensor,  # [N, 8]
    order: tl.tensor,  # [N], rows with gradients first
    count: tl.tensor,  # [], how many they are
    weights: tl.tensor,  # [N, chunk], written
    total_rows: tl.tensor,
    chunk: tl.tensor,
    first: tl.tensor,
    past: tl.tensor,
    tiles: tl.tensor,
    ROWS: tl.constexpr,
    IDS: tl.constexpr,
) -> None:
    """What a table whose logits are frozen takes of them: rows and a tile of ids per program."""
    program = tl.program_id(0)
    place = (program // tiles) * ROWS + tl.arange(0, ROWS)
    start = first + (program % tiles) * IDS
    ids = start + tl.arange(0, IDS)
    active = place < tl.load(count)
    if tl.sum(active.to(tl.int32)) > 0:
        rows = tl.load(order + tl.minimum(place, total_rows - 1))
        inv_temperature = inverse_of(temperature, stride_temperature, rows)
        a = logits_tile(logits, row_stride, rows, ids, past) * inv_temperature[:, None]
        x = exponential_tile(seed, row_keys, step, stride_step, rows, first_id + start, ROWS, IDS)
        z = weights_of(a - tl.log(x), ids, rows, tau, stride_tau, statistics)
        at = weights + place.to(tl.int64)[:, None] * chunk + (ids - first)[None, :]
        tl.store(at, z, mask=active[:, None] & (ids < past)[None, :])


@triton.jit
def add_weighted(
    total: tl.tensor,  # [IDS, COLUMNS]
    weights: tl.tensor,  # [N, chunk]
    chunk: tl.tensor,
    high: tl.tensor,  # [N, D]
    low: tl.tensor,  # [N, D]
    order: tl.tensor,  # [N]
    active_rows: tl.tensor,
    start: tl.tensor,
    ids: tl.tensor,  # [IDS], of the chunk
    end: tl.tensor,
    columns: tl.tensor,  # [COLUMNS]
    width: tl.tensor,
    ROWS: tl.constexpr,
    SPLIT: tl.constexpr,
    PRECISION: tl.constexpr,
) -> tl.tensor:  # [IDS, COLUMNS]
    """``total + z^T de`` of a block of rows."""
    place = start + tl.arange(0, ROWS)
    active = place < active_rows
    rows = tl.load(order + tl.minimum(place, active_rows - 1))
    at = weights + place.to(tl.int64)[:, None] * chunk + ids[None, :]
    z = tl.trans(tl.load(at, mask=active[:, None] & (ids < end)[None, :], other=0.0))
    at = rows[:, None] * width + columns[None, :]
    mask = active[:, None] & (columns < width)[None, :]
    de = tl.load(high + at, mask=mask, other=0.0)
    if SPLIT:
        z_high, z_low = halves(z)
        total = tl.dot(z_high, tl.load(low + at, mask=mask, other=0.0), total)
        total = tl.dot(z_low, de, total)
        total = tl.dot(z_high, de, total)
    else:
        total = tl.dot(z, de, total, input_precision=PRECISION)
    return total


@triton.jit
def dense_table_gradient_kernel(
    weights: tl.tensor,  # [N, chunk]
    chunk: tl.tensor,
    high: tl.tensor,  # [N, D]
    low: tl.tensor,  # [N, D]
    order: tl.tensor,  # [N], rows with gradients first
    count: tl.tensor,  # [], how many they are
    dembedding: tl.tensor,  # [V, D], written
    first: tl.tensor,
    past: tl.tensor,
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
    ids = (program // column_blocks) * IDS + tl.arange(0, IDS)
    total = tl.zeros((IDS, COLUMNS), tl.float32)
    active_rows = tl.load(count)
    for start in range(0, active_rows, ROWS):
        total = add_weighted(
            total, weights, chunk, high, low, order, active_rows, start,
            ids, past - first, columns, width, ROWS, SPLIT, PRECISION,
        )  # fmt: skip
    tl.store(
        dembedding + (first + ids).to(tl.int64)[:, None] * width + columns[None, :],
        total.to(dembedding.dtype.element_ty),
        mask=(ids < past - first)[:, None] & (columns < width)[None, :],
    )
