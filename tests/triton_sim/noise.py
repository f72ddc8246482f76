"""Kernels that show the noise, which otherwise stays inside of others."""

import triton
import triton.language as tl

from lepo_kernels.backends.triton.common.noise_kernels import exponential, words_tile


@triton.jit
def words(
    seed,  # []
    row_keys,  # [4]
    steps,  # [4]
    out,  # [4, IDS] int64
    first,
    IDS: tl.constexpr,
):
    rows = tl.arange(0, 4)
    found = words_tile(
        tl.load(seed), tl.load(steps + rows), tl.load(row_keys + rows), first, 4, IDS
    )
    at = rows[:, None] * IDS + tl.arange(0, IDS)[None, :]
    tl.store(out + at, found.to(tl.int64))


@triton.jit
def numbers(
    words,  # [count] int64
    exponentials,  # [count]
    gumbels,  # [count]
    count,
    BLOCK: tl.constexpr,
):
    at = tl.arange(0, BLOCK)
    inside = at < count
    e = exponential(tl.load(words + at, mask=inside, other=0).to(tl.uint32))
    tl.store(exponentials + at, e, mask=inside)
    tl.store(gumbels + at, -tl.log(e), mask=inside)
