"""Triton kernels of the scores ``q = a + g`` of a chunk of the vocabulary, and of their statistics.

A first kernel draws the noise, writes the chunk's scores, and for each tile of ids what an online
softmax takes over. A second one folds the tiles of a row into what is known of it, one chunk after
another, in float64. It also says how the sums of a mixture so far change: they shrink by the
``carry``, and where a row has a new peak, the old one joins them with its weight.
"""

import triton
import triton.language as tl

from lepo_kernels.backends.triton.gumbel_softmax.tile_kernels import (
    add_logits,
    capped,
    exponential_tile,
    finite,
    inverse_tau,
    logits_tile,
    table_tile,
)
from lepo_kernels.backends.triton.latent.row_scan_kernels import inverse_of

# Of a row's tile: largest q, what the others weigh beside it, largest a, mass, the sum of
# p (a - largest a), how many a are not -inf, their sums of X and log X, and a at the peak.
PARTS = tl.constexpr(9)
# Of a row so far: the same, and the peak. float64.
KNOWN = tl.constexpr(10)
# What backward takes over, see the op.
STATISTICS = tl.constexpr(8)
_NO_ID = tl.constexpr(2**31 - 1)


@triton.jit
def store_scores(
    a: tl.tensor,  # [ROWS, IDS], -inf where no id is
    x: tl.tensor,  # [ROWS, IDS], the exponential numbers
    inverse: tl.tensor,  # [ROWS], 1 / tau
    rows: tl.tensor,  # [ROWS] int64
    here: tl.tensor,  # [ROWS] bool, which rows are there
    ids: tl.tensor,  # [IDS]
    first: tl.tensor,
    past: tl.tensor,
    scores: tl.tensor,  # [N, chunk], written
    chunk: tl.tensor,
    parts: tl.tensor,  # [N, 9, tiles], written
    peaks: tl.tensor,  # [N, tiles] int32, written
    tile: tl.tensor,
    tiles: tl.tensor,
) -> None:
    """Scores of a tile, and what its rows' online softmax takes of it."""
    out = parts + rows * PARTS * tiles + tile
    log_x = tl.log(x)
    # What needs the exponential numbers comes first: a tile of them fills many registers.
    counted = a != -float("inf")
    tl.store(out + 5 * tiles, tl.sum(counted.to(tl.float32), axis=1), mask=here)
    tl.store(out + 6 * tiles, tl.sum(tl.where(counted, x, 0.0), axis=1), mask=here)
    tl.store(out + 7 * tiles, tl.sum(tl.where(counted, log_x, 0.0), axis=1), mask=here)
    q = a - log_x
    at = scores + rows[:, None] * chunk + (ids - first)[None, :]
    tl.store(at, q, mask=here[:, None] & (ids < past)[None, :])
    q_top, a_top = tl.max(q, axis=1), tl.max(a, axis=1)
    # The first of equal ones; none where all are NaN.
    peak = tl.min(tl.where(q == q_top[:, None], ids[None, :], _NO_ID), axis=1)
    at_peak = ids[None, :] == peak[:, None]
    p = tl.exp((q - finite(q_top)[:, None]) * inverse[:, None])
    tl.store(out, q_top, mask=here)
    tl.store(out + tiles, tl.sum(tl.where(at_peak, 0.0, p), axis=1), mask=here)
    tl.store(out + 8 * tiles, tl.sum(tl.where(at_peak, a, 0.0), axis=1), mask=here)
    tl.store(peaks + rows * tiles + tile, peak, mask=here)
    below = a - finite(a_top)[:, None]
    tl.store(out + 2 * tiles, a_top, mask=here)
    tl.store(out + 3 * tiles, tl.sum(tl.exp(below), axis=1), mask=here)
    tl.store(out + 4 * tiles, tl.sum(tl.where(p == 0, 0.0, p * below), axis=1), mask=here)


