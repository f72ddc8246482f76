"""What this installation can do: versions, the device, and which kernel serves each op."""

import importlib.metadata
import platform
from typing import Any

import torch

from lepo_kernels import dispatch

PACKAGES = (
    "torch",
    "triton",
    "transformers",
    "accelerate",
    "peft",
    "flash-attn",
    "reasoning-gym",
    "math-verify",
)

# How to get a backend that is missing.
REMEDIES = {
    "cuda": "install a build of lepo_kernels that holds CUDA kernels",
    "triton": "install a version of lepo_kernels that holds Triton kernels, and triton",
    "cpu": "install a build of lepo_kernels that holds C++ kernels",
    "reference": "reinstall lepo_kernels",
}


def info() -> dict[str, Any]:
    """Describe this installation.

    Returns:
        ``version``, ``python``, ``platform``: text.
        ``packages``: name -> version, or None where it is not installed.
        ``device``: ``type``, ``name``, and on CUDA machines ``count``, ``capability``, ``memory``.
        ``backends``: name -> None if it is here, else ``reason`` and ``remedy``.
        ``kernels``: op -> ``chosen`` (what serves it on the device; None if nothing does) and
        ``backends`` (name -> None if it can, else why not).
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return {
        "version": _version("lepo_kernels"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "device": _describe(device),
        "backends": {name: _missing(name) for name in dispatch.BACKENDS},
        "kernels": {op: _kernel(op, device) for op in dispatch.KERNELS},
    }


def _version(package: str) -> str | None:
    if package == "lepo_kernels":
        from lepo_kernels import __version__

        return __version__
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _describe(device: torch.device) -> dict[str, Any]:
    if device.type != "cuda":
        return {
            "type": device.type,
            "name": platform.processor() or platform.machine(),
            "threads": torch.get_num_threads(),
        }
    properties = torch.cuda.get_device_properties(0)
    return {
        "type": device.type,
        "name": properties.name,
        "count": torch.cuda.device_count(),
        "capability": f"{properties.major}.{properties.minor}",
        "memory": properties.total_memory,
    }


def _missing(backend: str) -> dict[str, str] | None:
    reason = dispatch.MISSING.get(backend)
    return None if reason is None else {"reason": reason, "remedy": REMEDIES[backend]}


def _kernel(op: str, device: torch.device) -> dict[str, Any]:
    try:
        chosen: str | None = dispatch.resolve(op, device, None)
    except dispatch.BackendUnavailableError:
        chosen = None
    return {
        "chosen": chosen,
        "backends": {name: dispatch.why_not(op, device, name) for name in dispatch.BACKENDS},
    }
