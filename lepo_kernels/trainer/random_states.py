"""The states of the global random generators, to go back to.

Training itself draws no number from them but for dropout; reward functions may.
"""

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch


@dataclass
class RandomStates:
    """The generators of Python, numpy, torch on the CPU, and torch on the device."""

    python: Any
    numpy: Any
    cpu: torch.Tensor
    device: torch.Tensor | None

    @classmethod
    def now(cls, device: torch.device) -> "RandomStates":
        """What they are at this moment."""
        return cls(
            random.getstate(),
            np.random.get_state(),
            torch.get_rng_state(),
            None if device.type == "cpu" else torch.get_device_module(device).get_rng_state(),
        )

    def restore(self, device: torch.device) -> None:
        """Set the generators back."""
        random.setstate(self.python)
        np.random.set_state(self.numpy)
        torch.set_rng_state(self.cpu)
        if self.device is not None:
            torch.get_device_module(device).set_rng_state(self.device)
