"""Checks of values that kernels make, each of what is its own to see: rows, numbers, steps, ids.

Contract: nothing waits for the device unless values are checked (`checks_enabled`).
"""

import torch
from torch import Tensor

from lepo_kernels.validation import (
    FLOAT32_MAX,
    FLOAT32_TINY,
    NonFiniteRowError,
    checks_enabled,
)


def check_rows(
    name: str,
    values: Tensor,  # [N]
) -> None:
    """Raise if the value of a row of logits is not finite.

    Raises:
        NonFiniteRowError: naming the first such row.
    """
    if not checks_enabled(values.device):
        return
    good = values.isfinite()
    if not good.all():
        row = int(good.int().argmin())
        raise NonFiniteRowError(f"{name}: row {row} is all -inf, or holds NaN or +inf")


def check_positive(name: str, values: Tensor, *, zero_included: bool = False) -> None:
    """Raise if a value is not above 0 (or 0, where that is welcome), or float32 cannot hold it.

    Raises:
        ValueError: naming the argument.
    """
    if not checks_enabled(values.device) or values.numel() == 0:
        return
    # Both are NaN where one of the values is, and in no range.
    low, high = (x.item() for x in torch.aminmax(values))
    if not (low >= (0 if zero_included else FLOAT32_TINY) and high <= FLOAT32_MAX):
        sign = ">=" if zero_included else ">"
        raise ValueError(f"{name}: expected finite numbers {sign} 0, in the range of float32")


def check_steps(step: Tensor) -> None:
    """Raise if a step is outside [0, 2^32), which is all that the noise counter holds of it.

    Raises:
        ValueError: naming the argument and the step.
    """
    if not checks_enabled(step.device) or step.numel() == 0:
        return
    low, high = (int(x) for x in torch.aminmax(step))
    if low < 0 or high >= 1 << 32:
        got = low if low < 0 else high
        raise ValueError(f"step: expected values in [0, 2^32), got {got}")


def check_ids(name: str, ids: Tensor, vocab: int) -> None:
    """Raise if an id is outside [0, vocab).

    Raises:
        IndexError: naming the argument and the id.
    """
    if not checks_enabled(ids.device) or ids.numel() == 0:
        return
    low, high = (int(x) for x in torch.aminmax(ids))
    if low < 0 or high >= vocab:
        got = low if low < 0 else high
        raise IndexError(f"{name}: expected values in [0, {vocab}), got {got}")


def check_survivors(
    kept_lse: Tensor,  # [N]
) -> None:
    """Raise if nothing is kept of a row of logits that is in order itself.

    Raises:
        ValueError: naming the first such row.
    """
    if not checks_enabled(kept_lse.device):
        return
    empty = kept_lse.isfinite().logical_not_()
    if empty.any():
        row = int(empty.int().argmax())
        raise ValueError(f"exclude_ids: leaves nothing to sample in row {row} of logits")


def check_draw(
    fields: tuple[Tensor, ...],
    logits: Tensor,  # [N, V]
    noise: str,
    exclude_ids: Tensor | None,  # [M]
    step: Tensor | None,  # [N] or [1]
) -> None:
    """Raise for values of a draw that are out of range: kernels on a GPU ask once it is made."""
    check_rows("logits", fields[5])
    if exclude_ids is not None:
        check_ids("exclude_ids", exclude_ids, logits.shape[1])
        check_survivors(fields[6])
    if noise != "none" and step is not None:
        check_steps(step)
