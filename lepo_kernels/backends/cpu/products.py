"""Matrix products of the CPU kernels: torch's in float32, or csrc/cpu/bfloat16_products.cpp.

Contract: sums are formed in float32. `Float32Products` take float32 factors: one of half precision
is widened first, which is exact. `BFloat16Products` take factors of bfloat16 as they are, and round
what is float32 (weights, and gradients of logits) to bfloat16: each by up to 2^-9 of itself, as
plain torch in bfloat16 does. So logits are as exact in either, and products with what was rounded
are off by up to 2^-9 of the sum of their terms' magnitudes. Numbers below 2^-126 may count as 0.
`products_for` decides by dtypes and by the instruction set in use, never by timing: all runs and
ranks on machines of a kind compute alike. Processors with AMX keep to float32 (not tried: torch's
bfloat16 products are fast there, but round logits). Bits of `BFloat16Products` depend neither on
the number of threads nor on how many rows are multiplied.
"""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from lepo_kernels import native


class Factor(NamedTuple):
    """A matrix [outer, inner] as a product takes it; ``inner`` is summed over."""

    data: Tensor
    outer: int
    inner: int


class Products(Protocol):
    """How ``left @ right^T`` is computed."""

    # What factors are widened to before they are handed over; those computed are float32.
    dtype: torch.dtype

    def left(self, x: Tensor) -> Factor:
        """A left factor, [M, K]."""

    def right(self, x: Tensor) -> Factor:
        """A right factor, [N, K]."""

    def multiply(
        self,
        left: Factor,  # [M, K]
        right: Factor,  # [N, K]
        out: Tensor,  # [M, N], rows dense
        add: bool = False,
    ) -> Tensor:  # [M, N]
        """Write ``left @ right^T`` to ``out``, or add it there."""


class Float32Products:
    """torch's, of float32 matrices."""

    dtype = torch.float32

    def left(self, x: Tensor) -> Factor:
        """The matrix itself."""
        return Factor(x, *x.shape)

    right = left

    def multiply(self, left: Factor, right: Factor, out: Tensor, add: bool = False) -> Tensor:
        """Write ``left @ right^T`` to ``out``, or add it there."""
        if add:
            return out.addmm_(left.data, right.data.T)
        return torch.mm(left.data, right.data.T, out=out)


class BFloat16Products:
    """Ours, of bfloat16 matrices; ``out`` is float32, or bfloat16 that nothing is added to."""

    dtype = torch.bfloat16

    def left(self, x: Tensor) -> Factor:
        """Packed for the left side."""
        return _pack(x, True)

    def right(self, x: Tensor) -> Factor:
        """Packed for the right side."""
        return _pack(x, False)

    def multiply(self, left: Factor, right: Factor, out: Tensor, add: bool = False) -> Tensor:
        """Write ``left @ right^T`` to ``out``, or add it there."""
        torch.ops.lepo_kernels_cpu.bfloat16_multiply(left.data, right.data, left.inner, add, out)
        return out


def products_for(*factors: Tensor) -> Products:
    """The way that serves factors of these dtypes on this machine."""
    half = all(x.dtype == torch.bfloat16 for x in factors)
    if half and native.cpu_capability() == "avx512_bf16":
        return BFloat16Products()
    return Float32Products()


def _pack(x: Tensor, left: bool) -> Factor:
    if 1 not in x.stride():
        x = x.contiguous()
    size = torch.ops.lepo_kernels_cpu.bfloat16_packed_size(*x.shape, left)
    packed = torch.empty(size, dtype=torch.int32)
    torch.ops.lepo_kernels_cpu.bfloat16_pack(x, left, packed)
    return Factor(packed, *x.shape)
