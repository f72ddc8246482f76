"""Triton kernels of the scores ``q = a + g`` of a chunk of the vocabulary, and of their statistics.

A first kernel draws the noise, writes the chunk's scores, and for each tile of ids what an online
softmax takes over. A second one folds the tiles of a row into what is known of it, one chunk after
another, in float64. It also says how the sums of a mixture so far change: they shrink by the
``carry``, and where a row has a new peak, the old one joins them with its weight.
"""

import triton
import triton.language as tl

from lepo_kernels.backends.triton.gumbel_softmax_tiles import (
    add_logits,
    capped,
    exponential_tile,
    finite,
    inverse_tau,
    inverse_temperature,
    logits_tile,
    table_tile,
)

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


@triton.jit
def noisy_scores_kernel(
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
    warmth = inverse_temperature(temperature, temperature_step, rows)
    a = logits_tile(logits, row_stride, rows, ids, past) * warmth[:, None]
    x = exponential_tile(seed, row_keys, step, step_step, rows, first_id + start, ROWS, IDS)
    inverse, _ = inverse_tau(tau, tau_step, rows)
    store_scores(
        a, x, inverse, rows, wanted < total_rows, ids, first, past,
        scores, chunk, parts, peaks, tile, tiles,
    )  # fmt: skip


@triton.jit
def linear_noisy_scores_kernel(
    hidden: tl.tensor,  # [N, D]
    hidden_row: tl.tensor,
    lm_head: tl.tensor,  # [V, D]
    lm_head_row: tl.tensor,
    head_width: tl.tensor,
    bias: tl.tensor,  # [V] or None
    softcap: tl.tensor,  # a number or None
    tau: tl.tensor,  # [N] or [1]
    tau_step: tl.tensor,
    temperature: tl.tensor,  # [N] or [1]
    temperature_step: tl.tensor,
    seed: tl.tensor,  # []
    row_keys: tl.tensor,  # [N]
    step: tl.tensor,  # [N] or [1]
    step_step: tl.tensor,
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
    a = logits * inverse_temperature(temperature, temperature_step, rows)[:, None]
    a = tl.where((ids < past)[None, :], a, -float("inf"))
    x = exponential_tile(seed, row_keys, step, step_step, rows, first_id + start, ROWS, IDS)
    inverse, _ = inverse_tau(tau, tau_step, rows)
    store_scores(
        a, x, inverse, rows, wanted < total_rows, ids, first, past,
        scores, chunk, parts, peaks, tile, tiles,
    )  # fmt: skip


@triton.jit
def fold_statistics_kernel(
    parts: tl.tensor,  # [N, 9, tiles]
    peaks: tl.tensor,  # [N, tiles] int32
    tau: tl.tensor,  # [N] or [1]
    tau_step: tl.tensor,
    known: tl.tensor,  # [N, 10] float64, read unless this is the first chunk, and written
    carry: tl.tensor,  # [N, 2], written: what the sums shrink by, and the old peak's weight
    old_peaks: tl.tensor,  # [N] int32, written
    log_prob: tl.tensor,  # [N], written
    statistics: tl.tensor,  # [N, 8] float64, written
    first: tl.tensor,
    vocab: tl.tensor,
    tiles: tl.tensor,
    TILES: tl.constexpr,
) -> None:
    """One row per program."""
    row = tl.program_id(0).to(tl.int64)
    inverse, hard = inverse_tau(tau, tau_step, row)
    tile = tl.arange(0, TILES)
    here = tile < tiles
    at = parts + row * PARTS * tiles + tile
    q_part = tl.load(at, mask=here, other=-float("inf"))
    a_part = tl.load(at + 2 * tiles, mask=here, other=-float("inf"))
    beside = tl.load(at + tiles, mask=here, other=0.0)
    q_new, a_new = tl.max(q_part, axis=0), tl.max(a_part, axis=0)
    winner = tl.min(tl.where(q_part == q_new, tile, TILES), axis=0)
    shrink = tl.exp((q_part - finite(q_new)) * inverse)
    weight = beside + tl.where(q_part == -float("inf"), 0.0, 1.0)
    beside_new = tl.sum(tl.where(tile == winner, beside, weight * shrink).to(tl.float64), axis=0)
    lower = tl.where(a_part == -float("inf"), 0.0, a_part - finite(a_new))
    shifted = tl.load(at + 4 * tiles, mask=here, other=0.0)
    shifted_new = tl.sum((shrink * (shifted + weight * lower)).to(tl.float64), axis=0)
    mass = tl.load(at + 3 * tiles, mask=here, other=0.0) * tl.exp(a_part - finite(a_new))
    mass_new = tl.sum(mass.to(tl.float64), axis=0)
    at_winner = here & (tile == winner)
    peak_new = tl.sum(tl.load(peaks + row * tiles + tile, mask=at_winner, other=0), axis=0)
    a_peak_new = tl.sum(tl.load(at + 8 * tiles, mask=at_winner, other=0.0), axis=0)

    old = known + row * KNOWN
    later = first > 0
    q_old = tl.load(old, mask=later, other=-float("inf")).to(tl.float32)
    a_old = tl.load(old + 2, mask=later, other=-float("inf")).to(tl.float32)
    beside_old = tl.load(old + 1, mask=later, other=0.0)
    peak_old = tl.load(old + 9, mask=later, other=0.0).to(tl.int32)
    q_max, a_max = tl.maximum(q_old, q_new), tl.maximum(a_old, a_new)
    wins = q_new > q_old
    keep_old = tl.exp((q_old - finite(q_max)) * inverse)
    keep_new = tl.exp((q_new - finite(q_max)) * inverse)
    total_old = beside_old + tl.where(q_old == -float("inf"), 0.0, 1.0)
    total_new = beside_new + tl.where(q_new == -float("inf"), 0.0, 1.0)
    others = tl.where(
        wins, keep_old * total_old + beside_new, beside_old + keep_new * total_new
    )
    lower_old = tl.where(a_old == -float("inf"), 0.0, a_old - finite(a_max))
    lower_new = tl.where(a_new == -float("inf"), 0.0, a_new - finite(a_max))
    shifted_old = tl.load(old + 4, mask=later, other=0.0)
    shifted_sum = keep_old * (shifted_old + total_old * lower_old)
    shifted_sum += keep_new * (shifted_new + total_new * lower_new)
    mass_sum = tl.load(old + 3, mask=later, other=0.0) * tl.exp(a_old - finite(a_max))
    mass_sum += mass_new * tl.exp(a_new - finite(a_max))
    peak = tl.minimum(tl.where(wins, peak_new, peak_old), vocab - 1)
    a_peak = tl.where(wins, a_peak_new.to(tl.float64), tl.load(old + 8, mask=later, other=0.0))

    tl.store(old, q_max.to(tl.float64))
    tl.store(old + 1, others)
    tl.store(old + 2, a_max.to(tl.float64))
    tl.store(old + 3, mass_sum)
    tl.store(old + 4, shifted_sum)
    tl.store(old + 8, a_peak)
    tl.store(old + 9, peak.to(tl.float64))
    displaced = wins & (q_old != -float("inf")) & (hard == 0)
    tl.store(carry + row * 2, keep_old)
    tl.store(carry + row * 2 + 1, tl.where(displaced, keep_old, 0.0))
    tl.store(old_peaks + row, peak_old)

    # False for NaN, too.
    good = mass_sum > 0
    nan = tl.full((), float("nan"), tl.float64)
    total = 1.0 + others
    mean = tl.where(hard, a_peak - a_max, shifted_sum / total)
    log_prob_new = (mean - tl.log(mass_sum)).to(tl.float32)
    tl.store(log_prob + row, tl.where(good, log_prob_new, float("nan")))
    out = statistics + row * STATISTICS
    tl.store(out, tl.where(good, q_max.to(tl.float64), nan))
    tl.store(out + 1, tl.where(good, tl.where(hard, 1.0, 1.0 / total), nan))
    tl.store(out + 2, tl.where(good, a_max.to(tl.float64), nan))
    tl.store(out + 3, tl.where(good, 1.0 / mass_sum, nan))
    tl.store(out + 4, peak.to(tl.float64))
    count = _fold_sum(at + 5 * tiles, here, old + 5, later)
    tl.store(out + 5, count)
    sum_x = _fold_sum(at + 6 * tiles, here, old + 6, later)
    tl.store(out + 6, tl.where(good, 1.0 / sum_x, nan))
    sum_log_x = _fold_sum(at + 7 * tiles, here, old + 7, later)
    tl.store(out + 7, tl.where(good, sum_log_x, nan))


@triton.jit
def _fold_sum(
    part: tl.tensor,  # [TILES]
    here: tl.tensor,  # [TILES] bool
    known: tl.tensor,  # [] float64, written
    later: tl.tensor,
) -> tl.tensor:
    total = tl.sum(tl.load(part, mask=here, other=0.0).to(tl.float64), axis=0)
    total += tl.load(known, mask=later, other=0.0)
    tl.store(known, total)
    return total
