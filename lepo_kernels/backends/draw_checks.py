"""Checks of a latent draw that its results tell: kernels on a GPU make them before they are asked.

Contract: nothing waits for the device unless values are checked.
"""

from torch import Tensor

from lepo_kernels.backends.reference.numerics import check_ids, check_rows, check_steps
from lepo_kernels.validation import checks_enabled


def check_draw(
    fields: tuple[Tensor, ...],
    logits: Tensor,  # [N, V]
    noise: str,
    exclude_ids: Tensor | None,  # [M]
    step: Tensor | None,  # [N] or [1]
) -> None:
    """Raise for values out of range, where they are checked."""
    check_rows("logits", fields[5])
    if exclude_ids is not None:
        check_ids("exclude_ids", exclude_ids, logits.shape[1])
        _check_survivors(fields[6])
    if noise != "none" and step is not None:
        check_steps(step)


def _check_survivors(kept_lse: Tensor) -> None:
    if not checks_enabled(kept_lse.device):
        return
    empty = kept_lse.isnan()
    if empty.any():
        row = int(empty.int().argmax())
        raise ValueError(f"exclude_ids: leaves nothing to sample in row {row} of logits")
