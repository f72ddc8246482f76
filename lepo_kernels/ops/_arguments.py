"""Arguments that several ops take as a number or a tensor: checked, and made tensors.

As tensors they cost a compiled graph no recompilation and a captured one no frozen constant.
"""

import torch
from torch import Tensor

from lepo_kernels.validation import INDEX_DTYPES, check_integer, check_positive_number, check_tensor

MAX_DRAWS = 64
MAX_IDS = 1 << 26


def as_seed(seed: int | Tensor, device: torch.device) -> Tensor:  # []
    """Check a seed and hold its 64 bits in a 0-d int64 tensor on ``device``."""
    if isinstance(seed, Tensor):
        check_tensor("seed", seed, (), (torch.int64,), device)
        return seed
    check_integer("seed", seed, -(1 << 63), (1 << 64) - 1)
    signed = seed - (1 << 64) if seed >= 1 << 63 else seed
    return torch.full((), signed, dtype=torch.int64, device=device)


def as_step(step: int | Tensor, rows: int, device: torch.device) -> Tensor:  # [rows] or [1]
    """Check a step and make it an int64 tensor with one entry, or one per row."""
    if isinstance(step, Tensor):
        check_tensor("step", step, () if step.dim() == 0 else (rows,), INDEX_DTYPES, device)
        return step.long().reshape(-1)
    check_integer("step", step, 0, (1 << 32) - 1)
    return torch.full((1,), step, dtype=torch.int64, device=device)


def as_row_keys(row_keys: Tensor | None, rows: int, device: torch.device) -> Tensor:  # [rows]
    """Check row keys; None numbers the rows."""
    if row_keys is None:
        return torch.arange(rows, device=device)
    check_tensor("row_keys", row_keys, (rows,), (torch.int64,), device)
    return row_keys


def as_per_row(
    name: str,
    value: float | Tensor,
    rows: int,
    device: torch.device,
    *,
    dtype: torch.dtype = torch.float64,
    zero_included: bool = False,
) -> Tensor:  # [rows] or [1]
    """Check a positive number, or one per row, and make it a constant tensor of ``dtype``."""
    if isinstance(value, Tensor):
        shape = () if value.dim() == 0 else (rows,)
        check_tensor(name, value, shape, (torch.float32, torch.float64), device)
        return value.detach().reshape(-1).to(dtype)
    check_positive_number(name, value, zero_included=zero_included)
    return torch.full((1,), float(value), dtype=dtype, device=device)
