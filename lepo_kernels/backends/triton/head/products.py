"""Triton's matrix products with the gradient of the logits, of rows whose number the device knows.

Contract: ``da`` [R, C] is the gradient of a block of logits, of which the first ``count`` rows are
used: programs that have none of them leave at once, and sums over rows end there, so that the
others cost nothing. Sums are float32 and go over blocks in turn: all but the last leave them in
``sums``, the last rounds them once. Products of float32 are ``tf32x3``. Deterministic.
"""

from typing import Any

import triton
from torch import Tensor

from lepo_kernels.backends.triton.common import launching
from lepo_kernels.backends.triton.common.launching import FUSED, dtype_class, precision_of
from lepo_kernels.backends.triton.head.product_kernels import (
    head_product_kernel,
    rows_product_kernel,
)

_HALF = {
    "TALL": 128,
    "WIDE": 256,
    "INNER": 64,
    "PIECES": 4,
    "num_warps": 8,
    "num_stages": 3,
    **FUSED,
}
_NARROW = {**_HALF, "WIDE": 128}
_FLOAT = {**_NARROW, "TALL": 64, "INNER": 32, "num_stages": 2}
# Tiles, warps and stages of loads; not measured on a GPU yet.
_TILES: dict[str, dict[str, dict[str, Any]]] = {
    "sm_80": {"half": _NARROW, "float": _FLOAT},
    "sm_90": {"half": _HALF, "float": _FLOAT},
    "sm_100": {"half": _HALF, "float": _FLOAT},
    "rocm": {"half": {**_NARROW, "num_stages": 2}, "float": _FLOAT},
    "other": {"half": {**_NARROW, "num_stages": 2}, "float": _FLOAT},
}


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
        EVEN=ids % tiles["INNER"] == 0 and width % tiles["WIDE"] == 0,
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
        EVEN=ids % tiles["TALL"] == 0 and width % tiles["WIDE"] == 0,
        **tiles,
    )


def _tiles(da: Tensor, width: int) -> dict[str, Any]:
    options = dict(_TILES[launching.device_family(da.device)][dtype_class(da.dtype)])
    if width % options["WIDE"] != 0:
        options["WIDE"] = min(options["WIDE"], 128)
    return {**options, "PRECISION": precision_of(da.dtype)}
