"""Triton kernels of the loss head in tiles: a product whose logits never leave the registers.

Contract: that of tiles.py, which launches them.
"""

import triton
import triton.language as tl

from lepo_kernels.backends.gpu.row_kernels import STATE
from lepo_kernels.backends.triton.common.logit_kernels import (
    LOWEST,
    biased,
    capped,
    merged_states,
    softmax_gradient,
    state_of,
    times_slope,
)
from lepo_kernels.backends.triton.head.tiling_kernels import grouped, pieces_of

_KEPT = tl.constexpr(16)  # selected ids that are looked at together: more take too many registers
_STATE = tl.constexpr(STATE)


@triton.jit
def _product_tile(
    hidden: tl.tensor,  # [R, D]
    hidden_row: tl.tensor,
    lm_head: tl.tensor,  # [C, D]
    lm_head_row: tl.tensor,
    rows: tl.tensor,  # [ROWS] int64
    ids: tl.tensor,  # [IDS] int64
    width: tl.tensor,
    ROWS: tl.constexpr,
    IDS: tl.constexpr,
    WIDTH: tl.constexpr,
    EVEN: tl.constexpr,
    PRECISION: tl.constexpr,
) -> tl.tensor:  # [ROWS, IDS] float32
    """Rows of the hidden states times rows of the head."""
    total = tl.zeros((ROWS, IDS), tl.float32)
    columns = tl.arange(0, WIDTH)
    left_at = hidden + rows[:, None] * hidden_row + columns[None, :]
    right_at = lm_head + ids[:, None] * lm_head_row + columns[None, :]
    for start in range(0, width, WIDTH):
        if EVEN:
            left, right = tl.load(left_at), tl.load(right_at)
        else:
            inside = (columns < width - start)[None, :]
            left = tl.load(left_at, mask=inside, other=0.0)
            right = tl.load(right_at, mask=inside, other=0.0)
        total = tl.dot(left, tl.trans(right), total, input_precision=PRECISION)
        left_at += WIDTH
        right_at += WIDTH
    return total


@triton.jit
def _places(
    ids: tl.tensor,  # [R, K] int32
    rows: tl.tensor,  # [ROWS] int64
    kept: tl.tensor,
    start: tl.tensor,
    first: tl.tensor,
    past: tl.tensor,
) -> tl.tensor:
    """Which of the ids from ``start`` on are from ``first`` to ``past`` in some row: bits."""
    k = start + tl.arange(0, _KEPT)
    at = ids + rows[:, None] * kept + k[None, :]
    some = tl.load(at, mask=(k < kept)[None, :], other=-1)
    here = ((some >= first) & (some < past)).to(tl.int32)
    return tl.sum(tl.max(here, axis=0) << tl.arange(0, _KEPT), axis=0)


