"""The latent draw of up to 64 entries: a program per row, behind one scan of the logits.

Contract: the best entries are found from what row_scan_kernels.py left, and stay in registers until
they are written. Sums over them are float32 (the mass before an entry float64), in an order that
their number alone gives.
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
    CATEGORICAL,
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
from lepo_kernels.backends.triton.latent.row_scan_kernels import best_of_rows, merged_statistics


@triton.jit
def _preceding(
    mass: tl.tensor,  # [ROWS, KEPT]
    place: tl.tensor,  # [1, KEPT]
    KEPT: tl.constexpr,
) -> tl.tensor:  # [ROWS, KEPT]
    """The mass before each entry, of 1."""
    rows: tl.constexpr = mass.shape[0]
    share = (mass / ordered_sum(mass, KEPT)[:, None]).to(tl.float64)
    before = place[:, :, None] > place[:, None, :]
    shares = tl.where(before, share[:, None, :], 0.0)
    sums = ordered_sum(tl.reshape(shares, (rows * KEPT, KEPT)), KEPT)
    return tl.reshape(sums, (rows, KEPT)).to(tl.float32)


@triton.jit
def _write_draws(
    keys: tl.tensor,  # [ROWS, KEPT], descending
    values: tl.tensor,  # [ROWS, KEPT]
    id: tl.tensor,  # [ROWS, KEPT]
    place: tl.tensor,  # [1, KEPT]
    kept: tl.tensor,  # [ROWS, KEPT] bool
    good: tl.tensor,  # [ROWS] bool
    seed: tl.tensor,
    steps: tl.tensor,  # [ROWS]
    row_key: tl.tensor,  # [ROWS]
    rows: tl.tensor,  # [ROWS]
    there: tl.tensor,  # [ROWS] bool
    ids: tl.tensor,  # [N, width], written, as all below
    weights: tl.tensor,  # [N, width]
    scores: tl.tensor,  # [N, width]
    values_at: tl.tensor,  # [N, width]
    count: tl.tensor,  # [N]
    token: tl.tensor,  # [N]
    width: tl.tensor,
    draw_weight: tl.tensor,
) -> None:
    """Categorical draws: the place of the largest of values with Gumbel noise."""
    nan = float("nan")
    weight = tl.where(good, draw_weight, nan)
    for draw in range(width):
        score = values + gumbel_at(seed, steps, row_key, id, draw)
        score = tl.where(kept, score, -float("inf"))
        best = tl.max(key_of(score, place), axis=1)
        picked = tl.max(tl.where(place == place_of(best)[:, None], keys, NO_KEY), axis=1)
        drawn = tl.where(good, place_of(picked), 0).to(tl.int64)
        value = tl.where(good, value_of(picked), nan)
        out = rows * width + draw
        tl.store(ids + out, drawn, mask=there)
        tl.store(weights + out, weight, mask=there)
        tl.store(scores + out, value, mask=there)
        tl.store(values_at + out, value, mask=there)
        if draw == 0:
            tl.store(token + rows, drawn, mask=there)
    tl.store(count + rows, tl.where(good, width, 0), mask=there)


@triton.jit
def _write_weights(
    values: tl.tensor,  # [ROWS, KEPT]
    id: tl.tensor,  # [ROWS, KEPT]
    place: tl.tensor,  # [1, KEPT]
    score: tl.tensor,  # [ROWS, KEPT], -inf where not kept
    kept: tl.tensor,  # [ROWS, KEPT] bool
    kept_count: tl.tensor,  # [ROWS]
    good: tl.tensor,  # [ROWS] bool
    first_id: tl.tensor,  # [ROWS]
    tau: tl.tensor,  # [N] or [1]
    stride_tau: tl.tensor,
    rows: tl.tensor,  # [ROWS]
    there: tl.tensor,  # [ROWS] bool
    ids: tl.tensor,  # [N, width], written, as all below
    weights: tl.tensor,  # [N, width]
    scores: tl.tensor,  # [N, width]
    values_at: tl.tensor,  # [N, width]
    count: tl.tensor,  # [N]
    token: tl.tensor,  # [N]
    width: tl.tensor,
    KEPT: tl.constexpr,
) -> None:
    """softmax(scores / tau), and all that has an entry of it beside it."""
    best = tl.max(key_of(score, id), axis=1)
    picked = place_of(best)
    tl.store(count + rows, tl.where(good, kept_count, 0), mask=there)
    tl.store(token + rows, tl.where(good, picked, 0).to(tl.int64), mask=there)
    divisor, hard = tau_of(tau, stride_tau, rows)
    soft = soft_weights(score, kept, value_of(best), divisor)
    soft = soft / ordered_sum(soft, KEPT)[:, None]
    one_hot = tl.where(kept & (id == picked[:, None]), 1.0, 0.0)
    weight = tl.where(hard[:, None], one_hot, soft)
    value = tl.where(kept, values, -float("inf"))
    nan, whole = float("nan"), good[:, None]
    at, inside = rows[:, None] * width + place, there[:, None] & (place < width)
    tl.store(ids + at, tl.where(whole & kept, id, first_id[:, None]).to(tl.int64), mask=inside)
    tl.store(weights + at, tl.where(whole, weight, nan), mask=inside)
    tl.store(scores + at, tl.where(whole, score, nan), mask=inside)
    tl.store(values_at + at, tl.where(whole, value, nan), mask=inside)


@triton.jit(do_not_specialize=["total_rows"])
def narrow_latent_kernel(
    logits: tl.tensor,  # [N, V]
    row_stride: tl.tensor,
    temperature: tl.tensor,  # [N] or [1]
    stride_temperature: tl.tensor,
    dropped: tl.tensor,  # [V] int8, or None
    units: tl.tensor,  # [N, 3, unit_count]
    blocks: tl.tensor,  # [N, blocks of group_count groups]
    groups: tl.tensor,  # [N, group_count]
    tau: tl.tensor,  # [N] or [1]
    stride_tau: tl.tensor,
    seed: tl.tensor,  # []
    row_keys: tl.tensor,  # [N], or None to number the rows
    step: tl.tensor,  # [N] or [1]
    stride_step: tl.tensor,
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
    rows, there = rows_of(tl.program_id(0), total_rows, ROWS)
    lse_of_row, entropy_of_row = merged_statistics(units, rows, unit_count, UNITS)
    tl.store(lse + rows, lse_of_row, mask=there)
    tl.store(entropy + rows, entropy_of_row, mask=there)
    keys = best_of_rows(
        logits, row_stride, temperature, stride_temperature, dropped, blocks, groups, rows, vocab,
        group_count, GROUPS, KEPT,
    )  # fmt: skip
    values, id = value_of(keys), place_of(keys)
    place = tl.arange(0, KEPT)[None, :]
    found = (place < top_k) & (values > -float("inf"))
    top = tl.max(values, axis=1)
    mass = mass_of(values, found, top)
    preceding = mass
    if NUCLEUS:
        preceding = _preceding(mass, place, KEPT)
    kept = stays(values, found, place, top, preceding, top_p, log_min_p, NUCLEUS)
    kept_count = tl.sum(kept.to(tl.int32), axis=1)
    kept_mass = ordered_sum(tl.where(kept, mass, 0.0), KEPT)
    # False for NaN, too.
    good = (tl.abs(lse_of_row) < float("inf")) & (kept_count > 0)
    first_id = tl.where(good, place_of(tl.max(keys, axis=1)), 0)
    nan = float("nan")
    tl.store(kept_lse + rows, tl.where(good, top + tl.log(kept_mass), nan), mask=there)
    tl.store(shadow + rows, first_id.to(tl.int64), mask=there)
    steps, row_key = step_and_key(step, stride_step, row_keys, rows, 0)
    seed_number = tl.load(seed)
    if NOISE == CATEGORICAL:
        _write_draws(
            keys, values, id, place, kept, good, seed_number, steps, row_key, rows, there, ids,
            weights, scores, values_at, count, token, width, draw_weight,
        )  # fmt: skip
    else:
        sigma = top
        if NOISE == GAUSSIAN:
            size = tl.max(tl.where(kept, tl.abs(values), 0.0), axis=1)
            squares = ordered_sum(shares_of_largest(values, kept, size), KEPT)
            sigma = sigma_of(size, squares, kept_count, noise_scale)
        score = perturbed(
            values, id, kept, top, kept_mass, sigma, noise_scale, clamp_low, clamp_high,
            seed_number, steps, row_key, NOISE,
        )  # fmt: skip
        _write_weights(
            values, id, place, score, kept, kept_count, good, first_id, tau, stride_tau, rows,
            there, ids, weights, scores, values_at, count, token, width, KEPT,
        )  # fmt: skip
