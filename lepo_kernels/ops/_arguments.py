"""Arguments that several ops take as a number or a tensor: checked, and made tensors.

As tensors they cost a compiled graph no recompilation and a captured one no frozen constant. But to
make one on a GPU is a launch. The ops of a decoding step, where that counts, ask for a tensor or a
number: outside of compiled graphs, a number then stays one.
"""

from typing import TypeGuard, TypeVar

import torch
from torch import Tensor

from lepo_kernels.validation import (
    INDEX_DTYPES,
    MAX_IDS,
    check_integer,
    check_positive_number,
    check_tensor,
)

_LAST_STEP = (1 << 32) - 1
_Number = TypeVar("_Number", int, float)


def as_seed(seed: int | Tensor, device: torch.device) -> Tensor:  # []
    """Check a seed and hold its 64 bits in a 0-d int64 tensor on ``device``."""
    if isinstance(seed, Tensor):
        check_tensor("seed", seed, (), (torch.int64,), device)
        return seed
    return torch.full((), _signed_seed(seed), dtype=torch.int64, device=device)


def seed_or_number(seed: int | Tensor, device: torch.device) -> tuple[Tensor | None, int]:
    """As `as_seed`, or None and the seed as a signed number."""
    if _stays_number(seed):
        return None, _signed_seed(seed)
    return as_seed(seed, device), 0


def _signed_seed(seed: int) -> int:
    check_integer("seed", seed, -(1 << 63), (1 << 64) - 1)
    return seed - (1 << 64) if seed >= 1 << 63 else seed


def as_step(step: int | Tensor, rows: int, device: torch.device) -> Tensor:  # [rows] or [1]
    """Check a step and make it an int64 tensor with one entry, or one per row."""
    if isinstance(step, Tensor):
        check_tensor("step", step, () if step.dim() == 0 else (rows,), INDEX_DTYPES, device)
        return step.long().reshape(-1)
    check_integer("step", step, 0, _LAST_STEP)
    return torch.full((1,), step, dtype=torch.int64, device=device)


def step_or_number(
    step: int | Tensor, rows: int, device: torch.device
) -> tuple[Tensor | None, int]:  # [rows] or [1]
    """As `as_step`, or None and the step."""
    if _stays_number(step):
        check_integer("step", step, 0, _LAST_STEP)
        return None, step
    return as_step(step, rows, device), 0


def as_row_keys(row_keys: Tensor | None, rows: int, device: torch.device) -> Tensor:  # [rows]
    """Check row keys; None numbers the rows."""
    if row_keys is None:
        return torch.arange(rows, device=device)
    check_tensor("row_keys", row_keys, (rows,), (torch.int64,), device)
    return row_keys


def check_first_id(first_id: int, vocab: int) -> None:
    """Check the id of the first of ``vocab`` columns: a counter of the noise covers four ids."""
    check_integer("first_id", first_id, 0, MAX_IDS - vocab)
    if first_id % 4 != 0:
        raise ValueError(f"first_id: expected a multiple of 4, got {first_id}")


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


def per_row_or_number(
    name: str,
    value: float | Tensor,
    rows: int,
    device: torch.device,
    *,
    zero_included: bool = False,
) -> tuple[Tensor | None, float]:  # [rows] or [1]
    """As `as_per_row`, or None and the number."""
    if _stays_number(value):
        check_positive_number(name, value, zero_included=zero_included)
        return None, float(value)
    return as_per_row(name, value, rows, device, zero_included=zero_included), 1.0


def _stays_number(value: _Number | Tensor) -> TypeGuard[_Number]:
    return not (isinstance(value, Tensor) or torch.compiler.is_compiling())
