"""What Triton kernels compute with logits in registers, in float32."""

import torch
import triton
import triton.language as tl

LOWEST = tl.constexpr(torch.finfo(torch.float32).min)
# A term this far below the largest one is 0: its distance does not matter, but may not be infinite.
_MOST_NEGATIVE_SHIFT = tl.constexpr(-128.0)
# A probability up to 1e-30 is 0 to any sum.
_SPECK = tl.constexpr(1e-30)
_LOG_SPECK = tl.constexpr(-80.0)


@triton.jit
def tanh(x: tl.tensor) -> tl.tensor:
    """tanh(x), with a relative error of 0.75 * 2^-23 below 0.35, and of 4.5 * 2^-23 beyond it.

    Triton has none of its own. Below, a series, since the quotient would cancel: what it leaves out
    is at most 2^-26 of x. Beyond, the quotient doubles what exp errs by: two units on a GPU.
    """
    square = x * x
    series = 62.0 / 2835.0 - square * (1382.0 / 155925.0)
    series = -17.0 / 315.0 + square * series
    series = 2.0 / 15.0 + square * series
    series = x + x * square * (-1.0 / 3.0 + square * series)
    e = tl.exp(-2.0 * tl.abs(x))
    quotient = (1.0 - e) / (1.0 + e)
    return tl.where(tl.abs(x) < 0.35, series, tl.where(x < 0, -quotient, quotient))


@triton.jit
def biased(
    x: tl.tensor,  # float32
    bias: tl.tensor,  # [C], or anything without HAS_BIAS
    columns: tl.tensor,  # of one row, to be broadcast
    inside: tl.tensor,  # like columns, bool
    HAS_BIAS: tl.constexpr,
) -> tl.tensor:
    """x + bias"""
    if HAS_BIAS:
        x += tl.load(bias + columns, mask=inside, other=0.0)
    return x


@triton.jit
def capped(
    x: tl.tensor,  # float32
    softcap: tl.tensor,
    CAPPED: tl.constexpr,
) -> tl.tensor:
    """softcap tanh(x / softcap)"""
    if CAPPED:
        x = softcap * tanh(x / softcap)
    return x


@triton.jit
def times_slope(
    x: tl.tensor,
    cap: tl.tensor,  # cap(y)
    softcap: tl.tensor,
    CAPPED: tl.constexpr,
) -> tl.tensor:
    """x cap'(y)"""
    if CAPPED:
        t = cap / softcap
        x *= 1.0 - t * t
    return x


@triton.jit
def state_of(
    a: tl.tensor,  # [..., COLUMNS] float32, -inf where there is no entry
) -> tl.tensor:  # [...], [...], [...]
    """Largest entry, sum of weights, and sum of weights times distances, along the last axis."""
    axis: tl.constexpr = len(a.shape) - 1
    # Finite where all is -inf, so that there is no inf - inf; NaN is left out: the sums will tell.
    largest = tl.maximum(tl.max(a, axis=axis), LOWEST)
    shift = a - tl.expand_dims(largest, axis)
    term = tl.exp(shift)
    weighted = tl.sum(term * tl.maximum(shift, _MOST_NEGATIVE_SHIFT), axis=axis)
    return largest, tl.sum(term, axis=axis), weighted


@triton.jit
def merged_states(
    largest: tl.tensor,  # [...]
    mass: tl.tensor,
    weighted: tl.tensor,
    other_largest: tl.tensor,
    other_mass: tl.tensor,
    other_weighted: tl.tensor,
) -> tl.tensor:  # [...], [...], [...]
    """The state of what two states are of."""
    top = tl.maximum(largest, other_largest)
    shift, other_shift = largest - top, other_largest - top
    scale, other_scale = tl.exp(shift), tl.exp(other_shift)
    shift = tl.maximum(shift, _MOST_NEGATIVE_SHIFT)
    other_shift = tl.maximum(other_shift, _MOST_NEGATIVE_SHIFT)
    weighted = scale * (weighted + shift * mass)
    weighted += other_scale * (other_weighted + other_shift * other_mass)
    return top, scale * mass + other_scale * other_mass, weighted


@triton.jit
def softmax_gradient(
    a: tl.tensor,  # float32
    lse: tl.tensor,  # those of its rows, to be broadcast
    entropy: tl.tensor,
    gamma: tl.tensor,
    eta: tl.tensor,
) -> tl.tensor:
    """gamma pi - eta pi (log pi + H)"""
    log_pi = a - lse
    # Not tl.maximum, which would leave NaN out.
    log_pi = tl.where(log_pi < _LOG_SPECK, _LOG_SPECK, log_pi)
    pi = tl.exp(log_pi)
    pi = tl.where(pi <= _SPECK, 0.0, pi)
    return pi * (gamma - eta * (log_pi + entropy))
