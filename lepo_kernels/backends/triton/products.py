"""Triton's matrix products with the gradient of the logits, of rows whose number the device knows.

Contract: ``da`` [R, C] is the gradient of a block of logits, of which the first ``count`` rows are
used: programs that have none of them leave at once, and sums over rows end there, so that the
others cost nothing. Sums are float32 and go over blocks in turn: all but the last leave them in
``sums``, the last rounds them once. Products of float32 are ``tf32x3``. Deterministic.
"""

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from lepo_kernels.backends.triton import launching
from lepo_kernels.backends.triton.launching import FUSED, grouped, precision_of, size_of

_HALF = {"TALL": 128, "WIDE": 256, "INNER": 64, "num_warps": 8, "num_stages": 3, **FUSED}
_FLOAT = {"TALL": 64, "WIDE": 128, "INNER": 32, "num_warps": 8, "num_stages": 2, **FUSED}
# Tiles, warps and stages of loads; not measured on a GPU yet.
_TILES: dict[str, dict[str, dict[str, Any]]] = {
    "sm_80": {"half": {**_HALF, "INNER": 32}, "float": _FLOAT},
    "sm_90": {"half": _HALF, "float": _FLOAT},
    "sm_100": {"half": _HALF, "float": _FLOAT},
    "rocm": {"half": {**_HALF, "WIDE": 128, "num_stages": 2}, "float": _FLOAT},
    "other": {"half": {**_HALF, "WIDE": 128, "INNER": 32}, "float": _FLOAT},
}


@triton.jit
def _store_sums(
    total: tl.tensor,  # [TALL, WIDE]
    sums: tl.tensor,  # addresses
    out: tl.tensor,  # addresses
    stored: tl.tensor,  # [TALL, WIDE] bool
    LAST: tl.constexpr,
) -> None:
    if LAST:
        tl.store(out, total.to(out.dtype.element_ty), mask=stored)
    else:
        tl.store(sums, total, mask=stored)


@triton.jit
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
    wanted_columns = column_block * WIDE + tl.arange(0, WIDE)
    columns = tl.minimum(wanted_columns, width - 1)
    stored = (wanted < active_rows)[:, None] & (wanted_columns < width)[None, :]
    at_sums = sums + rows[:, None] * width + wanted_columns[None, :]
    if FIRST:
        total = tl.zeros((TALL, WIDE), tl.float32)
    else:
        total = tl.load(at_sums, mask=stored, other=0.0)
    inner = tl.arange(0, INNER)
    left_at = da + rows[:, None] * da_row + inner[None, :]
    right_at = lm_head + inner.to(tl.int64)[:, None] * lm_head_row + columns[None, :]
    step = lm_head_row.to(tl.int64) * INNER
    for start in range(0, ids, INNER):
        if EVEN:
            left, right = tl.load(left_at), tl.load(right_at)
        else:
            inside = inner < ids - start
            left = tl.load(left_at, mask=inside[None, :], other=0.0)
            right = tl.load(right_at, mask=inside[:, None], other=0.0)
        total = tl.dot(left, right, total, input_precision=PRECISION)
        left_at += INNER
        right_at += step
    out = tl.load(order + rows)[:, None] * width + wanted_columns[None, :]
    _store_sums(total, at_sums, dhidden + out, stored, LAST)


@triton.jit
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
    PRECISION: tl.constexpr,
    TALL: tl.constexpr,
    WIDE: tl.constexpr,
    INNER: tl.constexpr,
) -> None:
    """``da^T @ hidden``, a block of ids and columns per program."""
    active_rows = tl.maximum(tl.minimum(tl.load(count) - first_row, total_rows), 0)
    active_rows = active_rows.to(tl.int32)
    id_block, column_block = grouped(tl.program_id(0), tl.cdiv(ids, TALL), tl.cdiv(width, WIDE))
    wanted = id_block * TALL + tl.arange(0, TALL)
    mine = tl.minimum(wanted, ids - 1)
    wanted_columns = column_block * WIDE + tl.arange(0, WIDE)
    columns = tl.minimum(wanted_columns, width - 1)
    stored = (wanted < ids)[:, None] & (wanted_columns < width)[None, :]
    at_out = wanted.to(tl.int64)[:, None] * width + wanted_columns[None, :]
    if FIRST:
        total = tl.zeros((TALL, WIDE), tl.float32)
    else:
        total = tl.load(sums + at_out, mask=stored, other=0.0)
    inner = tl.arange(0, INNER)
    left_at = da + inner.to(tl.int64)[:, None] * da_row + mine[None, :]
    right_at = hidden + inner.to(tl.int64)[:, None] * hidden_row + columns[None, :]
    left_step, right_step = da_row.to(tl.int64) * INNER, hidden_row.to(tl.int64) * INNER
    for start in range(0, active_rows, INNER):
        inside = (inner < active_rows - start)[:, None]
        left = tl.load(left_at, mask=inside, other=0.0)
        right = tl.load(right_at, mask=inside, other=0.0)
        total = tl.dot(tl.trans(left), right, total, input_precision=PRECISION)
        left_at += left_step
        right_at += right_step
    _store_sums(total, sums + at_out, dlm_head + at_out, stored, LAST)


def add_rows_product(
    da: Tensor,  # [R, C]
    lm_head: Tensor,  # [C, D]
    sums: Tensor,  # [R, D] float32; not used if this is the first part and the last one
    dhidden: Tensor,  # [N, D], written by the last part where rows are used
    order: Tensor,  # [R], which of the N rows these are
    count: Tensor,  # []
    first_row: int,
    is_first: bool,
    is_last: bool,
) -> None:
    """Add a part of the vocabulary to the gradient of the hidden states."""
    (rows, ids), width = da.shape, lm_head.shape[1]
    tiles = _tiles(da, width)
    programs = triton.cdiv(rows, tiles["TALL"]) * triton.cdiv(width, tiles["WIDE"])
    rows_product_kernel[(programs,)](
        da,
        da.stride(0),
        lm_head,
        lm_head.stride(0),
        sums,
        dhidden,
        order,
        count,
        first_row,
        rows,
        ids,
        width,
        FIRST=is_first,
        LAST=is_last,
        EVEN=ids % tiles["INNER"] == 0,
        **tiles,
    )


def add_head_product(
    da: Tensor,  # [R, C]
    hidden: Tensor,  # [R, D]
    sums: Tensor,  # [C, D] float32; not used if this is the first block and the last one
    dlm_head: Tensor,  # [C, D], written by the last block
    count: Tensor,  # []
    first_row: int,
    is_first: bool,
    is_last: bool,
) -> None:
    """Add a block of rows to the gradient of a part of the head."""
    (rows, ids), width = da.shape, hidden.shape[1]
    tiles = _tiles(da, width)
    programs = triton.cdiv(ids, tiles["TALL"]) * triton.cdiv(width, tiles["WIDE"])
    head_product_kernel[(programs,)](
        da,
        da.stride(0),
        hidden,
        hidden.stride(0),
        sums,
        dlm_head,
        count,
        first_row,
        rows,
        ids,
        width,
        FIRST=is_first,
        LAST=is_last,
        **tiles,
    )


def _tiles(da: Tensor, width: int) -> dict[str, Any]:
    options = dict(_TILES[launching.device_family(da.device)][size_of(da.dtype)])
    if width % options["WIDE"] != 0:
        options["WIDE"] = min(options["WIDE"], 128)
    return {**options, "PRECISION": precision_of(da.dtype)}
