"""Where a score or a loss has a corner: the derivative there is ours to define.

Order of kinks: at a corner the subgradient is the derivative from the inside, that is, from where
the value still moves; an edge belongs to its range. `torch.clamp` and `torch.minimum` have
derivatives at their edges and ties that differ between versions of torch, so nothing that is
differentiated is written with them.
"""

import math

from torch import Tensor


def clip(x: Tensor, low: float = -math.inf, high: float = math.inf) -> Tensor:
    """``x`` bounded to [low, high]; the derivative is 1 inside and at the edges, 0 outside.

    NaN stays NaN.

    Args:
        x: any shape, floating point.
        low: lower bound, may be -inf.
        high: upper bound, at least ``low``, may be inf.
    """
    return x.masked_fill(x < low, low).masked_fill(x > high, high)
