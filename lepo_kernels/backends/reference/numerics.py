"""Small numeric pieces that several reference kernels share."""

import torch
from torch import Tensor


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype sums are formed in: float64 for float64, float32 for everything else."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def add_rows(
    table: Tensor,  # [V, D], changed in place
    ids: Tensor,  # [M]
    rows: Tensor,  # [M, D]
) -> None:
    """``table[ids] += rows``, duplicates added in a fixed order on every device."""
    if table.device.type == "cpu":
        # index_add_ is serial over ids here; index_put_ would use atomics.
        table.index_add_(0, ids.long(), rows)
    else:
        # index_put_ sorts the ids here; index_add_ would use atomics.
        table.index_put_((ids.long(),), rows, accumulate=True)