@triton.jit(do_not_specialize=["total_rows", "tiles"])
def noisy_scores_kernel(
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
    scores: tl.tensor,  # [N, chunk], written
    parts: tl.tensor,  # [N, 9, tiles], written
    peaks: tl.tensor,  # [N, tiles] int32, written
    total_rows: tl.tensor,
    chunk: tl.tensor,
    first: tl.tensor,
    past: tl.tensor,
    tiles: tl.tensor,
    ROWS: tl.constexpr,
    IDS: tl.constexpr,
) -> None:
    """A block of rows and a tile of the ids from ``first`` to ``past`` per program."""
    program = tl.program_id(0)
    block, tile = program // tiles, program % tiles
    wanted = block * ROWS + tl.arange(0, ROWS)
    # A row that is not there is the last one, once more.
    rows = tl.minimum(wanted, total_rows - 1).to(tl.int64)
    start = first + tile * IDS
    ids = start + tl.arange(0, IDS)
    inv_temperature = inverse_of(temperature, stride_temperature, rows)
    a = logits_tile(logits, row_stride, rows, ids, past) * inv_temperature[:, None]
    x = exponential_tile(seed, row_keys, step, stride_step, rows, first_id + start, ROWS, IDS)
    inverse, _ = inverse_tau(tau, stride_tau, rows)
    store_scores(
        a, x, inverse, rows, wanted < total_rows, ids, first, past,
        scores, chunk, parts, peaks, tile, tiles,
    )  # fmt: skip


