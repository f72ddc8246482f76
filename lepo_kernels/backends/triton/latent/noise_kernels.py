"""The random numbers of a row's entries.

Contract: the words are those of `lepo_kernels.philox_words`; the numbers made of them are the
reference's, up to float32 rounding.
"""

import math

import triton
import triton.language as tl

from lepo_kernels.backends.triton.common.noise_kernels import (
    block_at,
    exponential,
    uniform,
    words_at,
)

_QUARTER = tl.constexpr(math.pi / 2)
# A round accepts with probability above 0.95: 8 rounds fail once in 10^10.
_GAMMA_ROUNDS = tl.constexpr(8)


@triton.jit
def gumbel_at(
    seed: tl.tensor,
    steps: tl.tensor,  # [ROWS]
    row_keys: tl.tensor,  # [ROWS]
    ids: tl.tensor,  # [ROWS, IDS]
    draw: tl.tensor,
) -> tl.tensor:  # [ROWS, IDS]
    """Gumbel(0, 1) numbers."""
    return -tl.log(exponential(words_at(seed, steps, row_keys, ids, draw)))


@triton.jit
def normal_at(
    seed: tl.tensor,
    steps: tl.tensor,  # [ROWS]
    row_keys: tl.tensor,  # [ROWS]
    ids: tl.tensor,  # [ROWS, IDS]
    draw: tl.tensor,
) -> tl.tensor:  # [ROWS, IDS]
    """Normal(0, 1) by Box-Muller: even ids take r cos, odd ids r sin of their pair."""
    first, second, third, fourth = block_at(seed, steps, row_keys, ids, draw)
    upper = ids & 2 != 0
    radius = tl.sqrt(2.0 * exponential(tl.where(upper, third, first)))
    # The sine is the cosine of a quarter less.
    quarters = (ids & 1).to(tl.int32)
    return radius * _cosine(uniform(tl.where(upper, fourth, second)), quarters)


@triton.jit
def _cosine(
    turn: tl.tensor,  # in (0, 1)
    quarters: tl.tensor,  # int32
) -> tl.tensor:
    """Cosine of 2 pi times the turn, less some quarters.

    A turn is exactly cut into quarters and a rest of at most an eighth; a GPU's own sine would keep
    local memory for angles of any size. Both series end below a float32's unit.
    """
    nearest = tl.floor(4.0 * turn + 0.5)
    x = (4.0 * turn - nearest) * _QUARTER
    y = x * x
    sine = y * (-1 / 5040 + y * (1 / 362880))
    sine = x + x * (y * (-1 / 6 + y * (1 / 120) + y * sine))
    cosine = y * (-1 / 720 + y * (1 / 40320 - y * (1 / 3628800)))
    cosine = 1.0 + y * (-0.5 + y * (1 / 24 + cosine))
    quarter = (nearest.to(tl.int32) - quarters) & 3
    value = tl.where((quarter & 1) != 0, sine, cosine)
    return tl.where((quarter == 1) | (quarter == 2), -value, value)


@triton.jit
def log_gamma_at(
    seed: tl.tensor,
    steps: tl.tensor,  # [ROWS]
    row_keys: tl.tensor,  # [ROWS]
    ids: tl.tensor,  # [ROWS, IDS]
    alpha: tl.tensor,  # [ROWS, IDS], positive
) -> tl.tensor:  # [ROWS, IDS]
    """Logarithms of Gamma(alpha, 1) numbers, after Marsaglia and Tsang (2000).

    Below 1, log Gamma(alpha) = log Gamma(alpha + 1) - Exponential / alpha: in logarithms it neither
    underflows nor divides by 0.
    """
    boost = alpha < 1.0
    d = tl.where(boost, alpha + 1.0, alpha) - 1 / 3
    c = 1.0 / tl.sqrt(9.0 * d)
    log_v = tl.zeros(ids.shape, tl.float32)
    undecided = alpha > 0.0
    for i in range(_GAMMA_ROUNDS):
        x = normal_at(seed, steps, row_keys, ids, 1 + 2 * i)
        drawn = exponential(words_at(seed, steps, row_keys, ids, 2 + 2 * i))
        root = 1.0 + c * x
        proposal = 3.0 * tl.log(tl.maximum(root, 1e-30))
        bound = 0.5 * (x * x) + d * (1.0 - tl.exp(proposal) + proposal)
        accepted = undecided & (root > 0.0) & (-drawn < bound)
        log_v = tl.where(accepted, proposal, log_v)
        undecided = undecided & (accepted == 0)
    extra = exponential(words_at(seed, steps, row_keys, ids, 0)) / alpha
    return tl.log(d) + log_v - tl.where(boost, extra, 0.0)
