"""In which dtype numbers are summed up and handed out."""

import torch


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype sums are formed in: float64 for float64, float32 for everything else."""
    return torch.float64 if dtype == torch.float64 else torch.float32
