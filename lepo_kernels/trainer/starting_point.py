"""The policy at the start of the run, which is the KL reference, also of a resumed run.

A model that is trained as a whole has a frozen copy for a reference; a checkpoint says which. For a
model with an adapter there is `StartingPoint`. Only trained parameters move, so the policy at the
start is the model with the first values of these. Keeping them costs an adapter's memory, holds for
every kind of adapter (one that was trained before, one whose initialisation is not the identity,
``modules_to_save``, trained biases), and leaves nothing in the model that would be saved with it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

REFERENCE_FILE = "kl_reference.pt"


class StartingPoint:
    """The trainable parameters of a model as they are now.

    Args:
        model: on its device.
    """

    def __init__(self, model: nn.Module) -> None:
        copies: dict[nn.Parameter, nn.Parameter] = {}
        self._places: list[tuple[nn.Module, str, nn.Parameter]] = []
        self._values: dict[str, nn.Parameter] = {}
        for path, module in model.named_modules():
            for name, parameter in module.named_parameters(recurse=False):
                if parameter.requires_grad:
                    if parameter not in copies:
                        copies[parameter] = nn.Parameter(
                            parameter.detach().clone(), requires_grad=False
                        )
                        self._values[f"{path}.{name}"] = copies[parameter]
                    self._places.append((module, name, copies[parameter]))

    @contextmanager
    def reached(self, model: Any) -> Iterator[Any]:
        """The model as it was at the start, for as long as the context lasts; without gradient.

        Parameters are exchanged, not their values: autocast keeps what it has cast by parameter,
        and would hand the policy's to the reference.
        """
        now = [(module, name, module._parameters[name]) for module, name, _ in self._places]
        try:
            for module, name, value in self._places:
                module._parameters[name] = value
            yield model
        finally:
            for module, name, parameter in now:
                module._parameters[name] = parameter

    def save(self, folder: Path) -> None:
        """Store the values in a checkpoint, so that a resumed run has the same reference."""
        folder.mkdir(parents=True, exist_ok=True)
        state: dict[str, Tensor] = {name: value.data for name, value in self._values.items()}
        torch.save(state, folder / REFERENCE_FILE)

    def load(self, folder: Path) -> None:
        """Take the values that `save` stored.

        Raises:
            ValueError: there are none, or those of another adapter.
        """
        file, state = _read(folder)
        for name in sorted({*state, *self._values}):
            mine, stored = self._values.get(name), state.get(name)
            if mine is None or stored is None or mine.shape != stored.shape:
                raise ValueError(
                    f"resume_from_checkpoint: the KL reference in {file} belongs to another "
                    f"adapter: {name} is {_size(stored)} there and {_size(mine)} in the model"
                )
        with torch.no_grad():
            for name, value in self._values.items():
                value.copy_(state[name])


def save_marks(reference: nn.Module, folder: Path) -> None:
    """Store in a checkpoint which model its run's frozen reference is."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(_marks(reference), folder / REFERENCE_FILE)


def check_marks(reference: nn.Module, folder: Path) -> None:
    """Check that the reference is the one of the run that wrote the checkpoint.

    Raises:
        ValueError: it is another, or the checkpoint does not say.
    """
    _, stored = _read(folder)
    mine = _marks(reference)
    changed = [n for n in sorted({*mine, *stored}) if mine.get(n) != stored.get(n)]
    if changed:
        raise ValueError(
            f"resume_from_checkpoint: the run in {folder} started from another model than the one "
            f"given, and that is its KL reference ({changed[0]} differs); give the model that the "
            "run started from"
        )


def _read(folder: Path) -> tuple[Path, dict[str, Any]]:
    file = folder / REFERENCE_FILE
    if not file.exists():
        raise ValueError(
            f"resume_from_checkpoint: {folder} holds no KL reference ({REFERENCE_FILE}); its run "
            "had beta = 0"
        )
    return file, torch.load(file, map_location="cpu", weights_only=True)


def _marks(model: nn.Module) -> dict[str, int]:
    """A number per parameter: the sum of its bytes, which no order of summation changes."""
    return {
        name: int(parameter.detach().reshape(-1).view(torch.uint8).sum(dtype=torch.int64))
        for name, parameter in model.named_parameters()
    }


def _size(tensor: Tensor | None) -> str:
    return "missing" if tensor is None else f"of shape {list(tensor.shape)}"
