"""What a result may be off by: an error model, so that no tolerance is fitted to one machine.

A sum of n numbers in float32 loses a rounding per addition, each up to u = 2^-24 of the partial sum
that it rounds. In the worst case these add up to n u times the sum of the numbers' magnitudes; as
roundings go either way, they are a random walk of sqrt(n) steps (Higham and Mary, SIAM J. Sci.
Comput. 41, 2019), in any order of summation. Uniform roundings have the deviation u / sqrt(3), so
that two sqrt(n) u are more than three deviations of the least favourable order, whose largest
number comes first, and six of a sum of like numbers. Beside that each number is itself the result
of a few operations: a product, an exponential of two units in the last place, a scale.

A result of half precision is rounded once more, by half a unit of itself, or below the smallest
normal number by half of the smallest one.
"""

import math

import torch
from torch import Tensor

# Of float32.
UNIT_ROUNDOFF = 2.0**-24
# Of a number that is summed: what its own few operations may lose, in unit roundoffs.
TERM = 8.0


def sum_error(terms: int) -> float:
    """What a float32 sum of ``terms`` numbers may be off by, relative to their magnitudes' sum."""
    return (TERM + 2 * math.sqrt(terms)) * UNIT_ROUNDOFF


def rounding(dtype: torch.dtype) -> float:
    """Of one rounding to ``dtype``, relative to the number: 0 of what sums are formed in anyway."""
    return torch.finfo(dtype).eps / 2 if dtype.itemsize == 2 else 0.0


def smallest_rounding(dtype: torch.dtype) -> float:
    """Of one rounding of a number near 0 to ``dtype``; 0 of what sums are formed in anyway."""
    return torch.finfo(dtype).smallest_normal * rounding(dtype)


def assert_within(ours: Tensor, exact: Tensor, terms: int, magnitude: Tensor | float) -> None:
    """Elementwise: a float32 sum of ``terms`` numbers, rounded to the dtype of ``ours``.

    Args:
        ours: any shape; float64 is held to the same model with its own unit.
        exact: the shape of ``ours``: the float64 result, or the same sum in another order, to which
            the model applies twice (give twice the magnitude).
        terms: of the longest sum.
        magnitude: sum of the magnitudes of the terms: for all, or broadcast to the shape.

    Raises:
        AssertionError: an entry is further off, or not finite where the other one is.
    """
    assert ours.shape == exact.shape
    wide = ours.dtype == torch.float64
    unit = torch.finfo(torch.float64).eps / 2 / UNIT_ROUNDOFF if wide else 1.0
    allowed = unit * sum_error(terms) * torch.as_tensor(magnitude).detach().double()
    finite = exact.isfinite()
    assert torch.equal(ours.isfinite(), finite)
    size = exact.detach().double().abs().masked_fill(~finite, 0)
    rounded = (rounding(ours.dtype) * size).clamp(min=smallest_rounding(ours.dtype))
    allowed = allowed + rounded
    error = (ours.detach().double() - exact.detach().double()).abs().masked_fill(~finite, 0)
    excess = error - allowed
    if excess.numel() == 0:
        return
    worst = int(excess.argmax())
    assert excess.flatten()[worst] <= 0, (
        f"entry {worst}: off by {error.flatten()[worst]:.3g}, "
        f"{allowed.expand_as(error).flatten()[worst]:.3g} allowed"
    )


def assert_no_worse_than_plain(
    ours: Tensor,
    plain: Tensor,
    oracle: Tensor,
    dtype: torch.dtype,
    terms: int,
    magnitude: Tensor | None = None,
) -> None:
    """The error of ``ours`` is that of plain torch, and what another order of summation may lose.

    Both errors are taken against float64, in two norms, the largest entry and the root mean square:
    which single entry is unlucky differs between two orders, how unlucky they are as a whole does
    not. The norm of ours may be twice plain torch's, which takes in its luck, too. In half
    precision plain torch is itself a rounding of each step, and its root mean square counts once;
    ours may add one unit, half of which is the rounding of the result, and the float32 sum.

    Args:
        ours: any shape.
        plain: the plain torch expression in ``dtype``.
        oracle: an independent float64 one.
        dtype: the coarsest that any input or output has.
        terms: of the longest sum.
        magnitude: sums of the magnitudes of the terms, of the shape of ``oracle``; None takes the
            results themselves, where little cancels.

    Raises:
        AssertionError: the error is larger.
    """
    assert ours.shape == oracle.shape
    ours, plain, oracle = (x.detach().double() for x in (ours, plain, oracle))
    size = oracle.abs() if magnitude is None else magnitude.detach().double()
    for name, norm in (("largest", _largest), ("root mean square", _root_mean_square)):
        mine, theirs = norm(ours - oracle), norm(plain - oracle)
        share = 1 if dtype.itemsize == 2 and norm is _root_mean_square else 2
        allowed = share * theirs + sum_error(terms) * norm(size)
        allowed += 2 * rounding(dtype) * norm(oracle)
        assert mine <= allowed, (
            f"{name} error {mine:.3g}, plain torch's {theirs:.3g}, {allowed:.3g} allowed"
        )


def _largest(x: Tensor) -> float:
    return float(x.abs().max()) if x.numel() else 0.0


def _root_mean_square(x: Tensor) -> float:
    return float(x.square().mean().sqrt()) if x.numel() else 0.0
