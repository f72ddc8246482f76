"""What the launches of several Triton kernels share."""

import functools
from typing import Any

import torch
from torch import Tensor

# Whether products are fused into sums. Said in every launch: Triton's own choice changes with its
# version, and says so in a warning.
FUSED = {"enable_fp_fusion": True}
# Where bits may not differ between kernels or element types.
UNFUSED = {"enable_fp_fusion": False}


def device_of(x: Tensor) -> Any:
    """A ``with`` block whose launches go to the device of ``x``."""
    return torch.cuda.device_of(x)


def programs_wanted(device: torch.device) -> int:
    """How many programs at once keep the device busy: its number of multiprocessors."""
    if device.type != "cuda":
        return 8
    count: int = torch.cuda.get_device_properties(device).multi_processor_count
    return count


@functools.cache
def device_family(device: torch.device) -> str:
    """What tables of tiles and strategies are sorted by."""
    if torch.version.hip:
        return "rocm"
    if device.type != "cuda":
        return "other"
    capability = torch.cuda.get_device_capability(device)
    families = {(8, 0): "sm_80", (9, 0): "sm_90", (10, 0): "sm_100", (10, 3): "sm_100"}
    return families.get(capability, "other")


def dtype_class(dtype: torch.dtype) -> str:
    """The class of a dtype in tables of tiles and strategies."""
    return "float" if dtype == torch.float32 else "half"


def precision_of(dtype: torch.dtype) -> str:
    """The input precision of a product of this dtype; that of halves is exact anyway."""
    return "tf32x3" if dtype == torch.float32 and not torch.version.hip else "ieee"


def stride_of(per_row: Tensor) -> int:
    """The stride from the value of one row to the next: a single value is that of all."""
    return 0 if per_row.numel() == 1 else 1
