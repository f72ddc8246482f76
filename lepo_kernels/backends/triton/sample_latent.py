"""Triton kernels of the latent draw.

Contract: as the reference's, in float32. Up to top_k = 64 logits are read once, by one kernel, and
a second one, a program per row, finds the best entries from what the first one left (row_scan.py),
filters, perturbs and weighs them. For more entries keys of all logits are written, the vendor's
top-k sorts them, and a program per row works on what it found; rows come in chunks, which bounds
the memory. No tensor of the logits' size is made otherwise, unless their rows are not dense.

Nothing waits for the device unless values are checked. The noise's words are the reference's
exactly, and so is what is kept, but for an entry whose preceding mass is within rounding of top_p.
Every bit of a row is the same in any batch, layout and precision of the input: maxima and keys have
no order, and sums one that sizes alone give (sums.py).
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from lepo_kernels.backends.cuda.sample_latent import check_draw
from lepo_kernels.backends.reference.numerics import check_positive, per_row
from lepo_kernels.backends.triton.best_entries import NO_KEY, key_of, place_of, value_of
from lepo_kernels.backends.triton.latent_noise import gumbel_at
from lepo_kernels.backends.triton.latent_row import (
    CATEGORICAL,
    GAUSSIAN,
    mass_of,
    perturbed,
    shares_of_largest,
    sigma_of,
    soft_weights,
    stays,
    tau_of,
)
from lepo_kernels.backends.triton.launching import device_of
from lepo_kernels.backends.triton.row_scan import (
    BLOCK,
    GROUP,
    UNIT,
    best_of_rows,
    inverse_of,
    kept_entries,
    merged_statistics,
    row_scan_kernel,
)
from lepo_kernels.backends.triton.sums import ordered_sum

# Products are not fused into sums: else bits could differ between kernels and element types.
_UNFUSED = {"enable_fp_fusion": False}
# Tiles and warps; not measured on a GPU yet. IDS and the size of a small vocabulary are whole
# groups of row_scan.py.
_SCAN = {"ROWS": 1, "IDS": 4096, "num_warps": 8, **_UNFUSED}
_KEYS = {"ROWS": 1, "IDS": 2048, "num_warps": 4, **_UNFUSED}
_NARROW = {"ROWS": 1, **_UNFUSED}
_WIDE = {"ROWS": 1, "ENTRIES": 1024, "num_warps": 4, **_UNFUSED}
_PERTURB = {"ROWS": 1, "ENTRIES": 256, "num_warps": 4, **_UNFUSED}
# Of a row's statistics, read at once.
_UNITS = 512
_GROUPS = 512
# The most entries that one program selects; fewer than the least are as costly.
_NARROW_MOST, _NARROW_LEAST = 64, 16
# Keys of so many entries at a time: 256 MiB of them.
_CHUNK_ENTRIES = 1 << 25
_NOISES = {"none": 0, "gumbel": 1, "gaussian": 2, "dirichlet": 3, "categorical": 4}

_Outputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


@triton.jit
def _rows_of(
    block: tl.tensor,
    total_rows: tl.tensor,
    ROWS: tl.constexpr,
) -> tl.tensor:  # [ROWS] int64, [ROWS] bool
    """A program's rows, and which are there: one that is not is the last one, once more."""
    wanted = block * ROWS + tl.arange(0, ROWS)
    return tl.minimum(wanted, total_rows - 1).to(tl.int64), wanted < total_rows


@triton.jit
def _step_and_key(
    step: tl.tensor,  # [N] or [1]
    step_step: tl.tensor,
    row_keys: tl.tensor,  # [N], or None to number the rows
    rows: tl.tensor,  # [ROWS] int64
    first_row: tl.tensor,
) -> tl.tensor:  # [ROWS] int64, [ROWS] int64
    """What the noise of rows depends on, beside the seed."""
    keys = rows + first_row
    if row_keys is not None:
        keys = tl.load(row_keys + rows)
    return tl.load(step + rows * step_step), keys


# --- Narrow ---------------------------------------------------------------------------------------


