"""What this installation can do: versions, the device, and which kernel serves each op."""

import importlib.metadata
import platform
from typing import Any

import torch

from lepo_kernels import dispatch, native
from lepo_kernels.version import __version__

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
    "cuda": "it takes a CUDA GPU, a torch for that CUDA, and a wheel of lepo_kernels for it or a "
    "build with LEPO_BUILD_CUDA=1 (docs/wheels.md)",
    "triton": "it takes a CUDA or ROCm GPU, a torch for it, and Triton, which such a torch brings "
    "along (pip install 'lepo_kernels[triton]')",
    "cpu": "install a wheel of lepo_kernels, or build it with a C++ compiler: "
    "pip install --no-build-isolation . (docs/wheels.md)",
    "reference": "reinstall lepo_kernels",
}
# How to get code for a GPU that the CUDA library has none for.
BUILD_FOR_IT = "build it with LEPO_CUDA_ARCH_LIST={capability} (docs/wheels.md)"


def info() -> dict[str, Any]:
    """Describe this installation.

    Returns:
        ``version``, ``python``, ``platform``: text.
        ``packages``: name -> version, or None where it is not installed.
        ``device``: ``type``, ``name``, and on CUDA machines ``count``, ``capability``, ``memory``.
        ``libraries``: file name of a native library -> None if it is not loaded, else ``path``,
        what it says of its build (``version``, ``torch``: the oldest that it runs on, ``compiler``,
        and on CUDA ``cuda`` and ``architectures``), and for the CPU ``instruction_set`` (the one in
        use) and ``best_instruction_set`` (the best that this machine offers).
        ``backends``: name -> None if it is here, else ``reason`` and ``remedy``.
        ``gpus``: one entry for each GPU that is visible: ``name``, ``capability``, and
        ``no_cuda_code``: None unless the CUDA library can be used and has no code for this GPU,
        else ``reason`` and ``remedy``.
        ``kernels``: op -> ``chosen`` (what serves it on the device; None if nothing does) and
        ``backends`` (name -> None if it can, else why not).
    """
    has_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if has_gpu else "cpu")
    return {
        "version": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "device": _describe(device),
        "libraries": {native.library_path(name).name: _library(name) for name in ("cpu", "cuda")},
        "backends": {name: _missing(name) for name in dispatch.BACKENDS},
        "gpus": [_gpu(i) for i in range(torch.cuda.device_count())] if has_gpu else [],
        "kernels": {op: _kernel(op, device) for op in dispatch.KERNELS},
    }


def _version(package: str) -> str | None:
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


def _library(backend: str) -> dict[str, Any] | None:
    if not native.is_loaded(backend):
        return None
    found = {"path": str(native.library_path(backend)), **native.build_facts(backend)}
    if backend == "cpu":
        found["instruction_set"] = native.cpu_capability()
        found["best_instruction_set"] = native.best_cpu_capability()
    return found


def _missing(backend: str) -> dict[str, str] | None:
    reason = dispatch.MISSING.get(backend)
    return None if reason is None else {"reason": reason, "remedy": REMEDIES[backend]}


def _gpu(index: int) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(index)
    found = {"name": properties.name, "capability": f"{properties.major}.{properties.minor}"}
    reason = None
    if "cuda" not in dispatch.MISSING:
        reason = dispatch.why_no_code("cuda", torch.device("cuda", index))
    if reason is None:
        return {**found, "no_cuda_code": None}
    remedy = BUILD_FOR_IT.format(**found)
    return {**found, "no_cuda_code": {"reason": reason, "remedy": remedy}}


def _kernel(op: str, device: torch.device) -> dict[str, Any]:
    chosen: str | None
    try:
        _, chosen = dispatch.resolve_or_fall_back(op, device, None)
    except dispatch.BackendUnavailableError:
        chosen = None
    return {
        "chosen": chosen,
        "backends": {name: dispatch.why_not(op, device, name) for name in dispatch.BACKENDS},
    }
