"""What kernels of every backend do with rows before and after their work."""

import torch
from torch import Tensor


def dense_rows(x: Tensor) -> Tensor:  # [rows, columns]
    """``x``, copied if entries of a row are not neighbours; rows may lie apart, or be the same."""
    return x if x.stride(1) == 1 else x.contiguous()


def has_coefficients(
    grad_logits: Tensor,  # [N, K]
    grad_lse: Tensor,  # [N]
    grad_entropy: Tensor,  # [N]
) -> Tensor:  # [N] bool
    """Whether a row has a coefficient that is not zero."""
    return (grad_logits != 0).any(dim=-1) | (grad_lse != 0) | (grad_entropy != 0)


def active_rows(
    grad_logits: Tensor,  # [N, K]
    grad_lse: Tensor,  # [N]
    grad_entropy: Tensor,  # [N]
) -> Tensor:  # [M]
    """Rows with a coefficient that is not zero, in ascending order."""
    return has_coefficients(grad_logits, grad_lse, grad_entropy).nonzero().squeeze(-1)


def fill_empty_sums(
    lse: Tensor,  # [N], changed in place
    entropy: Tensor,  # [N], changed in place
    massless: Tensor,  # [N] bool
) -> None:
    """Give rows that are all -inf in their shard of the vocabulary what sums of nothing have."""
    lse.masked_fill_(massless, -torch.inf)
    entropy.masked_fill_(massless, 0)
