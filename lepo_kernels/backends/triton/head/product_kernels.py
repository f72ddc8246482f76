"""Triton kernels of products with the gradient of the logits.

Contract: that of products.py, which launches them.
"""

import triton
import triton.language as tl

from lepo_kernels.backends.triton.head.tiling_kernels import grouped, pieces_of


@triton.jit
def _add_tile(
    total: tl.tensor,  # [TALL, WIDE]
    sums: tl.tensor,  # [..., width] float32, read unless FIRST, written unless LAST
    sums_rows: tl.tensor,  # [TALL] int64
    out: tl.tensor,  # [..., width], written with LAST
    out_rows: tl.tensor,  # [TALL] int64
    exists: tl.tensor,  # [TALL] bool
    first_column: tl.tensor,
    width: tl.tensor,
    FIRST: tl.constexpr,
    LAST: tl.constexpr,
    TALL: tl.constexpr,
    WIDE: tl.constexpr,
    PIECES: tl.constexpr,
) -> None:
    """Add a tile to sums, piece by piece: for all at once there are not enough registers."""
    pieces = pieces_of(total, TALL, WIDE, PIECES)
    for piece in tl.static_range(PIECES):
        part = pieces[piece]
        columns = first_column + piece * (WIDE // PIECES) + tl.arange(0, WIDE // PIECES)
        stored = exists[:, None] & (columns < width)[None, :]
        at = sums + sums_rows[:, None] * width + columns[None, :]
        if not FIRST:
            part += tl.load(at, mask=stored, other=0.0)
        if LAST:
            at_out = out + out_rows[:, None] * width + columns[None, :]
            tl.store(at_out, part.to(out.dtype.element_ty), mask=stored)
        else:
            tl.store(at, part, mask=stored)


@triton.jit(do_not_specialize=["first_row", "total_rows"])
def rows_product_kernel(
    da: tl.tensor,  # [R, C]
    da_row: tl.tensor,
    lm_head: tl.tensor,  # [C, D]
    lm_head_row: tl.tensor,
    sums: tl.tensor,  # [R, D] float32, read unless FIRST, written unless LAST
    dhidden: tl.tensor,  # [N, D], written with LAST
    order: tl.tensor,  # [R], which of the N rows these are
    count: tl.tensor,  # [], how many rows are used, those before these included
    first_row: tl.tensor,  # of the R
    total_rows: tl.tensor,
    ids: tl.tensor,
    width: tl.tensor,
    FIRST: tl.constexpr,
    LAST: tl.constexpr,
    EVEN: tl.constexpr,
    PRECISION: tl.constexpr,
    TALL: tl.constexpr,
    WIDE: tl.constexpr,
    INNER: tl.constexpr,
    PIECES: tl.constexpr,
) -> None:
    """``da @ lm_head``, a block of rows and columns per program."""
    active_rows = tl.minimum(tl.load(count) - first_row, total_rows)
    row_blocks = tl.cdiv(tl.maximum(active_rows, 0), TALL).to(tl.int32)
    column_blocks = tl.cdiv(width, WIDE)
    program = tl.program_id(0)
    if program >= row_blocks * column_blocks:
        return
    row_block, column_block = grouped(program, row_blocks, column_blocks)
    wanted = row_block * TALL + tl.arange(0, TALL)
    rows = tl.minimum(wanted, active_rows - 1).to(tl.int64)
    columns = column_block * WIDE + tl.arange(0, WIDE)
    total = tl.zeros((TALL, WIDE), tl.float32)
    inner = tl.arange(0, INNER)
    left_at = da + rows[:, None] * da_row + inner[None, :]
    right_at = lm_head + inner.to(tl.int64)[:, None] * lm_head_row + columns[None, :]
    # A stride of 1 is a number, not a tensor.
    step = tl.cast(lm_head_row, tl.int64) * INNER
    for start in range(0, ids, INNER):
        if EVEN:
            left, right = tl.load(left_at), tl.load(right_at)
        else:
            inside = inner < ids - start
            left = tl.load(left_at, mask=inside[None, :], other=0.0)
            right = tl.load(right_at, mask=inside[:, None] & (columns < width)[None, :], other=0.0)
        total = tl.dot(left, right, total, input_precision=PRECISION)
        left_at += INNER
        right_at += step
    _add_tile(
        total, sums, rows, dhidden, tl.load(order + rows), wanted < active_rows,
        column_block * WIDE, width, FIRST, LAST, TALL, WIDE, PIECES,
    )  # fmt: skip


@triton.jit(do_not_specialize=["first_row", "total_rows"])
def head_product_kernel(
    da: tl.tensor,  # [R, C]
    da_row: tl.tensor,
    hidden: tl.tensor,  # [R, D]
    hidden_row: tl.tensor,
    sums: tl.tensor,  # [C, D] float32, read unless FIRST, written unless LAST
    dlm_head: tl.tensor,  # [C, D], written with LAST
    count: tl.tensor,  # [], how many rows are used, those before these included
    first_row: tl.tensor,  # of the R
    total_rows: tl.tensor,
    ids: tl.tensor,
    width: tl.tensor,
    FIRST: tl.constexpr,
    LAST: tl.constexpr,
    EVEN: tl.constexpr,
    PRECISION: tl.constexpr,
    TALL: tl.constexpr,
    WIDE: tl.constexpr,
    INNER: tl.constexpr,
    PIECES: tl.constexpr,
) -> None:
    """``da^T @ hidden``, a block of ids and columns per program."""
    active_rows = tl.maximum(tl.minimum(tl.load(count) - first_row, total_rows), 0)
    active_rows = active_rows.to(tl.int32)
    if active_rows == 0 and not (FIRST or LAST):
        # The sums stay what they are.
        return
    id_block, column_block = grouped(tl.program_id(0), tl.cdiv(ids, TALL), tl.cdiv(width, WIDE))
    mine = id_block * TALL + tl.arange(0, TALL)
    columns = column_block * WIDE + tl.arange(0, WIDE)
    total = tl.zeros((TALL, WIDE), tl.float32)
    inner = tl.arange(0, INNER)
    left_at = da + inner.to(tl.int64)[:, None] * da_row + mine[None, :]
    right_at = hidden + inner.to(tl.int64)[:, None] * hidden_row + columns[None, :]
    # A stride of 1 is a number, not a tensor.
    left_step, right_step = tl.cast(da_row, tl.int64) * INNER, tl.cast(hidden_row, tl.int64) * INNER
    for start in range(0, active_rows, INNER):
        inside = (inner < active_rows - start)[:, None]
        if EVEN:
            left = tl.load(left_at, mask=inside, other=0.0)
            right = tl.load(right_at, mask=inside, other=0.0)
        else:
            left = tl.load(left_at, mask=inside & (mine < ids)[None, :], other=0.0)
            right = tl.load(right_at, mask=inside & (columns < width)[None, :], other=0.0)
        total = tl.dot(tl.trans(left), right, total, input_precision=PRECISION)
        left_at += left_step
        right_at += right_step
    out_rows = mine.to(tl.int64)
    _add_tile(
        total, sums, out_rows, dlm_head, out_rows, mine < ids, column_block * WIDE, width, FIRST,
        LAST, TALL, WIDE, PIECES,
    )  # fmt: skip