@triton.jit(do_not_specialize=["total_rows", "tiles", "row_blocks"])
def linear_noisy_scores_kernel(
    hidden: tl.tensor,  # [N, D]
    hidden_row: tl.tensor,
    lm_head: tl.tensor,  # [V, D]
    lm_head_row: tl.tensor,
    head_width: tl.tensor,
    bias: tl.tensor,  # [V] or None
    softcap: tl.tensor,  # a number or None
    tau: tl.tensor,  # [N] or [1]
    stride_tau: tl.tensor,
    temperature: tl.tensor,  # [N] or [1]
    stride_temperature: tl.tensor,
    seed: tl.tensor,  # []
    row_keys: tl.tensor,  # [N]
    step: tl.tensor,  # [N] or [1]
    stride_step: tl.tensor,
    first_id: tl.tensor,
    scores: tl.tensor,  # [N, chunk], written
    parts: tl.tensor,  # [N, 9, tiles], written
    peaks: tl.tensor,  # [N, tiles] int32, written
    total_rows: tl.tensor,
    chunk: tl.tensor,
    first: tl.tensor,
    past: tl.tensor,
    tiles: tl.tensor,
    row_blocks: tl.tensor,
    ROWS: tl.constexpr,
    IDS: tl.constexpr,
    COLUMNS: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    """As above, with the logits of the tile formed here; neighbours read the same rows."""
    program = tl.program_id(0)
    tile = program // row_blocks
    wanted = (program % row_blocks) * ROWS + tl.arange(0, ROWS)
    rows = tl.minimum(wanted, total_rows - 1).to(tl.int64)
    start = first + tile * IDS
    ids = start + tl.arange(0, IDS)
    logits = tl.zeros((ROWS, IDS), tl.float32)
    for begin in range(0, head_width, COLUMNS):
        columns = begin + tl.arange(0, COLUMNS)
        head = table_tile(lm_head, lm_head_row, ids, past, columns, head_width)
        logits = add_logits(logits, hidden, hidden_row, head, rows, columns, head_width, PRECISION)
    logits = capped(logits, bias, softcap, ids, past)
    a = logits * inverse_of(temperature, stride_temperature, rows)[:, None]
    a = tl.where((ids < past)[None, :], a, -float("inf"))
    x = exponential_tile(seed, row_keys, step, stride_step, rows, first_id + start, ROWS, IDS)
    inverse, _ = inverse_tau(tau, stride_tau, rows)
    store_scores(
        a, x, inverse, rows, wanted < total_rows, ids, first, past,
        scores, chunk, parts, peaks, tile, tiles,
    )  # fmt: skip


@triton.jit(do_not_specialize=["tiles"])
def fold_statistics_kernel(
    parts: tl.tensor,  # [N, 9, tiles]
    peaks: tl.tensor,  # [N, tiles] int32
    tau: tl.tensor,  # [N] or [1]
    stride_tau: tl.tensor,
    known: tl.tensor,  # [N, 10] float64, read unless this is the first chunk, and written
    carry: tl.tensor,  # [N, 2], written: what the sums shrink by, and the old peak's weight
    old_peaks: tl.tensor,  # [N] int32, written
    log_prob: tl.tensor,  # [N], written
    log_density: tl.tensor,  # [N], written
    statistics: tl.tensor,  # [N, 8] float64, written
    first: tl.tensor,
    vocab: tl.tensor,
    tiles: tl.tensor,
    TILES: tl.constexpr,
) -> None:
    """One row per program: the tiles of a chunk, and what is known of those before it."""
    row = tl.program_id(0).to(tl.int64)
    inverse, hard = inverse_tau(tau, stride_tau, row)
    at, old, later = parts + row * PARTS * tiles, known + row * KNOWN, first > 0
    q_new, beside_new, a_new, mass_new, shifted_new, at_peak_new, peak_new = _tiles_of(
        at, peaks + row * tiles, inverse, tiles, TILES
    )
    q_old = tl.load(old, mask=later, other=-float("inf")).to(tl.float32)
    beside_old = tl.load(old + 1, mask=later, other=0.0)
    a_old = tl.load(old + 2, mask=later, other=-float("inf")).to(tl.float32)
    mass_old = tl.load(old + 3, mask=later, other=0.0)
    shifted_old = tl.load(old + 4, mask=later, other=0.0)
    at_peak_old = tl.load(old + 8, mask=later, other=0.0).to(tl.float32)
    peak_old = tl.load(old + 9, mask=later, other=0.0).to(tl.int32)

    q_max, a_max, wins = tl.maximum(q_old, q_new), tl.maximum(a_old, a_new), q_new > q_old
    keep, all_old, shifted_old, mass_old = _rebased(
        q_old, beside_old, a_old, mass_old, shifted_old, q_max, a_max, inverse
    )
    _, all_new, shifted_new, mass_new = _rebased(
        q_new, beside_new, a_new, mass_new, shifted_new, q_max, a_max, inverse
    )
    others = tl.where(wins, all_old + beside_new, beside_old + all_new)
    mass, shifted = mass_old + mass_new, shifted_old + shifted_new
    at_peak = tl.where(wins, at_peak_new, at_peak_old)
    peak = tl.minimum(tl.where(wins, peak_new, peak_old), vocab - 1)
    count = _added(at + 5 * tiles, old + 5, later, tiles, TILES)
    sum_x = _added(at + 6 * tiles, old + 6, later, tiles, TILES)
    sum_log_x = _added(at + 7 * tiles, old + 7, later, tiles, TILES)
    tl.store(old, q_max.to(tl.float64))
    tl.store(old + 1, others)
    tl.store(old + 2, a_max.to(tl.float64))
    tl.store(old + 3, mass)
    tl.store(old + 4, shifted)
    tl.store(old + 5, count)
    tl.store(old + 6, sum_x)
    tl.store(old + 7, sum_log_x)
    tl.store(old + 8, at_peak.to(tl.float64))
    tl.store(old + 9, peak.to(tl.float64))
    # A row whose tau is 0 has no weights beside the peak.
    joins = tl.where(hard, 0.0, tl.where(wins, keep, 0.0))
    tl.store(carry + row * 2, keep)
    tl.store(carry + row * 2 + 1, joins)
    tl.store(old_peaks + row, peak_old)

    # NaN in a row without weights; that the mass is above 0 is False for NaN, too.
    valid = tl.where(mass > 0, 0.0, float("nan"))
    total = 1.0 + others
    mean = tl.where(hard, at_peak - a_max, shifted / total)
    tl.store(log_prob + row, (mean - tl.log(mass)).to(tl.float32) + valid)
    density = _log_density(count, sum_x, sum_log_x, tl.load(tau + row * stride_tau), hard)
    tl.store(log_density + row, density.to(tl.float32) + valid)
    out = statistics + row * STATISTICS
    tl.store(out, q_max.to(tl.float64) + valid)
    tl.store(out + 1, tl.where(hard, 1.0, 1.0 / total) + valid)
    tl.store(out + 2, a_max.to(tl.float64) + valid)
    tl.store(out + 3, 1.0 / mass + valid)
    tl.store(out + 4, peak.to(tl.float64))
    tl.store(out + 5, count)
    tl.store(out + 6, 1.0 / sum_x + valid)
    tl.store(out + 7, sum_log_x + valid)


@triton.jit
def _tiles_of(
    parts: tl.tensor,  # [9, tiles]
    peaks: tl.tensor,  # [tiles]
    inverse: tl.tensor,  # 1 / tau
    tiles: tl.tensor,
    TILES: tl.constexpr,
) -> tl.tensor:  # largest q, others beside it, largest a, mass, shifted sum, a at the peak, peak
    """Those of a row's chunk, sums in float64."""
    tile = tl.arange(0, TILES)
    here = tile < tiles
    q = tl.load(parts + tile, mask=here, other=-float("inf"))
    beside = tl.load(parts + tiles + tile, mask=here, other=0.0)
    a = tl.load(parts + 2 * tiles + tile, mask=here, other=-float("inf"))
    q_max, a_max = tl.max(q, axis=0), tl.max(a, axis=0)
    # The first of equal ones.
    winner = tl.min(tl.where(q == q_max, tile, TILES), axis=0)
    keep = tl.exp((q - finite(q_max)) * inverse)
    weight = beside + tl.where(q == -float("inf"), 0.0, 1.0)
    others = tl.sum(tl.where(tile == winner, beside, weight * keep).to(tl.float64), axis=0)
    lower = tl.where(a == -float("inf"), 0.0, a - finite(a_max))
    shifted = tl.load(parts + 4 * tiles + tile, mask=here, other=0.0)
    shifted = tl.sum((keep * (shifted + weight * lower)).to(tl.float64), axis=0)
    mass = tl.load(parts + 3 * tiles + tile, mask=here, other=0.0) * tl.exp(a - finite(a_max))
    mass = tl.sum(mass.to(tl.float64), axis=0)
    wins = here & (tile == winner)
    at_peak = tl.sum(tl.load(parts + 8 * tiles + tile, mask=wins, other=0.0), axis=0)
    peak = tl.sum(tl.load(peaks + tile, mask=wins, other=0), axis=0)
    return q_max, others, a_max, mass, shifted, at_peak, peak


@triton.jit
def _rebased(
    q: tl.tensor,
    beside: tl.tensor,
    a: tl.tensor,
    mass: tl.tensor,
    shifted: tl.tensor,
    q_max: tl.tensor,
    a_max: tl.tensor,
    inverse: tl.tensor,  # 1 / tau
) -> tl.tensor:  # what weights shrink by, the sum of all weights, shifted sum, mass
    """Those of a part of a row, relative to the largest q and a of more of it."""
    keep = tl.exp((q - finite(q_max)) * inverse)
    weight = beside + tl.where(q == -float("inf"), 0.0, 1.0)
    lower = tl.where(a == -float("inf"), 0.0, a - finite(a_max))
    return keep, keep * weight, keep * (shifted + weight * lower), mass * tl.exp(a - finite(a_max))


@triton.jit
def _added(
    part: tl.tensor,  # [tiles]
    known: tl.tensor,  # [] float64
    later: tl.tensor,
    tiles: tl.tensor,
    TILES: tl.constexpr,
) -> tl.tensor:
    """A sum over the row so far."""
    tile = tl.arange(0, TILES)
    total = tl.sum(tl.load(part + tile, mask=tile < tiles, other=0.0).to(tl.float64), axis=0)
    return total + tl.load(known, mask=later, other=0.0)


@triton.jit
def _log_density(
    count: tl.tensor,  # float64, as all of these
    sum_x: tl.tensor,
    sum_log_x: tl.tensor,
    tau: tl.tensor,
    hard: tl.tensor,
) -> tl.tensor:
    """``log Gamma(m) + (m - 1) log tau + sum log X - m log sum X``, 0 where m = 1."""
    # log Gamma(m + 8) by its series, which is good to 1e-12 there.
    shifted = count + 8.0
    inverse = 1.0 / shifted
    square = inverse * inverse
    series = 1.0 / 360.0 - square * (1.0 / 1260.0 - square * (1.0 / 1680.0))
    gamma = (shifted - 0.5) * tl.log(shifted) - shifted + 0.9189385332046727  # log(2 pi) / 2
    gamma += inverse * (1.0 / 12.0 - square * series)
    below = count * (count + 1.0) * (count + 2.0) * (count + 3.0)
    gamma -= tl.log(below * (count + 4.0) * (count + 5.0) * (count + 6.0) * (count + 7.0))
    spread = tl.where(hard, -float("inf"), tl.log(tl.where(hard, 1.0, tau)))
    density = gamma + (count - 1.0) * spread + sum_log_x - count * tl.log(sum_x)
    return tl.where(count == 1.0, 0.0, density)
