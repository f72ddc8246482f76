"""Triton kernels of the gradients of the dense Gumbel-softmax mixture from hidden states.

One kernel forms the logits of a chunk anew, draws their noise, and writes the gradient of the
logits and the weights; products take them from there. As in gradient_kernels.py, a row's
place among those with upstream gradients is its row in the chunk's buffers.
"""

import triton
import triton.language as tl

from lepo_kernels.backends.triton.gumbel_softmax.gradient_kernels import (
    UPSTREAM,
    add_pull,
    add_weighted,
    gradient_beside_weights,
    gradient_per_weight,
    weights_of,
)
from lepo_kernels.backends.triton.gumbel_softmax.tile_kernels import (
    add_logits,
    capped,
    exponential_tile,
    table_tile,
)


@triton.jit(do_not_specialize=["total_rows", "row_blocks"])
def linear_logits_gradient_kernel(
    hidden: tl.tensor,  # [N, D]
    hidden_row: tl.tensor,
    lm_head: tl.tensor,  # [V, D]
    lm_head_row: tl.tensor,
    head_width: tl.tensor,
    bias: tl.tensor,  # [V] or None
    softcap: tl.tensor,  # a number or None
    tau: tl.tensor,  # [N] or [1]
    stride_tau: tl.tensor,
    seed: tl.tensor,  # []
    row_keys: tl.tensor,  # [N]
    step: tl.tensor,  # [N] or [1]
    stride_step: tl.tensor,
    first_id: tl.tensor,
    statistics: tl.tensor,  # [N, 8]
    embedding: tl.tensor,  # [V, E]
    embedding_row: tl.tensor,
    high: tl.tensor,  # [N, E]
    low: tl.tensor,  # [N, E]
    upstream: tl.tensor,  # [N, 5]
    order: tl.tensor,  # [N], rows with gradients first
    count: tl.tensor,  # [], how many they are
    dlogits: tl.tensor,  # [N, chunk], written
    weights: tl.tensor,  # [N, chunk], written
    total_rows: tl.tensor,
    chunk: tl.tensor,
    first: tl.tensor,
    past: tl.tensor,
    width: tl.tensor,
    row_blocks: tl.tensor,
    ROWS: tl.constexpr,
    IDS: tl.constexpr,
    COLUMNS: tl.constexpr,
    TIED: tl.constexpr,
    SPLIT: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    """A block of rows and ids per program; neighbours read the same rows of head and table.

    TIED: the head is the table, and read once.
    """
    program = tl.program_id(0)
    place = (program % row_blocks) * ROWS + tl.arange(0, ROWS)
    start = first + (program // row_blocks) * IDS
    ids = start + tl.arange(0, IDS)
    rows = tl.load(order + tl.minimum(place, total_rows - 1))
    active = place < tl.load(count)
    if tl.sum(active.to(tl.int32)) > 0:
        logits = tl.zeros((ROWS, IDS), tl.float32)
        pull = tl.zeros((ROWS, IDS), tl.float32)
        small = tl.zeros((ROWS, IDS), tl.float32)
        for begin in range(0, head_width, COLUMNS):
            columns = begin + tl.arange(0, COLUMNS)
            head = table_tile(lm_head, lm_head_row, ids, past, columns, head_width)
            logits = add_logits(
                logits, hidden, hidden_row, head, rows, columns, head_width, PRECISION
            )
            if TIED:
                at = rows[:, None] * head_width + columns[None, :]
                mask = active[:, None] & (columns < head_width)[None, :]
                pull, small = add_pull(pull, small, head, high, low, at, mask, SPLIT, PRECISION)
        logits = capped(logits, bias, softcap, ids, past)
        if not TIED:
            for begin in range(0, width, COLUMNS):
                columns = begin + tl.arange(0, COLUMNS)
                table = table_tile(embedding, embedding_row, ids, past, columns, width)
                at = rows[:, None] * width + columns[None, :]
                mask = active[:, None] & (columns < width)[None, :]
                pull, small = add_pull(pull, small, table, high, low, at, mask, SPLIT, PRECISION)
        pull += small
        inv_temperature = tl.load(upstream + rows * UPSTREAM + 4)
        a = logits * inv_temperature[:, None]
        x = exponential_tile(seed, row_keys, step, stride_step, rows, first_id + start, ROWS, IDS)
        q = a - tl.log(x)
        da = gradient_beside_weights(a, x, rows, statistics, upstream)
        per_weight = gradient_per_weight(pull, ids, rows, tau, stride_tau, statistics, upstream)
        slope = inv_temperature[:, None]
        if softcap is not None:
            # Of the logits again, so that no tile of them is kept beside the tempered ones.
            share = a * (1.0 / (inv_temperature * softcap))[:, None]
            slope *= 1.0 - share * share
        z = weights_of(q, ids, rows, tau, stride_tau, statistics)
        da = da * slope + z * (per_weight * slope)
        at = place.to(tl.int64)[:, None] * chunk + (ids - first)[None, :]
        mask = active[:, None] & (ids < past)[None, :]
        tl.store(dlogits + at, da.to(dlogits.dtype.element_ty), mask=mask)
        tl.store(weights + at, z, mask=mask)


@triton.jit(do_not_specialize=["total_rows", "row_blocks"])
def hidden_gradient_kernel(
    dlogits: tl.tensor,  # [N, chunk]
    chunk: tl.tensor,
    lm_head: tl.tensor,  # [V, D]
    lm_head_row: tl.tensor,
    count: tl.tensor,  # [], how many rows have gradients
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
    PRECISION: tl.constexpr,
) -> None:
    """A block of rows and columns per program and part of the chunk."""
    program = tl.program_id(0)
    block, rest = program % row_blocks, program // row_blocks
    columns = (rest % column_blocks) * COLUMNS + tl.arange(0, COLUMNS)
    split = rest // column_blocks
    place = block * ROWS + tl.arange(0, ROWS)
    active = place < tl.load(count)
    if tl.sum(active.to(tl.int32)) > 0:
        inside = active[:, None] & (columns < width)[None, :]
        out = sums + (split.to(tl.int64) * total_rows + place[:, None]) * width + columns[None, :]
        total = tl.zeros((ROWS, COLUMNS), tl.float32)
        if first > 0:
            total = tl.load(out, mask=inside, other=0.0)
        start = first + split * ids_per_split
        end = tl.minimum(start + ids_per_split, past)
        for tile in range(start, end, IDS):
            ids = tile + tl.arange(0, IDS)
            at = dlogits + place.to(tl.int64)[:, None] * chunk + (ids - first)[None, :]
            da = tl.load(at, mask=active[:, None] & (ids < end)[None, :], other=0.0)
            head = table_tile(lm_head, lm_head_row, ids, end, columns, width)
            total = tl.dot(da, head, total, input_precision=PRECISION)
        tl.store(out, total, mask=inside)


@triton.jit(do_not_specialize=["total_rows", "splits"])
def combine_hidden_gradients_kernel(
    sums: tl.tensor,  # [splits, N, D]
    order: tl.tensor,  # [N], rows with gradients first
    count: tl.tensor,  # [], how many they are
    dhidden: tl.tensor,  # [N, D], written
    total_rows: tl.tensor,
    width: tl.tensor,
    splits: tl.tensor,
    COLUMNS: tl.constexpr,
) -> None:
    """One row per program, and a block of columns: the parts in their order."""
    place = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < width
    # Nothing was added up for a row without gradients.
    summed = columns < tl.where(place < tl.load(count), width, 0)
    total = tl.zeros((COLUMNS,), tl.float32)
    for split in range(splits):
        at = (place + split * total_rows) * width + columns
        total += tl.load(sums + at, mask=summed, other=0.0)
    out = dhidden + tl.load(order + place) * width + columns
    tl.store(out, total.to(dhidden.dtype.element_ty), mask=inside)


@triton.jit
def add_states(
    total: tl.tensor,  # [IDS, COLUMNS]
    dlogits: tl.tensor,  # [N, chunk]
    chunk: tl.tensor,
    hidden: tl.tensor,  # [N, D]
    hidden_row: tl.tensor,
    order: tl.tensor,  # [N]
    active_rows: tl.tensor,
    start: tl.tensor,
    ids: tl.tensor,  # [IDS], of the chunk
    end: tl.tensor,
    columns: tl.tensor,  # [COLUMNS]
    width: tl.tensor,
    ROWS: tl.constexpr,
    PRECISION: tl.constexpr,
) -> tl.tensor:  # [IDS, COLUMNS]
    """``total + dlogits^T hidden`` of a block of rows."""
    place = start + tl.arange(0, ROWS)
    active = place < active_rows
    rows = tl.load(order + tl.minimum(place, active_rows - 1))
    at = dlogits + place.to(tl.int64)[:, None] * chunk + ids[None, :]
    da = tl.load(at, mask=active[:, None] & (ids < end)[None, :], other=0.0)
    at = hidden + rows[:, None] * hidden_row + columns[None, :]
    states = tl.load(at, mask=active[:, None] & (columns < width)[None, :], other=0.0)
    return tl.dot(tl.trans(da), states, total, input_precision=PRECISION)


@triton.jit
def head_gradient_kernel(
    dlogits: tl.tensor,  # [N, chunk]
    chunk: tl.tensor,
    hidden: tl.tensor,  # [N, D]
    hidden_row: tl.tensor,
    order: tl.tensor,  # [N], rows with gradients first
    count: tl.tensor,  # [], how many they are
    dlm_head: tl.tensor,  # [V, D], written
    first: tl.tensor,
    past: tl.tensor,
    width: tl.tensor,
    column_blocks: tl.tensor,
    ROWS: tl.constexpr,
    IDS: tl.constexpr,
    COLUMNS: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    """A block of ids and columns per program, which adds up all rows; neighbours share ids."""
    program = tl.program_id(0)
    columns = (program % column_blocks) * COLUMNS + tl.arange(0, COLUMNS)
    ids = (program // column_blocks) * IDS + tl.arange(0, IDS)
    total = tl.zeros((IDS, COLUMNS), tl.float32)
    active_rows = tl.load(count)
    for start in range(0, active_rows, ROWS):
        total = add_states(
            total, dlogits, chunk, hidden, hidden_row, order, active_rows, start,
            ids, past - first, columns, width, ROWS, PRECISION,
        )  # fmt: skip
    tl.store(
        dlm_head + (first + ids).to(tl.int64)[:, None] * width + columns[None, :],
        total.to(dlm_head.dtype.element_ty),
        mask=(ids < past - first)[:, None] & (columns < width)[None, :],
    )


@triton.jit
def tied_gradient_kernel(
    dlogits: tl.tensor,  # [N, chunk]
    weights: tl.tensor,  # [N, chunk]
    chunk: tl.tensor,
    hidden: tl.tensor,  # [N, D]
    hidden_row: tl.tensor,
    high: tl.tensor,  # [N, D]
    low: tl.tensor,  # [N, D]
    order: tl.tensor,  # [N], rows with gradients first
    count: tl.tensor,  # [], how many they are
    dlm_head: tl.tensor,  # [V, D], written
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
    """As above, for a head that is the table, too: both gradients in one sum, written once."""
    program = tl.program_id(0)
    columns = (program % column_blocks) * COLUMNS + tl.arange(0, COLUMNS)
    ids = (program // column_blocks) * IDS + tl.arange(0, IDS)
    total = tl.zeros((IDS, COLUMNS), tl.float32)
    active_rows = tl.load(count)
    for start in range(0, active_rows, ROWS):
        total = add_states(
            total, dlogits, chunk, hidden, hidden_row, order, active_rows, start,
            ids, past - first, columns, width, ROWS, PRECISION,
        )  # fmt: skip
    # Not in the same loop: of that, triton 3.7 makes code for Blackwell that only traps.
    for start in range(0, active_rows, ROWS):
        total = add_weighted(
            total, weights, chunk, high, low, order, active_rows, start,
            ids, past - first, columns, width, ROWS, SPLIT, PRECISION,
        )  # fmt: skip
    tl.store(
        dlm_head + (first + ids).to(tl.int64)[:, None] * width + columns[None, :],
        total.to(dlm_head.dtype.element_ty),
        mask=(ids < past - first)[:, None] & (columns < width)[None, :],
    )


@triton.jit
def bias_gradient_kernel(
    dlogits: tl.tensor,  # [N, chunk]
    chunk: tl.tensor,
    count: tl.tensor,  # [], how many rows have gradients
    dbias: tl.tensor,  # [V], written
    first: tl.tensor,
    past: tl.tensor,
    ROWS: tl.constexpr,
    IDS: tl.constexpr,
) -> None:
    """A block of ids per program, which adds up all rows."""
    ids = tl.program_id(0) * IDS + tl.arange(0, IDS)
    inside = ids < past - first
    total = tl.zeros((IDS,), tl.float32)
    active_rows = tl.load(count)
    for start in range(0, active_rows, ROWS):
        place = start + tl.arange(0, ROWS)
        at = dlogits + place.to(tl.int64)[:, None] * chunk + ids[None, :]
        mask = (place < active_rows)[:, None] & inside[None, :]
        total += tl.sum(tl.load(at, mask=mask, other=0.0).to(tl.float32), axis=0)
    tl.store(dbias + first + ids, total.to(dbias.dtype.element_ty), mask=inside)
