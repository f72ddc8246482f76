"""What the narrow and the wide kernels make of a row's best entries.

Contract: formulas are the reference's, number for number, up to rounding. A score depends on its
entry and on the row's statistics alone, so that it may be computed in any tile.
"""

import torch
import triton
import triton.language as tl

from lepo_kernels.backends.triton.latent.noise_kernels import gumbel_at, log_gamma_at, normal_at

GUMBEL = tl.constexpr(1)
GAUSSIAN = tl.constexpr(2)
DIRICHLET = tl.constexpr(3)
CATEGORICAL = tl.constexpr(4)
_ALPHA_FLOOR = tl.constexpr(1e-6)
_LARGEST = tl.constexpr(torch.finfo(torch.float32).max)
_TINY = tl.constexpr(torch.finfo(torch.float32).tiny)


@triton.jit
def rows_of(
    block: tl.tensor,
    total_rows: tl.tensor,
    ROWS: tl.constexpr,
) -> tl.tensor:  # [ROWS] int64, [ROWS] bool
    """A program's rows, and which are there: one that is not is the last one, once more."""
    wanted = block * ROWS + tl.arange(0, ROWS)
    return tl.minimum(wanted, total_rows - 1).to(tl.int64), wanted < total_rows


@triton.jit
def step_and_key(
    step: tl.tensor,  # [N] or [1]
    stride_step: tl.tensor,
    row_keys: tl.tensor,  # [N], or None to number the rows
    rows: tl.tensor,  # [ROWS] int64
    first_row: tl.tensor,
) -> tl.tensor:  # [ROWS] int64, [ROWS] int64
    """What the noise of rows depends on, beside the seed."""
    keys = rows + first_row
    if row_keys is not None:
        keys = tl.load(row_keys + rows)
    return tl.load(step + rows * stride_step), keys


@triton.jit
def mass_of(
    values: tl.tensor,  # [ROWS, ENTRIES]
    counted: tl.tensor,  # [ROWS, ENTRIES] bool
    top: tl.tensor,  # [ROWS], the largest value of each row
) -> tl.tensor:  # [ROWS, ENTRIES]
    """exp(value - top), 0 where an entry does not count."""
    return tl.where(counted, tl.exp(values - top[:, None]), 0.0)


@triton.jit
def stays(
    values: tl.tensor,  # [ROWS, ENTRIES]
    found: tl.tensor,  # [ROWS, ENTRIES] bool
    place: tl.tensor,  # [1, ENTRIES]
    top: tl.tensor,  # [ROWS]
    preceding: tl.tensor,  # [ROWS, ENTRIES]: the mass before an entry, of 1
    top_p: tl.tensor,
    log_min_p: tl.tensor,
    NUCLEUS: tl.constexpr,
) -> tl.tensor:  # [ROWS, ENTRIES] bool
    """Which entries the filters leave: of those found, a prefix that holds the first."""
    near = values - top[:, None] >= log_min_p
    if NUCLEUS:
        near = near & (preceding < top_p)
    return found & (near | (place == 0))


@triton.jit
def sigma_of(
    largest: tl.tensor,  # [ROWS], of the kept entries' sizes
    squares: tl.tensor,  # [ROWS], sum of (value / largest)^2
    count: tl.tensor,  # [ROWS]
    noise_scale: tl.tensor,
) -> tl.tensor:  # [ROWS]
    """Deviation of Gaussian noise, from the root mean square of the kept entries; finite."""
    rms = largest * tl.sqrt(squares / tl.maximum(count, 1).to(tl.float32))
    return tl.minimum(noise_scale * rms, _LARGEST)


@triton.jit
def shares_of_largest(
    values: tl.tensor,  # [ROWS, ENTRIES]
    kept: tl.tensor,  # [ROWS, ENTRIES] bool
    largest: tl.tensor,  # [ROWS]
) -> tl.tensor:  # [ROWS, ENTRIES]
    """(value / largest)^2 of the kept entries: no square overflows."""
    divisor = tl.where(largest == 0.0, 1.0, largest)[:, None]
    shares = tl.where(kept, values, 0.0) / divisor
    return shares * shares


@triton.jit
def perturbed(
    values: tl.tensor,  # [ROWS, ENTRIES]
    ids: tl.tensor,  # [ROWS, ENTRIES]
    kept: tl.tensor,  # [ROWS, ENTRIES] bool
    top: tl.tensor,  # [ROWS]
    mass: tl.tensor,  # [ROWS], of the kept entries
    sigma: tl.tensor,  # [ROWS]
    noise_scale: tl.tensor,
    clamp_low: tl.tensor,
    clamp_high: tl.tensor,
    seed: tl.tensor,
    steps: tl.tensor,  # [ROWS]
    row_keys: tl.tensor,  # [ROWS]
    NOISE: tl.constexpr,
) -> tl.tensor:  # [ROWS, ENTRIES]
    """Scores, -inf where an entry is not kept."""
    scores = values
    if NOISE == GUMBEL:
        noise = gumbel_at(seed, steps, row_keys, ids, 0)
        scores = values + tl.minimum(tl.maximum(noise, clamp_low), clamp_high)
    if NOISE == GAUSSIAN:
        # No inf - inf between the scores.
        noise = sigma[:, None] * normal_at(seed, steps, row_keys, ids, 0)
        scores = tl.minimum(tl.maximum(values + noise, -_LARGEST), _LARGEST)
    if NOISE == DIRICHLET:
        alpha = noise_scale * (mass_of(values, kept, top) / mass[:, None]) + _ALPHA_FLOOR
        scores = log_gamma_at(seed, steps, row_keys, ids, alpha)
    return tl.where(kept, scores, -float("inf"))


@triton.jit
def tau_of(
    tau: tl.tensor,  # [N] or [1]
    stride_tau: tl.tensor,
    rows: tl.tensor,  # [ROWS] int64
) -> tl.tensor:  # [ROWS], [ROWS] bool
    """Divisors, and which rows have all their weight on the token."""
    values = tl.load(tau + rows * stride_tau).to(tl.float32)
    hard = values < _TINY
    return tl.where(hard, 1.0, values), hard


@triton.jit
def soft_weights(
    scores: tl.tensor,  # [ROWS, ENTRIES]
    kept: tl.tensor,  # [ROWS, ENTRIES] bool
    best: tl.tensor,  # [ROWS], the largest score
    tau: tl.tensor,  # [ROWS]
) -> tl.tensor:  # [ROWS, ENTRIES]
    """exp((score - best) / tau), of sum 1 where it is divided by its sum."""
    return tl.where(kept, tl.exp((scores - best[:, None]) / tau[:, None]), 0.0)
