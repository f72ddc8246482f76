"""Triton kernels that add up rows of a table by the weights of a chunk of scores.

The weights are made of the scores where a product takes them, relative to the largest score so far.
The peak's row is left out, and added at the end: so the deviation ``e - E_peak`` is a sum of small
terms, no difference of close ones.
"""

import triton
import triton.language as tl

from lepo_kernels.backends.triton.gumbel_softmax.statistics_kernels import KNOWN, STATISTICS
from lepo_kernels.backends.triton.gumbel_softmax.tile_kernels import (
    finite,
    halves,
    inverse_tau,
    table_tile,
)


@triton.jit(do_not_specialize=["total_rows", "row_blocks"])
def mix_beside_peak_kernel(
    scores: tl.tensor,  # [N, chunk]
    chunk: tl.tensor,
    tau: tl.tensor,  # [N] or [1]
    stride_tau: tl.tensor,
    known: tl.tensor,  # [N, 10]
    carry: tl.tensor,  # [N, 2]
    old_peaks: tl.tensor,  # [N] int32
    embedding: tl.tensor,  # [V, D]
    embedding_row: tl.tensor,
    sums: tl.tensor,  # [splits, N, D], read unless this is the first chunk, and written
    total_rows: tl.tensor,
    first: tl.tensor,
    past: tl.tensor,
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
    """A block of rows and columns per program and part of the chunk.

    Programs that read the same part of the table are neighbours.
    """
    program = tl.program_id(0)
    block, rest = program % row_blocks, program // row_blocks
    columns = (rest % column_blocks) * COLUMNS + tl.arange(0, COLUMNS)
    split = rest // column_blocks
    wanted = block * ROWS + tl.arange(0, ROWS)
    # A row that is not there is the last one, once more.
    rows = tl.minimum(wanted, total_rows - 1).to(tl.int64)
    inside = (wanted < total_rows)[:, None] & (columns < width)[None, :]
    out = sums + (split.to(tl.int64) * total_rows + wanted[:, None]) * width + columns[None, :]
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    if first > 0:
        total = tl.load(out, mask=inside, other=0.0) * tl.load(carry + rows * 2)[:, None]
        weight = tl.where(split == 0, tl.load(carry + rows * 2 + 1), 0.0)
        at = tl.load(old_peaks + rows).to(tl.int64) * embedding_row
        old = tl.load(
            embedding + at[:, None] + columns[None, :],
            mask=(weight > 0)[:, None] & (columns < width)[None, :],
            other=0.0,
        )
        total += weight[:, None] * old.to(tl.float32)
    # A sum of its own: Triton would give chained products different layouts, and convert the sums.
    small = tl.zeros((ROWS, COLUMNS), tl.float32)
    inverse, hard = inverse_tau(tau, stride_tau, rows)
    q_max = finite(tl.load(known + rows * KNOWN).to(tl.float32))
    peak = tl.load(known + rows * KNOWN + 9).to(tl.int32)
    # So that its weights are 0 beside the peak.
    q_max = tl.where(hard, float("inf"), q_max)
    start = first + split * ids_per_split
    end = tl.minimum(start + ids_per_split, past)
    for tile in range(start, end, IDS):
        ids = tile + tl.arange(0, IDS)
        at = scores + rows[:, None] * chunk + (ids - first)[None, :]
        q = tl.load(at, mask=(ids < end)[None, :], other=-float("inf"))
        z = tl.exp((q - q_max[:, None]) * inverse[:, None])
        z = tl.where(ids[None, :] == peak[:, None], 0.0, z)
        table = table_tile(embedding, embedding_row, ids, end, columns, width)
        if SPLIT:
            high, low = halves(z)
            small = tl.dot(low, table, small)
            total = tl.dot(high, table, total)
        else:
            total = tl.dot(z, table.to(tl.float32), total, input_precision=PRECISION)
    tl.store(out, total + small, mask=inside)


@triton.jit(do_not_specialize=["total_rows", "splits"])
def combine_mixtures_kernel(
    sums: tl.tensor,  # [splits, N, D]
    statistics: tl.tensor,  # [N, 8]
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
    scale = tl.load(statistics + row * STATISTICS + 1)
    at = tl.load(statistics + row * STATISTICS + 4).to(tl.int64) * embedding_row
    peak = tl.load(embedding + at + columns, mask=inside, other=0.0).to(tl.float32)
    total *= scale.to(tl.float32)
    out = row * width + columns
    # Both from the same sum: the larger of them may be much larger than the other.
    tl.store(mixed + out, total + scale.to(tl.float32) * peak, mask=inside)
    tl.store(deviation + out, total - (1.0 - scale).to(tl.float32) * peak, mask=inside)
