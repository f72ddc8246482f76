"""Sums whose bits do not depend on how a tile lies in registers.

Contract: neighbours are added, then neighbouring sums, and so on: a tree that the size alone gives.
Triton's own order follows the layout, and with it the element type and the alignment of what was
loaded.
"""

import triton
import triton.language as tl


@triton.constexpr_function
def log2(count: int) -> int:
    """Of a power of two, while a kernel is compiled."""
    return count.bit_length() - 1


@triton.jit
def ordered_sum(
    x: tl.tensor,  # [ROWS, COUNT], powers of two
    COUNT: tl.constexpr,
) -> tl.tensor:  # [ROWS]
    """Sums of rows."""
    rows: tl.constexpr = x.shape[0]
    for level in tl.static_range(log2(COUNT)):
        pairs = tl.reshape(x, (rows, COUNT >> (level + 1), 2))
        # Two numbers have but one sum.
        x = tl.sum(pairs, axis=2)
    return tl.reshape(x, (rows,))
