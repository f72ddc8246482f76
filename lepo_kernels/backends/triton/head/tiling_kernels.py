"""How the programs of a product share its tiles, and what each does with its own."""

import triton
import triton.language as tl

# Blocks of rows that are worked on together, so that what they read stays in the cache.
_GROUP = tl.constexpr(16)


@triton.jit
def grouped(
    program: tl.tensor,
    tall: tl.tensor,
    wide: tl.tensor,
) -> tl.tensor:
    """Which of ``tall`` times ``wide`` blocks a program has: groups of tall ones, side by side."""
    group = program // (_GROUP * wide)
    inside = program % (_GROUP * wide)
    height = tl.minimum(tall - group * _GROUP, _GROUP)
    return group * _GROUP + inside % height, inside // height


@triton.jit
def _halves(
    x: tl.tensor,  # [TALL, WIDE]
    TALL: tl.constexpr,
    WIDE: tl.constexpr,
) -> tl.tensor:  # [TALL, WIDE / 2], [TALL, WIDE / 2]
    """Left and right: no number changes its thread."""
    return tl.split(tl.permute(tl.reshape(x, (TALL, 2, WIDE // 2)), (0, 2, 1)))


@triton.jit
def pieces_of(
    x: tl.tensor,  # [TALL, WIDE]
    TALL: tl.constexpr,
    WIDE: tl.constexpr,
    PIECES: tl.constexpr,
) -> tl.tensor:  # PIECES times [TALL, WIDE / PIECES]
    """Cut into neighbouring columns."""
    tl.static_assert(PIECES == 2 or PIECES == 4)
    left, right = _halves(x, TALL, WIDE)
    if PIECES == 2:
        pieces = (left, right)
    else:
        pieces = _halves(left, TALL, WIDE // 2) + _halves(right, TALL, WIDE // 2)
    return pieces
