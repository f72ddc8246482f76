"""The latent draw for any number of entries: what comes before and after the vendor's top-k.

Contract: keys of all entries are written, 8 bytes each; of the keys that the top-k found, in
descending order, one program per row finds how many the filters leave, and their sums. Then all
programs work on blocks of them. Sums over a row are float64, in an order that sizes alone give.
"""

import triton
import triton.language as tl

from lepo_kernels.backends.triton.common.sum_kernels import ordered_sum
from lepo_kernels.backends.triton.latent.best_entry_kernels import (
    NO_KEY,
    key_of,
    place_of,
    value_of,
)
from lepo_kernels.backends.triton.latent.noise_kernels import gumbel_at
from lepo_kernels.backends.triton.latent.row_kernels import (
    GAUSSIAN,
    mass_of,
    perturbed,
    rows_of,
    shares_of_largest,
    sigma_of,
    soft_weights,
    stays,
    step_and_key,
    tau_of,
)
from lepo_kernels.backends.triton.latent.row_scan_kernels import (
    inverse_of,
    kept_entries,
    merged_statistics,
)


@triton.jit(do_not_specialize=["total_rows"])
def wide_keys_kernel(
    logits: tl.tensor,  # [N, V]
    row_stride: tl.tensor,
    temperature: tl.tensor,  # [N] or [1]
    stride_temperature: tl.tensor,
    dropped: tl.tensor,  # [V] int8, or None
    keys: tl.tensor,  # [N, V], written
    total_rows: tl.tensor,
    vocab: tl.tensor,
    tiles: tl.tensor,
    ROWS: tl.constexpr,
    IDS: tl.constexpr,
) -> None:
    """A tile of rows and ids per program: their keys, those of excluded ids as of -inf."""
    rows, there = rows_of(tl.program_id(0) // tiles, total_rows, ROWS)
    ids = (tl.program_id(0) % tiles * IDS + tl.arange(0, IDS))[None, :]
    inside = ids < vocab
    x = tl.load(logits + rows[:, None] * row_stride + ids, mask=inside, other=0.0).to(tl.float32)
    a = x * inverse_of(temperature, stride_temperature, rows)[:, None]
    found = key_of(kept_entries(a, dropped, ids, inside), ids)
    tl.store(keys + rows[:, None] * vocab + ids, found, mask=inside & there[:, None])


@triton.jit
def _entries_at(
    keys: tl.tensor,  # [N, top_k]
    rows: tl.tensor,  # [ROWS] int64
    top_k: tl.tensor,
    first: tl.tensor,
    ENTRIES: tl.constexpr,
) -> tl.tensor:  # [1, ENTRIES], [ROWS, ENTRIES]
    """Places from ``first`` on, and their keys; those of -inf behind the last one."""
    place = first + tl.arange(0, ENTRIES)[None, :]
    return place, tl.load(keys + rows[:, None] * top_k + place, mask=place < top_k, other=NO_KEY)


@triton.jit(do_not_specialize=["total_rows"])
def wide_filter_kernel(
    keys: tl.tensor,  # [N, top_k], descending
    units: tl.tensor,  # [N, 3, unit_count]
    kept_count: tl.tensor,  # [N] int32, written, as all below; 0 for bad rows
    numbers: tl.tensor,  # [N, 2], mass of the kept entries and sigma
    lse: tl.tensor,  # [N]
    kept_lse: tl.tensor,  # [N]
    entropy: tl.tensor,  # [N]
    shadow: tl.tensor,  # [N]
    total_rows: tl.tensor,
    unit_count: tl.tensor,
    top_k: tl.tensor,
    top_p: tl.tensor,
    log_min_p: tl.tensor,
    noise_scale: tl.tensor,
    ROWS: tl.constexpr,
    ENTRIES: tl.constexpr,
    UNITS: tl.constexpr,
    NUCLEUS: tl.constexpr,
    NOISE: tl.constexpr,
) -> None:
    """One row per program: its statistics, and how many of its entries the filters leave."""
    rows, there = rows_of(tl.program_id(0), total_rows, ROWS)
    lse_of_row, entropy_of_row = merged_statistics(units, rows, unit_count, UNITS)
    tl.store(lse + rows, lse_of_row, mask=there)
    tl.store(entropy + rows, entropy_of_row, mask=there)
    first_key = tl.load(keys + rows * top_k)
    top = value_of(first_key)

    scale = tl.full((ROWS,), 1.0, tl.float32)
    if NUCLEUS:
        total = tl.zeros((ROWS, ENTRIES), tl.float64)
        for first in range(0, top_k, ENTRIES):
            _, entries = _entries_at(keys, rows, top_k, first, ENTRIES)
            values = value_of(entries)
            total += mass_of(values, values > -float("inf"), top)
        scale = ordered_sum(total, ENTRIES).to(tl.float32)
    count = tl.zeros((ROWS,), tl.int32)
    before = tl.zeros((ROWS,), tl.float64)
    for first in range(0, top_k, ENTRIES):
        place, entries = _entries_at(keys, rows, top_k, first, ENTRIES)
        values = value_of(entries)
        found = values > -float("inf")
        preceding = values
        if NUCLEUS:
            share = (mass_of(values, found, top) / scale[:, None]).to(tl.float64)
            preceding = (before[:, None] + tl.cumsum(share, axis=1) - share).to(tl.float32)
            before += ordered_sum(share, ENTRIES)
        kept = stays(values, found, place, top, preceding, top_p, log_min_p, NUCLEUS)
        count += tl.sum(kept.to(tl.int32), axis=1)
    count = tl.where(tl.abs(lse_of_row) < float("inf"), count, 0)

    mass = tl.zeros((ROWS, ENTRIES), tl.float64)
    size = tl.zeros((ROWS, ENTRIES), tl.float32)
    for first in range(0, tl.max(count), ENTRIES):
        place, entries = _entries_at(keys, rows, top_k, first, ENTRIES)
        values, kept = value_of(entries), place < count[:, None]
        mass += mass_of(values, kept, top)
        size = tl.maximum(size, tl.where(kept, tl.abs(values), 0.0))
    kept_mass = ordered_sum(mass, ENTRIES)
    sigma = top
    if NOISE == GAUSSIAN:
        largest = tl.max(size, axis=1)
        squares = tl.zeros((ROWS, ENTRIES), tl.float64)
        for first in range(0, tl.max(count), ENTRIES):
            place, entries = _entries_at(keys, rows, top_k, first, ENTRIES)
            squares += shares_of_largest(value_of(entries), place < count[:, None], largest)
        total_squares = ordered_sum(squares, ENTRIES).to(tl.float32)
        sigma = sigma_of(largest, total_squares, count, noise_scale)
    good = count > 0
    log_mass = (top.to(tl.float64) + tl.log(kept_mass)).to(tl.float32)
    tl.store(kept_lse + rows, tl.where(good, log_mass, float("nan")), mask=there)
    first_id = tl.where(good, place_of(first_key), 0)
    tl.store(shadow + rows, first_id.to(tl.int64), mask=there)
    tl.store(kept_count + rows, count, mask=there)
    tl.store(numbers + rows * 2, kept_mass.to(tl.float32), mask=there)
    tl.store(numbers + rows * 2 + 1, sigma, mask=there)


@triton.jit(do_not_specialize=["total_rows", "first_row"])
def wide_perturb_kernel(
    keys: tl.tensor,  # [N, top_k], descending
    kept_count: tl.tensor,  # [N]
    numbers: tl.tensor,  # [N, 2]
    seed: tl.tensor,  # []
    row_keys: tl.tensor,  # [N], or None to number the rows
    step: tl.tensor,  # [N] or [1]
    stride_step: tl.tensor,
    ids: tl.tensor,  # [N, top_k], written, as all below
    scores: tl.tensor,  # [N, top_k]
    values_at: tl.tensor,  # [N, top_k]
    total_rows: tl.tensor,
    first_row: tl.tensor,
    top_k: tl.tensor,
    noise_scale: tl.tensor,
    clamp_low: tl.tensor,
    clamp_high: tl.tensor,
    ROWS: tl.constexpr,
    ENTRIES: tl.constexpr,
    NOISE: tl.constexpr,
) -> None:
    """A row and a block of its entries per program."""
    rows, there = rows_of(tl.program_id(0), total_rows, ROWS)
    first = tl.program_id(1) * ENTRIES
    place, entries = _entries_at(keys, rows, top_k, first, ENTRIES)
    values, id = value_of(entries), place_of(entries)
    count = tl.load(kept_count + rows)
    kept, good = place < count[:, None], (count > 0)[:, None]
    first_key = tl.load(keys + rows * top_k)
    mass, sigma = tl.load(numbers + rows * 2), tl.load(numbers + rows * 2 + 1)
    steps, row_key = step_and_key(step, stride_step, row_keys, rows, first_row)
    score = perturbed(
        values, id, kept, value_of(first_key), mass, sigma, noise_scale, clamp_low, clamp_high,
        tl.load(seed), steps, row_key, NOISE,
    )  # fmt: skip
    nan = float("nan")
    at, inside = rows[:, None] * top_k + place, there[:, None] & (place < top_k)
    id = tl.where(kept, id, place_of(first_key)[:, None])
    tl.store(ids + at, tl.where(good, id, 0).to(tl.int64), mask=inside)
    tl.store(scores + at, tl.where(good, score, nan), mask=inside)
    values = tl.where(kept, values, -float("inf"))
    tl.store(values_at + at, tl.where(good, values, nan), mask=inside)


@triton.jit
def _scores_at(
    scores: tl.tensor,  # [N, top_k]
    rows: tl.tensor,  # [ROWS] int64
    top_k: tl.tensor,
    place: tl.tensor,  # [1, ENTRIES]
) -> tl.tensor:  # [ROWS, ENTRIES]
    """Scores, -inf behind the last one. The mask depends on no row: loads stay wide."""
    at = rows[:, None] * top_k + place
    return tl.load(scores + at, mask=place < top_k, other=-float("inf"))


@triton.jit(do_not_specialize=["total_rows"])
def wide_weigh_kernel(
    ids: tl.tensor,  # [N, top_k]
    scores: tl.tensor,  # [N, top_k]
    kept_count: tl.tensor,  # [N]
    tau: tl.tensor,  # [N] or [1]
    stride_tau: tl.tensor,
    weights: tl.tensor,  # [N, top_k], written, as all below
    token: tl.tensor,  # [N]
    total_rows: tl.tensor,
    top_k: tl.tensor,
    ROWS: tl.constexpr,
    ENTRIES: tl.constexpr,
) -> None:
    """One row per program: its best score, the sum of the weights, and the weights."""
    rows, there = rows_of(tl.program_id(0), total_rows, ROWS)
    count = tl.load(kept_count + rows)
    best_keys = tl.full((ROWS, ENTRIES), NO_KEY, tl.int64)
    for first in range(0, tl.max(count), ENTRIES):
        place = first + tl.arange(0, ENTRIES)[None, :]
        score = _scores_at(scores, rows, top_k, place)
        id = tl.load(ids + rows[:, None] * top_k + place, mask=place < top_k, other=0)
        best_keys = tl.maximum(best_keys, key_of(score, id.to(tl.int32)))
    best_key = tl.max(best_keys, axis=1)
    picked, best = place_of(best_key), value_of(best_key)
    divisor, hard = tau_of(tau, stride_tau, rows)
    total = tl.zeros((ROWS, ENTRIES), tl.float64)
    for first in range(0, tl.max(count), ENTRIES):
        place = first + tl.arange(0, ENTRIES)[None, :]
        score = _scores_at(scores, rows, top_k, place)
        total += soft_weights(score, place < count[:, None], best, divisor)
    sum_of_row = ordered_sum(total, ENTRIES).to(tl.float32)[:, None]
    good = (count > 0)[:, None]
    for first in range(0, top_k, ENTRIES):
        place = first + tl.arange(0, ENTRIES)[None, :]
        score, kept = _scores_at(scores, rows, top_k, place), place < count[:, None]
        at = rows[:, None] * top_k + place
        id = tl.load(ids + at, mask=place < top_k, other=0)
        one_hot = tl.where(kept & (id == picked[:, None]), 1.0, 0.0)
        soft = soft_weights(score, kept, best, divisor) / sum_of_row
        weight = tl.where(hard[:, None], one_hot, soft)
        inside = there[:, None] & (place < top_k)
        tl.store(weights + at, tl.where(good, weight, float("nan")), mask=inside)
    tl.store(token + rows, tl.where(count > 0, picked, 0).to(tl.int64), mask=there)


@triton.jit(do_not_specialize=["total_rows", "first_row"])
def wide_draws_kernel(
    keys: tl.tensor,  # [N, top_k], descending
    kept_count: tl.tensor,  # [N]
    seed: tl.tensor,  # []
    row_keys: tl.tensor,  # [N], or None to number the rows
    step: tl.tensor,  # [N] or [1]
    stride_step: tl.tensor,
    ids: tl.tensor,  # [N, width], written, as all below
    weights: tl.tensor,  # [N, width]
    scores: tl.tensor,  # [N, width]
    values_at: tl.tensor,  # [N, width]
    count: tl.tensor,  # [N]
    token: tl.tensor,  # [N]
    total_rows: tl.tensor,
    first_row: tl.tensor,
    top_k: tl.tensor,
    width: tl.tensor,
    draw_weight: tl.tensor,
    ROWS: tl.constexpr,
    ENTRIES: tl.constexpr,
) -> None:
    """A row and one of its categorical draws per program."""
    rows, there = rows_of(tl.program_id(0), total_rows, ROWS)
    draw = tl.program_id(1)
    found = tl.load(kept_count + rows)
    steps, row_key = step_and_key(step, stride_step, row_keys, rows, first_row)
    seed_number = tl.load(seed)
    best = tl.full((ROWS, ENTRIES), NO_KEY, tl.int64)
    for first in range(0, tl.max(found), ENTRIES):
        place, entries = _entries_at(keys, rows, top_k, first, ENTRIES)
        score = value_of(entries) + gumbel_at(seed_number, steps, row_key, place_of(entries), draw)
        score = tl.where(place < found[:, None], score, -float("inf"))
        best = tl.maximum(best, key_of(score, place))
    good = found > 0
    picked = tl.load(keys + rows * top_k + tl.where(good, place_of(tl.max(best, axis=1)), 0))
    nan = float("nan")
    id = tl.where(good, place_of(picked), 0).to(tl.int64)
    value = tl.where(good, value_of(picked), nan)
    weight = tl.where(good, draw_weight, nan)
    out = rows * width + draw
    tl.store(ids + out, id, mask=there)
    tl.store(weights + out, weight, mask=there)
    tl.store(scores + out, value, mask=there)
    tl.store(values_at + out, value, mask=there)
    if draw == 0:
        tl.store(token + rows, id, mask=there)
        tl.store(count + rows, tl.where(good, width, 0), mask=there)
