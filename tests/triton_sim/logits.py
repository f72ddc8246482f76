"""A kernel that shows the tanh of the softcaps, which otherwise stays inside of others."""

import triton
import triton.language as tl

from lepo_kernels.backends.triton.common.logit_kernels import tanh


@triton.jit
def tanhs(
    numbers,  # [count]
    out,  # [count]
    count,
    BLOCK: tl.constexpr,
):
    at = tl.arange(0, BLOCK)
    inside = at < count
    tl.store(out + at, tanh(tl.load(numbers + at, mask=inside, other=0.0)), mask=inside)