@triton.jit
def narrow_latent_kernel(
    logits: tl.tensor,  # [N, V]
    row_stride: tl.tensor,
    temperature: tl.tensor,  # [N] or [1]
    temperature_step: tl.tensor,
    dropped: tl.tensor,  # [V] int8, or None
    units: tl.tensor,  # [N, 3, unit_count]
    blocks: tl.tensor,  # [N, blocks of group_count groups]
    groups: tl.tensor,  # [N, group_count]
    tau: tl.tensor,  # [N] or [1]
    tau_step: tl.tensor,
    seed: tl.tensor,  # []
    row_keys: tl.tensor,  # [N], or None to number the rows
    step: tl.tensor,  # [N] or [1]
    step_step: tl.tensor,
    ids: tl.tensor,  # [N, width], written, as all below
    weights: tl.tensor,  # [N, width]
    scores: tl.tensor,  # [N, width]
    values_at: tl.tensor,  # [N, width]
    count: tl.tensor,  # [N]
    lse: tl.tensor,  # [N]
    kept_lse: tl.tensor,  # [N]
    entropy: tl.tensor,  # [N]
    shadow: tl.tensor,  # [N]
    token: tl.tensor,  # [N]
    total_rows: tl.tensor,
    vocab: tl.tensor,
    unit_count: tl.tensor,
    group_count: tl.tensor,
    top_k: tl.tensor,
    width: tl.tensor,
    top_p: tl.tensor,
    log_min_p: tl.tensor,
    noise_scale: tl.tensor,
    clamp_low: tl.tensor,
    clamp_high: tl.tensor,
    draw_weight: tl.tensor,
    ROWS: tl.constexpr,
    UNITS: tl.constexpr,
    GROUPS: tl.constexpr,
    KEPT: tl.constexpr,
    NUCLEUS: tl.constexpr,
    NOISE: tl.constexpr,
) -> None:
    """One row per program: its statistics, its best entries, and all that is made of them."""
    rows, there = _rows_of(tl.program_id(0), total_rows, ROWS)
    lse_of_row, entropy_of_row = merged_statistics(units, rows, unit_count, UNITS)
    tl.store(lse + rows, lse_of_row, mask=there)
    tl.store(entropy + rows, entropy_of_row, mask=there)
    keys = best_of_rows(
        logits, row_stride, temperature, temperature_step, dropped, blocks, groups, rows, vocab,
        group_count, GROUPS, KEPT,
    )  # fmt: skip
    values, id = value_of(keys), place_of(keys)
    place = tl.arange(0, KEPT)[None, :]
    found = (place < top_k) & (values > -float("inf"))
    top = tl.max(values, axis=1)
    mass = mass_of(values, found, top)
    preceding = mass
    if NUCLEUS:
        share = (mass / ordered_sum(mass, KEPT)[:, None]).to(tl.float64)
        before = place[:, :, None] > place[:, None, :]
        shares = tl.where(before, share[:, None, :], 0.0)
        sums = ordered_sum(tl.reshape(shares, (ROWS * KEPT, KEPT)), KEPT)
        preceding = tl.reshape(sums, (ROWS, KEPT)).to(tl.float32)
    kept = stays(values, found, place, top, preceding, top_p, log_min_p, NUCLEUS)
    kept_count = tl.sum(kept.to(tl.int32), axis=1)
    kept_mass = ordered_sum(tl.where(kept, mass, 0.0), KEPT)
    # False for NaN, too.
    good = (tl.abs(lse_of_row) < float("inf")) & (kept_count > 0)
    first_id = tl.where(good, tl.sum(tl.where(place == 0, id, 0), axis=1), 0)
    nan = float("nan")
    tl.store(kept_lse + rows, tl.where(good, top + tl.log(kept_mass), nan), mask=there)
    tl.store(shadow + rows, first_id.to(tl.int64), mask=there)
    steps, row_key = _step_and_key(step, step_step, row_keys, rows, 0)
    seed_number = tl.load(seed)
    at = rows[:, None] * width + place
    if NOISE == CATEGORICAL:
        tl.store(count + rows, tl.where(good, width, 0), mask=there)
        weight = tl.where(good, draw_weight, nan)
        for draw in range(width):
            noise = gumbel_at(seed_number, steps, row_key, id, draw)
            score = tl.where(kept, values + noise, -float("inf"))
            picked = place_of(tl.max(key_of(score, place), axis=1))
            here = place == picked[:, None]
            id_there = tl.where(good, tl.sum(tl.where(here, id, 0), axis=1), 0)
            value = tl.where(good, tl.sum(tl.where(here, values, 0.0), axis=1), nan)
            out = rows * width + draw
            tl.store(ids + out, id_there.to(tl.int64), mask=there)
            tl.store(weights + out, weight, mask=there)
            tl.store(scores + out, value, mask=there)
            tl.store(values_at + out, value, mask=there)
            tl.store(token + rows, id_there.to(tl.int64), mask=there & (draw == 0))
    else:
        sigma = top
        if NOISE == GAUSSIAN:
            largest = tl.max(tl.where(kept, tl.abs(values), 0.0), axis=1)
            squares = ordered_sum(shares_of_largest(values, kept, largest), KEPT)
            sigma = sigma_of(largest, squares, kept_count, noise_scale)
        score = perturbed(
            values, id, kept, top, kept_mass, sigma, noise_scale, clamp_low, clamp_high,
            seed_number, steps, row_key, NOISE,
        )  # fmt: skip
        best = tl.max(key_of(score, id), axis=1)
        picked = place_of(best)
        divisor, hard = tau_of(tau, tau_step, rows)
        soft = soft_weights(score, kept, value_of(best), divisor)
        soft = soft / ordered_sum(soft, KEPT)[:, None]
        one_hot = tl.where(kept & (id == picked[:, None]), 1.0, 0.0)
        weight = tl.where(hard[:, None], one_hot, soft)
        tl.store(count + rows, tl.where(good, kept_count, 0), mask=there)
        tl.store(token + rows, tl.where(good, picked, 0).to(tl.int64), mask=there)
        inside = there[:, None] & (place < width)
        whole = good[:, None]
        id = tl.where(whole & kept, id, first_id[:, None])
        tl.store(ids + at, id.to(tl.int64), mask=inside)
        tl.store(weights + at, tl.where(whole, weight, nan), mask=inside)
        tl.store(scores + at, tl.where(whole, score, nan), mask=inside)
        values = tl.where(kept, values, -float("inf"))
        tl.store(values_at + at, tl.where(whole, values, nan), mask=inside)


