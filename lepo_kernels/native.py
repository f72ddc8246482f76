"""Loads the native libraries, and says why one cannot be had.

``_C_cpu.so`` lies beside this file when the installation was built with it. It registers the ops
``torch.ops.lepo_kernels_cpu.*``, which only the backend of that name calls.
"""

import os
from pathlib import Path

import torch

CAPABILITIES = ("baseline", "avx2", "avx512")


def why_not_cpu() -> str | None:
    """Load the CPU library; None if that worked, else the reason.

    Raises:
        ValueError: ``LEPO_CPU_CAPABILITY`` names no instruction set, or one this machine lacks.
    """
    reason = _load("_C_cpu")
    if reason is None:
        _check_capability()
    return reason


def cpu_capability() -> str:
    """The instruction set the CPU kernels use: one of ``CAPABILITIES``."""
    name: str = torch.ops.lepo_kernels_cpu.capability()
    return name


def _load(name: str) -> str | None:
    path = Path(__file__).with_name(f"{name}.so")
    if not path.exists():
        return "this installation was built without it"
    try:
        torch.ops.load_library(path)
    except OSError as error:
        return f"{path.name} does not load: {error}"
    return None


def _check_capability() -> None:
    wanted = os.environ.get("LEPO_CPU_CAPABILITY")
    if not wanted or wanted == cpu_capability():
        return
    if wanted not in CAPABILITIES:
        raise ValueError(
            f"LEPO_CPU_CAPABILITY: expected one of {', '.join(CAPABILITIES)}, got {wanted!r}"
        )
    raise ValueError(f"LEPO_CPU_CAPABILITY: this machine does not offer {wanted!r}")
