"""The best entries of rows, ordered by (value descending, place ascending).

Contract: a key is an int64 number, the value's monotone bits above the reversed place, so that keys
of a row differ and sorting them orders ties, too. Zeros of both signs are equal. Keys of -inf are
never kept by a caller: beyond a row's end they fill tiles, with any place.
"""

import triton
import triton.language as tl

from lepo_kernels.backends.triton.common.sum_kernels import log2

# The key of -inf at the highest place.
NO_KEY = tl.constexpr((-(2**31) + 0x7FFFFF) << 32)


@triton.jit
def key_of(
    value: tl.tensor,  # float32
    place: tl.tensor,  # int32
) -> tl.tensor:  # int64
    """Greater for a greater value, and of equal values for the lower place."""
    # Zeros of both signs as one.
    bits = tl.where(value == 0.0, 0.0, value).to(tl.int32, bitcast=True)
    monotone = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    return (monotone.to(tl.int64) << 32) | (place ^ 0x7FFFFFFF).to(tl.int64)


@triton.jit
def value_of(
    keys: tl.tensor,  # int64
) -> tl.tensor:  # float32
    """What `key_of` was given."""
    monotone = (keys >> 32).to(tl.int32)
    bits = tl.where(monotone < 0, monotone ^ 0x7FFFFFFF, monotone)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def place_of(
    keys: tl.tensor,  # int64
) -> tl.tensor:  # int32
    """What `key_of` was given."""
    return (keys & 0x7FFFFFFF).to(tl.int32) ^ 0x7FFFFFFF


@triton.jit
def _exchanged(
    keys: tl.tensor,  # [ROWS, COUNT]
    COUNT: tl.constexpr,
    DISTANCE: tl.constexpr,
    RUN: tl.constexpr,
) -> tl.tensor:  # [ROWS, COUNT]
    """One step of a bitonic network: runs descend and ascend in turn, the first one descends."""
    rows: tl.constexpr = keys.shape[0]
    pairs = tl.reshape(keys, (rows, COUNT // (2 * DISTANCE), 2, DISTANCE))
    # The sum may wrap, and comes back.
    partners = tl.reshape(tl.sum(pairs, axis=2, keep_dims=True) - pairs, (rows, COUNT))
    place = tl.arange(0, COUNT)[None, :]
    first, descends = (place & DISTANCE) == 0, (place & RUN) == 0
    return tl.where((keys > partners) == (first == descends), keys, partners)


@triton.jit
def largest(
    keys: tl.tensor,  # [ROWS, COUNT]
    COUNT: tl.constexpr,
    KEPT: tl.constexpr,  # at most COUNT, both powers of two
) -> tl.tensor:  # [ROWS, KEPT], descending
    """The largest of each row: runs are sorted, then two of them are merged into one's best."""
    rows: tl.constexpr = keys.shape[0]
    steps: tl.constexpr = log2(KEPT)
    halvings: tl.constexpr = log2(COUNT // KEPT)
    for size in tl.static_range(1, steps + 1):
        for i in tl.static_range(size):
            keys = _exchanged(keys, COUNT, 1 << (size - 1 - i), 1 << size)
    for halving in tl.static_range(halvings):
        # A run that descends beside one that ascends: the larger ones are the best, and bitonic.
        pairs = tl.reshape(keys, (rows, COUNT // KEPT >> (halving + 1), 2, KEPT))
        keys = tl.reshape(tl.max(pairs, axis=2), (rows, COUNT >> (halving + 1)))
        for i in tl.static_range(steps):
            keys = _exchanged(keys, COUNT >> (halving + 1), KEPT >> (i + 1), KEPT)
    return keys