@triton.jit(do_not_specialize=["total_rows"])
def head_states_kernel(
    hidden: tl.tensor,  # [N, D]
    hidden_row: tl.tensor,
    lm_head: tl.tensor,  # [V, D]
    lm_head_row: tl.tensor,
    bias: tl.tensor,  # [V] float32
    softcap: tl.tensor,
    inv_temperature: tl.tensor,  # [N] or [1]
    stride_inv_temperature: tl.tensor,
    selection: tl.tensor,  # [N, K] int32
    states: tl.tensor,  # [N, blocks of ids, 3], written
    selected: tl.tensor,  # [N, K], written
    total_rows: tl.tensor,
    vocab: tl.tensor,
    width: tl.tensor,
    kept: tl.tensor,
    HAS_BIAS: tl.constexpr,
    CAPPED: tl.constexpr,
    EVEN: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    IDS: tl.constexpr,
    WIDTH: tl.constexpr,
    PIECES: tl.constexpr,
) -> None:
    """A tile of logits per program: its rows' states."""
    id_blocks = tl.cdiv(vocab, IDS)
    row_block, id_block = grouped(tl.program_id(0), tl.cdiv(total_rows, ROWS), id_blocks)
    wanted = row_block * ROWS + tl.arange(0, ROWS)
    here = wanted < total_rows
    # What is not there is the last one, once more.
    rows = tl.minimum(wanted, total_rows - 1).to(tl.int64)
    begin = id_block * IDS
    ids = tl.minimum(begin + tl.arange(0, IDS), vocab - 1).to(tl.int64)
    tile = _product_tile(
        hidden, hidden_row, lm_head, lm_head_row, rows, ids, width, ROWS, IDS, WIDTH, EVEN,
        PRECISION,
    )  # fmt: skip
    pieces = pieces_of(tile, ROWS, IDS, PIECES)
    scale = tl.load(inv_temperature + rows * stride_inv_temperature)[:, None]
    largest = tl.full((ROWS,), LOWEST, tl.float32)
    mass = tl.zeros((ROWS,), tl.float32)
    weighted = tl.zeros((ROWS,), tl.float32)
    for piece in tl.static_range(PIECES):
        first = begin + piece * (IDS // PIECES)
        column = first + tl.arange(0, IDS // PIECES)
        inside = (column < vocab)[None, :]
        x = biased(pieces[piece], bias, column[None, :], inside, HAS_BIAS)
        a = tl.where(inside, capped(x, softcap, CAPPED) * scale, -float("inf"))
        for start in range(0, kept, _KEPT):
            bits = _places(selection, rows, kept, start, first, first + IDS // PIECES)
            for k in range(tl.minimum(_KEPT, kept - start)):
                if (bits >> k) & 1 != 0:
                    at = rows * kept + start + k
                    place = tl.load(selection + at)
                    is_it = place[:, None] == column[None, :]
                    value = tl.sum(tl.where(is_it, a, 0.0), axis=1)
                    # An id that is out of range is in no tile.
                    past = tl.minimum(first + IDS // PIECES, vocab)
                    chosen = here & (place >= first) & (place < past)
                    tl.store(selected + at, value, mask=chosen)
        largest, mass, weighted = merged_states(largest, mass, weighted, *state_of(a))
    at = states + (rows * id_blocks + id_block) * _STATE
    tl.store(at, largest, mask=here)
    tl.store(at + 1, mass, mask=here)
    tl.store(at + 2, weighted, mask=here)


@triton.jit(do_not_specialize=["first_row", "total_rows"])
def head_logit_gradient_kernel(
    hidden: tl.tensor,  # [R, D], rows with gradients first
    hidden_row: tl.tensor,
    lm_head: tl.tensor,  # [C, D]
    lm_head_row: tl.tensor,
    bias: tl.tensor,  # [C]
    softcap: tl.tensor,
    inv_temperature: tl.tensor,  # [R] or [1]
    stride_inv_temperature: tl.tensor,
    selection: tl.tensor,  # [R, K] int32
    first_id: tl.tensor,  # of the C
    alpha: tl.tensor,  # [R, K]
    gamma: tl.tensor,  # [R]
    eta: tl.tensor,  # [R]
    lse: tl.tensor,  # [R]
    entropy: tl.tensor,  # [R]
    count: tl.tensor,  # [], how many rows have gradients, those before these included
    first_row: tl.tensor,  # of the R
    da: tl.tensor,  # [R, C], written where rows have gradients
    da_row: tl.tensor,
    dbias: tl.tensor,  # [blocks of rows, C], written with DBIAS: sums of da
    total_rows: tl.tensor,
    columns: tl.tensor,
    width: tl.tensor,
    kept: tl.tensor,
    HAS_BIAS: tl.constexpr,
    CAPPED: tl.constexpr,
    DBIAS: tl.constexpr,
    EVEN: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    IDS: tl.constexpr,
    WIDTH: tl.constexpr,
    PIECES: tl.constexpr,
) -> None:
    """A tile of logits per program: their gradient."""
    active_rows = tl.minimum(tl.load(count) - first_row, total_rows)
    id_blocks = tl.cdiv(columns, IDS)
    row_blocks = tl.cdiv(tl.maximum(active_rows, 0), ROWS).to(tl.int32)
    program = tl.program_id(0)
    if program >= row_blocks * id_blocks:
        return
    row_block, id_block = grouped(program, row_blocks, id_blocks)
    wanted = row_block * ROWS + tl.arange(0, ROWS)
    active = wanted < active_rows
    rows = tl.minimum(wanted, active_rows - 1).to(tl.int64)
    begin = id_block * IDS
    ids = tl.minimum(begin + tl.arange(0, IDS), columns - 1).to(tl.int64)
    tile = _product_tile(
        hidden, hidden_row, lm_head, lm_head_row, rows, ids, width, ROWS, IDS, WIDTH, EVEN,
        PRECISION,
    )  # fmt: skip
    pieces = pieces_of(tile, ROWS, IDS, PIECES)
    scale = tl.load(inv_temperature + rows * stride_inv_temperature)[:, None]
    of_lse, of_entropy = tl.load(lse + rows)[:, None], tl.load(entropy + rows)[:, None]
    of_gamma, of_eta = tl.load(gamma + rows)[:, None], tl.load(eta + rows)[:, None]
    for piece in tl.static_range(PIECES):
        first = begin + piece * (IDS // PIECES)
        column = first + tl.arange(0, IDS // PIECES)
        inside = column < columns
        x = biased(pieces[piece], bias, column[None, :], inside[None, :], HAS_BIAS)
        x = capped(x, softcap, CAPPED)
        gradient = softmax_gradient(x * scale, of_lse, of_entropy, of_gamma, of_eta)
        for start in range(0, kept, _KEPT):
            own = first_id + first
            bits = _places(selection, rows, kept, start, own, own + IDS // PIECES)
            for k in range(tl.minimum(_KEPT, kept - start)):
                if (bits >> k) & 1 != 0:
                    at = rows * kept + start + k
                    is_it = (tl.load(selection + at) - first_id)[:, None] == column[None, :]
                    gradient += tl.where(is_it, tl.load(alpha + at)[:, None], 0.0)
        gradient = times_slope(gradient * scale, x, softcap, CAPPED)
        stored = active[:, None] & inside[None, :]
        out = da + rows[:, None] * da_row + column[None, :]
        tl.store(out, gradient.to(da.dtype.element_ty), mask=stored)
        if DBIAS:
            total = tl.sum(tl.where(active[:, None], gradient, 0.0), axis=0)
            tl.store(dbias + row_block.to(tl.int64) * columns + column, total, mask=inside)
