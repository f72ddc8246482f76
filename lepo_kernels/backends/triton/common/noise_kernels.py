"""The counter-based noise inside Triton kernels.

Contract: the words of (seed, row key, step, id, draw) are those of `lepo_kernels.philox_words`, bit
for bit; uniform, exponential and Gumbel numbers are those of the reference up to the rounding of
the logarithm, to the end of the upper tail. A tile of neighbouring ids has draw 0.
"""

import triton
import triton.language as tl


@triton.jit
def words_tile(
    seed: tl.tensor,
    steps: tl.tensor,  # [ROWS] int64
    row_keys: tl.tensor,  # [ROWS] int64
    first: tl.tensor,  # the tile's first id, a multiple of 4
    ROWS: tl.constexpr,
    IDS: tl.constexpr,
) -> tl.tensor:  # [ROWS, IDS] uint32
    """The words that the noise is made of."""
    none = tl.zeros((ROWS, IDS // 4), tl.uint32)
    blocks = none + (first // 4 + tl.arange(0, IDS // 4)).to(tl.uint32)[None, :]
    low, high = row_keys.to(tl.uint32)[:, None], (row_keys >> 32).to(tl.uint32)[:, None]
    first_word, second, third, fourth = tl.philox(
        seed, blocks, none + steps.to(tl.uint32)[:, None], none + low, none + high
    )
    # As rows of two by two, in the order of their ids.
    words = tl.join(tl.join(first_word, third), tl.join(second, fourth))
    return tl.reshape(words, (ROWS, IDS))


@triton.jit
def block_at(
    seed: tl.tensor,
    steps: tl.tensor,  # [ROWS] int64
    row_keys: tl.tensor,  # [ROWS] int64
    ids: tl.tensor,  # [ROWS, IDS], any
    draw: tl.tensor,
) -> tl.tensor:  # four of [ROWS, IDS] uint32
    """The Philox blocks of single ids: the words of id // 4 * 4 and of the three behind it."""
    none = tl.zeros(ids.shape, tl.uint32)
    return tl.philox(
        seed,
        ids.to(tl.uint32) // 4 + draw * (1 << 24),
        none + steps.to(tl.uint32)[:, None],
        none + row_keys.to(tl.uint32)[:, None],
        none + (row_keys >> 32).to(tl.uint32)[:, None],
    )


@triton.jit
def words_at(
    seed: tl.tensor,
    steps: tl.tensor,  # [ROWS] int64
    row_keys: tl.tensor,  # [ROWS] int64
    ids: tl.tensor,  # [ROWS, IDS], any
    draw: tl.tensor,
) -> tl.tensor:  # [ROWS, IDS] uint32
    """The words of single ids, at one Philox block each."""
    first, second, third, fourth = block_at(seed, steps, row_keys, ids, draw)
    even = tl.where(ids & 2 != 0, third, first)
    odd = tl.where(ids & 2 != 0, fourth, second)
    return tl.where(ids & 1 != 0, odd, even)


@triton.jit
def uniform(
    words: tl.tensor,  # uint32
) -> tl.tensor:
    """Numbers in (0, 1), neither of which is ever reached."""
    return tl.minimum((words.to(tl.float32) + 0.5) * (2.0**-32), 1.0 - 2.0**-24)


@triton.jit
def exponential(
    words: tl.tensor,  # uint32
) -> tl.tensor:
    """Exponential(1) numbers, ``-log1p(-v)``, with ``v`` as the reference has it.

    Triton has no log1p of its own. With ``u = 1 - v`` rounded, ``log(u) v / (1 - u)`` is it: both
    quotients err by the same factor, since ``1 - u`` is exact.
    """
    v = uniform(words)
    u = 1.0 - v
    lost = u == 1.0
    return tl.where(lost, v, -tl.log(u) * (v / tl.where(lost, 1.0, 1.0 - u)))
