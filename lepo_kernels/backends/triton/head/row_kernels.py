"""Triton kernels on the rows of a block of logits: their statistics, and their gradient.

Contract: that of rows.py, which launches them.
"""

import triton
import triton.language as tl

from lepo_kernels.backends.gpu.blocks import UNIT
from lepo_kernels.backends.gpu.row_kernels import STATE
from lepo_kernels.backends.triton.common.logit_kernels import (
    LOWEST,
    biased,
    capped,
    softmax_gradient,
    state_of,
    times_slope,
)

_KEPT = tl.constexpr(32)  # selected ids that are looked at together
_UNIT = tl.constexpr(UNIT)
_STATE = tl.constexpr(STATE)


@triton.jit
def summarise_kernel(
    logits: tl.tensor,  # [R, C]
    row_stride: tl.tensor,
    bias: tl.tensor,  # [C]
    softcap: tl.tensor,
    inv_temperature: tl.tensor,  # [R] or [1]
    stride_inv_temperature: tl.tensor,
    ids: tl.tensor,  # [R, K]
    first: tl.tensor,  # the id of the first column
    states: tl.tensor,  # [R, units, 3], written
    selected: tl.tensor,  # [R, K], written
    columns: tl.tensor,
    kept: tl.tensor,
    units: tl.tensor,  # of the whole vocabulary
    HAS_BIAS: tl.constexpr,
    CAPPED: tl.constexpr,
    UNITS: tl.constexpr,
) -> None:
    """Some units of a row per program."""
    row = tl.program_id(0).to(tl.int64)
    begin = tl.program_id(1) * UNITS * _UNIT
    scale = tl.load(inv_temperature + row * stride_inv_temperature)
    unit = tl.arange(0, UNITS)
    column = begin + unit[:, None] * _UNIT + tl.arange(0, _UNIT)[None, :]
    inside = column < columns
    of_row = logits + row * row_stride
    x = tl.load(of_row + column, mask=inside, other=-float("inf")).to(tl.float32)
    x = capped(biased(x, bias, column, inside, HAS_BIAS), softcap, CAPPED)
    largest, mass, weighted = state_of(tl.where(inside, x * scale, -float("inf")))
    at = states + (row * units + first // _UNIT + begin // _UNIT + unit) * _STATE
    exists = begin + unit * _UNIT < columns
    tl.store(at, largest, mask=exists)
    tl.store(at + 1, mass, mask=exists)
    tl.store(at + 2, weighted, mask=exists)
    for start in range(0, kept, _KEPT):
        k = start + tl.arange(0, _KEPT)
        place = tl.load(ids + row * kept + k, mask=k < kept, other=-1) - first
        here = (place >= begin) & (place < tl.minimum(begin + UNITS * _UNIT, columns))
        again = tl.load(of_row + place, mask=here, other=0.0).to(tl.float32)
        again = capped(biased(again, bias, place, here, HAS_BIAS), softcap, CAPPED)
        tl.store(selected + row * kept + k, again * scale, mask=here)


@triton.jit
def merge_states_kernel(
    states: tl.tensor,  # [R, units, 3]
    lse: tl.tensor,  # [R], written
    entropy: tl.tensor,  # [R], written
    units: tl.tensor,
    UNITS: tl.constexpr,
) -> None:
    """One row per program."""
    row = tl.program_id(0).to(tl.int64)
    unit = tl.arange(0, UNITS)
    here = unit < units
    at = states + (row * units + unit) * _STATE
    largest = tl.load(at, mask=here, other=LOWEST)
    sums = tl.load(at + 1, mask=here, other=0.0).to(tl.float64)
    weighted = tl.load(at + 2, mask=here, other=0.0).to(tl.float64)
    top = tl.max(largest, axis=0).to(tl.float64)
    # Finite in float64, whatever is -inf.
    distance = largest.to(tl.float64) - top
    scale = tl.exp(distance.to(tl.float32)).to(tl.float64)
    mass = tl.sum(scale * sums, axis=0)
    shift = tl.sum(scale * (weighted + distance * sums), axis=0)
    log_mass = tl.log(mass)
    value = (top + log_mass).to(tl.float32)
    # False for NaN, too.
    good = tl.abs(value) < float("inf")
    tl.store(lse + row, tl.where(good, value, float("nan")))
    value = (log_mass - shift / mass).to(tl.float32)
    tl.store(entropy + row, tl.where(good, value, float("nan")))


@triton.jit
def row_gradient_kernel(
    logits: tl.tensor,  # [R, C]
    row_stride: tl.tensor,
    bias: tl.tensor,  # [C]
    softcap: tl.tensor,
    inv_temperature: tl.tensor,  # [R] or [1]
    stride_inv_temperature: tl.tensor,
    ids: tl.tensor,  # [R, K]
    first: tl.tensor,  # the id of the first column
    alpha: tl.tensor,  # [R, K]
    gamma: tl.tensor,  # [R]
    eta: tl.tensor,  # [R]
    lse: tl.tensor,  # [R]
    entropy: tl.tensor,  # [R]
    da: tl.tensor,  # [R, C], written; may be the logits
    da_stride: tl.tensor,
    columns: tl.tensor,
    kept: tl.tensor,
    HAS_BIAS: tl.constexpr,
    CAPPED: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    """Some columns of a row per program."""
    row = tl.program_id(0).to(tl.int64)
    begin = tl.program_id(1) * COLUMNS
    column = begin + tl.arange(0, COLUMNS)
    inside = column < columns
    of_gamma, of_eta = tl.load(gamma + row), tl.load(eta + row)
    active = (of_gamma != 0) | (of_eta != 0)
    selects = False
    for start in range(0, kept, _KEPT):
        k = start + tl.arange(0, _KEPT)
        place = tl.load(ids + row * kept + k, mask=k < kept, other=-1) - first - begin
        of_alpha = tl.load(alpha + row * kept + k, mask=k < kept, other=0.0)
        active |= tl.max((of_alpha != 0).to(tl.int32), axis=0) > 0
        here = (place >= 0) & (place < COLUMNS)
        selects |= tl.max(here.to(tl.int32), axis=0) > 0
    gradient = tl.zeros((COLUMNS,), tl.float32)
    # Else not even read: what a row that is left out holds may be NaN.
    if active:
        x = tl.load(logits + row * row_stride + column, mask=inside, other=0.0).to(tl.float32)
        x = capped(biased(x, bias, column, inside, HAS_BIAS), softcap, CAPPED)
        scale = tl.load(inv_temperature + row * stride_inv_temperature)
        of_lse, of_entropy = tl.load(lse + row), tl.load(entropy + row)
        gradient = softmax_gradient(x * scale, of_lse, of_entropy, of_gamma, of_eta)
        if selects:
            for one in range(kept):
                at = tl.load(ids + row * kept + one) - first - begin
                if (at >= 0) & (at < COLUMNS):
                    is_it = tl.arange(0, COLUMNS) == at.to(tl.int32)
                    gradient += tl.where(is_it, tl.load(alpha + row * kept + one), 0.0)
        gradient = times_slope(gradient * scale, x, softcap, CAPPED)
    tl.store(da + row * da_stride + column, gradient.to(da.dtype.element_ty), mask=inside)
