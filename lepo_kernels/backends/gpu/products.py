"""Matrix products that are summed in float32."""

import torch
from torch import Tensor


def wide_product(
    left: Tensor,  # [A, B]
    right: Tensor,  # [B, C]
    out: Tensor | None = None,  # [A, C] float32, written
) -> Tensor:  # [A, C] float32
    """The matrix product in float32."""
    if left.is_cuda and left.dtype != torch.float32:
        return torch.mm(left, right, out_dtype=torch.float32, out=out)
    # The simulated library's tensors: what the line above gives on a GPU.
    return torch.mm(left.float(), right.float(), out=out)


def add_product(
    total: Tensor,  # [A, C] float32, changed in place
    left: Tensor,  # [A, B]
    right: Tensor,  # [B, C]
) -> None:
    """``total += left @ right``, in the product's own pass over it."""
    if left.is_cuda and left.dtype != torch.float32:
        torch.addmm(total, left, right, out_dtype=torch.float32, out=total)
    else:
        total.addmm_(left.float(), right.float())