# --- Wide -----------------------------------------------------------------------------------------


@triton.jit
def wide_keys_kernel(
    logits: tl.tensor,  # [N, V]
    row_stride: tl.tensor,
    temperature: tl.tensor,  # [N] or [1]
    temperature_step: tl.tensor,
    dropped: tl.tensor,  # [V] int8, or None
    keys: tl.tensor,  # [N, V], written
    total_rows: tl.tensor,
    vocab: tl.tensor,
    tiles: tl.tensor,
    ROWS: tl.constexpr,
    IDS: tl.constexpr,
) -> None:
    """A tile of rows and ids per program: their keys, those of excluded ids as of -inf."""
    rows, there = _rows_of(tl.program_id(0) // tiles, total_rows, ROWS)
    ids = (tl.program_id(0) % tiles * IDS + tl.arange(0, IDS))[None, :]
    inside = ids < vocab
    x = tl.load(logits + rows[:, None] * row_stride + ids, mask=inside, other=0.0).to(tl.float32)
    a = x * inverse_of(temperature, temperature_step, rows)[:, None]
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


@triton.jit
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
    rows, there = _rows_of(tl.program_id(0), total_rows, ROWS)
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


@triton.jit
def wide_perturb_kernel(
    keys: tl.tensor,  # [N, top_k], descending
    kept_count: tl.tensor,  # [N]
    numbers: tl.tensor,  # [N, 2]
    seed: tl.tensor,  # []
    row_keys: tl.tensor,  # [N], or None to number the rows
    step: tl.tensor,  # [N] or [1]
    step_step: tl.tensor,
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
    rows, there = _rows_of(tl.program_id(0), total_rows, ROWS)
    first = tl.program_id(1) * ENTRIES
    place, entries = _entries_at(keys, rows, top_k, first, ENTRIES)
    values, id = value_of(entries), place_of(entries)
    count = tl.load(kept_count + rows)
    kept, good = place < count[:, None], (count > 0)[:, None]
    first_key = tl.load(keys + rows * top_k)
    mass, sigma = tl.load(numbers + rows * 2), tl.load(numbers + rows * 2 + 1)
    steps, row_key = _step_and_key(step, step_step, row_keys, rows, first_row)
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


@triton.jit
def wide_weigh_kernel(
    ids: tl.tensor,  # [N, top_k]
    scores: tl.tensor,  # [N, top_k]
    kept_count: tl.tensor,  # [N]
    tau: tl.tensor,  # [N] or [1]
    tau_step: tl.tensor,
    weights: tl.tensor,  # [N, top_k], written, as all below
    token: tl.tensor,  # [N]
    total_rows: tl.tensor,
    top_k: tl.tensor,
    ROWS: tl.constexpr,
    ENTRIES: tl.constexpr,
) -> None:
    """One row per program: its best score, the sum of the weights, and the weights."""
    rows, there = _rows_of(tl.program_id(0), total_rows, ROWS)
    count = tl.load(kept_count + rows)
    best_keys = tl.full((ROWS, ENTRIES), NO_KEY, tl.int64)
    for first in range(0, tl.max(count), ENTRIES):
        place = first + tl.arange(0, ENTRIES)[None, :]
        score = _scores_at(scores, rows, top_k, place)
        id = tl.load(ids + rows[:, None] * top_k + place, mask=place < top_k, other=0)
        best_keys = tl.maximum(best_keys, key_of(score, id.to(tl.int32)))
    best_key = tl.max(best_keys, axis=1)
    picked, best = place_of(best_key), value_of(best_key)
    divisor, hard = tau_of(tau, tau_step, rows)
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


@triton.jit
def wide_draws_kernel(
    keys: tl.tensor,  # [N, top_k], descending
    kept_count: tl.tensor,  # [N]
    seed: tl.tensor,  # []
    row_keys: tl.tensor,  # [N], or None to number the rows
    step: tl.tensor,  # [N] or [1]
    step_step: tl.tensor,
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
    rows, there = _rows_of(tl.program_id(0), total_rows, ROWS)
    draw = tl.program_id(1)
    found = tl.load(kept_count + rows)
    steps, row_key = _step_and_key(step, step_step, row_keys, rows, first_row)
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


# --- Host -----------------------------------------------------------------------------------------


def sample_latent(
    logits: Tensor,  # [N, V]
    tau: Tensor,  # [N] or [1]
    temperature: Tensor,  # [N] or [1]
    top_k: int,  # in [1, V]
    top_p: float,
    min_p: float,
    noise: str,
    noise_scale: float,
    clamp_low: float,
    clamp_high: float,
    num_draws: int,
    exclude_ids: Tensor | None,  # [M]
    seed: Tensor,  # []
    row_keys: Tensor | None,  # [N]; None numbers the rows
    step: Tensor,  # [N] or [1]
) -> _Outputs:
    """Fields of `lepo_kernels.ops.sample_latent.LatentSample`, in its order."""
    check_positive("tau", tau, zero_included=True)
    check_positive("temperature", temperature)
    draw = _Draw(
        logits if logits.stride(1) == 1 else logits.contiguous(),
        tau.contiguous(),
        temperature.contiguous(),
        _dropped(exclude_ids, logits.shape[1]),
        seed,
        None if row_keys is None else row_keys.contiguous(),
        step.contiguous(),
        top_k,
        float(top_p),
        math.log(min_p) if min_p > 0 else -math.inf,
        _NOISES[noise],
        (noise_scale, clamp_low, clamp_high),
        num_draws,
    )
    fields = _empty_fields(draw)
    with device_of(logits):
        if draw.rows > 0 and top_k <= _NARROW_MOST:
            _narrow(draw, fields)
        elif draw.rows > 0:
            chunk = max(1, _CHUNK_ENTRIES // draw.vocab)
            for first in range(0, draw.rows, chunk):
                rows = slice(first, first + chunk)
                part: Any = tuple(x[rows] for x in fields)
                _wide(draw.part(rows), part)
    check_draw(fields, logits, noise, exclude_ids, step)
    return fields


@dataclass(frozen=True)
class _Draw:
    """The arguments of a draw, as the kernels take them."""

    logits: Tensor  # [N, V], entries of a row are neighbours
    tau: Tensor  # [N] or [1]
    temperature: Tensor  # [N] or [1]
    dropped: Tensor | None  # [V + 1] int8
    seed: Tensor  # []
    row_keys: Tensor | None  # [N]
    step: Tensor  # [N] or [1]
    top_k: int
    top_p: float
    log_min_p: float
    noise: int
    noise_numbers: tuple[float, float, float]  # scale, and the clamp's ends
    num_draws: int
    first_row: int = 0

    @property
    def rows(self) -> int:
        return self.logits.shape[0]

    @property
    def vocab(self) -> int:
        return self.logits.shape[1]

    @property
    def width(self) -> int:
        """Of the outputs."""
        return self.num_draws if self.noise == CATEGORICAL.value else self.top_k

    def part(self, rows: slice) -> "_Draw":
        """The draw of some of the rows."""
        return replace(
            self,
            logits=self.logits[rows],
            tau=per_row(self.tau, rows),
            temperature=per_row(self.temperature, rows),
            row_keys=None if self.row_keys is None else self.row_keys[rows],
            step=per_row(self.step, rows),
            first_row=self.first_row + rows.start,
        )

    def tempered(self) -> tuple[Any, ...]:
        """Arguments of a kernel, from the logits to the excluded ids."""
        stride = self.logits.stride(0)
        return self.logits, stride, self.temperature, _stride_of(self.temperature), self.dropped

    def key(self) -> tuple[Any, ...]:
        """Arguments of a kernel that the noise depends on."""
        return self.seed, self.row_keys, self.step, _stride_of(self.step)

    def filters(self) -> dict[str, bool]:
        return {"NUCLEUS": self.top_p < 1}


def _stride_of(per_row: Tensor) -> int:
    return 0 if per_row.numel() == 1 else 1


def _dropped(
    exclude_ids: Tensor | None,  # [M]
    vocab: int,
) -> Tensor | None:  # [vocab + 1] int8
    """1 for excluded ids; those out of range are all clamped to the last place, which is none."""
    if exclude_ids is None:
        return None
    flags = torch.zeros(vocab + 1, dtype=torch.int8, device=exclude_ids.device)
    return flags.index_fill_(0, exclude_ids.clamp(-1, vocab), 1)


def _empty_fields(draw: _Draw) -> _Outputs:
    rows, device = draw.rows, draw.logits.device

    def entries(dtype: torch.dtype) -> Tensor:
        return torch.empty(rows, draw.width, dtype=dtype, device=device)

    def per_row(dtype: torch.dtype) -> Tensor:
        return torch.empty(rows, dtype=dtype, device=device)

    real = torch.float32
    return (
        entries(torch.int64),
        *(entries(real), entries(real), entries(real)),
        per_row(torch.int32),
        *(per_row(real), per_row(real), per_row(real)),
        *(per_row(torch.int64), per_row(torch.int64)),
    )


def _options(table: dict[str, Any], rows: int, **most: int) -> dict[str, Any]:
    """Tiles of a table; rows, and what ``most`` names, are no more than need be."""
    options = dict(table)
    for name, needed in {"ROWS": rows, **most}.items():
        options[name] = min(options[name], triton.next_power_of_2(needed))
    return options


def _scan(draw: _Draw) -> tuple[Tensor, Tensor, Tensor]:  # [N, 3, units], [N, blocks], [N, groups]
    """What row_scan.py leaves of the rows."""
    rows, vocab = draw.rows, draw.vocab
    options = _options(_SCAN, rows, IDS=max(GROUP.value, vocab))
    tiles = triton.cdiv(vocab, options["IDS"])
    padded = tiles * options["IDS"]
    empty = torch.empty(0, dtype=torch.float32, device=draw.logits.device)
    units = empty.new_empty(rows, 3, padded // UNIT.value)
    blocks = empty.new_empty(rows, padded // BLOCK.value)
    groups = empty.new_empty(rows, padded // GROUP.value)
    row_scan_kernel[(triton.cdiv(rows, options["ROWS"]) * tiles,)](
        *draw.tempered(), units, blocks, groups, rows, vocab, tiles, **options
    )
    return units, blocks, groups


def _narrow(
    draw: _Draw,
    fields: _Outputs,  # written
) -> None:
    rows, (units, blocks, groups) = draw.rows, _scan(draw)
    unit_count, group_count = units.shape[2], groups.shape[1]
    kept = triton.next_power_of_2(max(_NARROW_LEAST, draw.top_k))
    options = _options(_NARROW, rows)
    narrow_latent_kernel[(triton.cdiv(rows, options["ROWS"]),)](
        *draw.tempered(),
        units,
        blocks,
        groups,
        draw.tau,
        _stride_of(draw.tau),
        *draw.key(),
        *fields,
        rows,
        draw.vocab,
        unit_count,
        group_count,
        draw.top_k,
        draw.width,
        draw.top_p,
        draw.log_min_p,
        *draw.noise_numbers,
        1 / draw.num_draws,
        UNITS=min(_UNITS, triton.next_power_of_2(unit_count)),
        GROUPS=max(kept, min(_GROUPS, triton.next_power_of_2(group_count))),
        KEPT=kept,
        NOISE=draw.noise,
        num_warps=8 if kept == _NARROW_MOST else 4,
        **draw.filters(),
        **options,
    )


def _wide(
    draw: _Draw,
    fields: _Outputs,  # written
) -> None:
    ids, weights, scores, values_at, count, lse, kept_lse, entropy, shadow, token = fields
    rows, top_k, device = draw.rows, draw.top_k, draw.logits.device
    units, _, _ = _scan(draw)
    keys = _sorted_keys(draw)
    options = _options(_WIDE, rows, ENTRIES=top_k)
    grid = (triton.cdiv(rows, options["ROWS"]),)
    kept_count = torch.empty(rows, dtype=torch.int32, device=device)
    numbers = torch.empty(rows, 2, dtype=torch.float32, device=device)
    wide_filter_kernel[grid](
        keys,
        units,
        kept_count,
        numbers,
        lse,
        kept_lse,
        entropy,
        shadow,
        rows,
        units.shape[2],
        top_k,
        draw.top_p,
        draw.log_min_p,
        draw.noise_numbers[0],
        UNITS=min(_UNITS, triton.next_power_of_2(units.shape[2])),
        NOISE=draw.noise,
        **draw.filters(),
        **options,
    )
    if draw.noise == CATEGORICAL.value:
        wide_draws_kernel[(*grid, draw.width)](
            keys,
            kept_count,
            *draw.key(),
            *(ids, weights, scores, values_at, count, token),
            rows,
            draw.first_row,
            top_k,
            draw.width,
            1 / draw.num_draws,
            **options,
        )
        return
    count.copy_(kept_count)
    tiles = _options(_PERTURB, rows, ENTRIES=top_k)
    programs = (triton.cdiv(rows, tiles["ROWS"]), triton.cdiv(top_k, tiles["ENTRIES"]))
    wide_perturb_kernel[programs](
        keys,
        kept_count,
        numbers,
        *draw.key(),
        *(ids, scores, values_at),
        rows,
        draw.first_row,
        top_k,
        *draw.noise_numbers,
        NOISE=draw.noise,
        **tiles,
    )
    wide_weigh_kernel[grid](
        *(ids, scores, kept_count),
        draw.tau,
        _stride_of(draw.tau),
        *(weights, token),
        rows,
        top_k,
        **options,
    )


def _sorted_keys(draw: _Draw) -> Tensor:  # [N, top_k] int64
    """Keys of the best entries, descending: all keys differ, so that any sort is the same."""
    keys = torch.empty(draw.rows, draw.vocab, dtype=torch.int64, device=draw.logits.device)
    options = _options(_KEYS, draw.rows, IDS=draw.vocab)
    tiles = triton.cdiv(draw.vocab, options["IDS"])
    wide_keys_kernel[(triton.cdiv(draw.rows, options["ROWS"]) * tiles,)](
        *draw.tempered(), keys, draw.rows, draw.vocab, tiles, **options
    )
    return keys.topk(draw.top_k).values
