"""What the launches of several Triton kernels share."""

from typing import Any

import torch
from torch import Tensor

# Whether products are fused into sums. Said in every launch: Triton's own choice changes with its
# version, and says so in a warning.
FUSED = {"enable_fp_fusion": True}


def device_of(x: Tensor) -> Any:
    """A ``with`` block whose launches go to the device of ``x``."""
    return torch.cuda.device_of(x)


def programs_wanted(device: torch.device) -> int:
    """How many programs at once keep the device busy: its number of multiprocessors."""
    if device.type != "cuda":
        return 8
    count: int = torch.cuda.get_device_properties(device).multi_processor_count
    return count


def step_of(per_row: Tensor) -> int:
    """From the value of one row to that of the next: a single value is that of all."""
    return 0 if per_row.numel() == 1 else 1
