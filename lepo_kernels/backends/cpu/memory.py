"""Memory of the CPU kernels' outputs: csrc/cpu/bindings/memory.cpp."""

import torch
from torch import Tensor

# The C library never keeps a block of this size for later: it is mapped for this tensor and
# unmapped with it, so that advice on its pages touches nothing else.
_OWN_MAPPING_BYTES = 1 << 25


def fresh(shape: tuple[int, ...] | torch.Size, dtype: torch.dtype) -> Tensor:
    """An uninitialised contiguous tensor; a large one lies on huge pages if the system has them.

    The first write to a page of memory costs a fault, and that can take longer than the matrix
    product whose result is written.
    """
    x = torch.empty(shape, dtype=dtype)
    if x.nbytes >= _OWN_MAPPING_BYTES:
        torch.ops.lepo_kernels_cpu.advise_huge_pages(x)
    return x
