"""The KL reference: the policy at the start of the run, also in a resumed run."""

import contextlib
from pathlib import Path
from typing import Any

import torch

from lepo_kernels.trainer.adapters import is_peft
from lepo_kernels.trainer.preparation import frozen_copy
from lepo_kernels.trainer.starting_point import StartingPoint, check_marks, save_marks


class KLReference:
    """A frozen copy of the policy or, for a model with an adapter, its first trainable parameters.

    Args:
        model: the policy before any update.
        device: where a copy is put.

    Attributes:
        model: the frozen copy; None for a model with an adapter.
    """

    def __init__(self, model: Any, device: torch.device) -> None:
        self._start = StartingPoint(model) if is_peft(model) else None
        self.model: Any = None if self._start is not None else frozen_copy(model).to(device)

    def of(self, policy: Any) -> contextlib.AbstractContextManager[Any]:
        """A context manager that gives the reference model.

        Args:
            policy: the unwrapped policy, whose parameters an adapter's reference exchanges.
        """
        if self._start is not None:
            return self._start.reached(policy)
        return contextlib.nullcontext(self.model)

    def save(self, folder: Path) -> None:
        """Store in a checkpoint what identifies or restores the reference."""
        if self._start is not None:
            self._start.save(folder)
        else:
            save_marks(self.model, folder)

    def restore(self, folder: Path) -> None:
        """Take the adapter's reference from a checkpoint, or check that a copy is its run's.

        Raises:
            ValueError: the checkpoint has another reference, or none.
        """
        if self._start is not None:
            self._start.load(folder)
        else:
            check_marks(self.model, folder)
