"""What the machine is: the GPU, its driver, and the versions of what is used."""

import importlib.metadata
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

import torch

from tools.native_build import BuildError, find_toolkit

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("numpy", "pytest", "pytest-benchmark", "triton", "setuptools", "cmake", "ninja")


def device() -> dict[str, Any]:
    """The first GPU; nothing where there is none that torch can use."""
    if not torch.cuda.is_available():
        return {}
    properties = torch.cuda.get_device_properties(0)
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "memory_bytes": properties.total_memory,
        "multiprocessors": properties.multi_processor_count,
    }


def facts() -> dict[str, Any]:
    """All that a reader of the report may ask for."""
    return {
        "device": device(),
        "driver": _said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "toolkit": _toolkit(),
        "torch": torch.__version__,
        "torch_cuda": torch.version.cuda,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "commit": _said("git", "-C", str(ROOT), "rev-parse", "HEAD"),
    }


def find_sanitizer() -> str | None:
    """compute-sanitizer, on PATH or in the toolkit."""
    try:
        home = find_toolkit().home
    except BuildError:
        return shutil.which("compute-sanitizer")
    inside = home / "bin" / "compute-sanitizer"
    return shutil.which("compute-sanitizer") or (str(inside) if inside.is_file() else None)


def _toolkit() -> str | None:
    try:
        return find_toolkit().version
    except BuildError:
        return None


def _said(*command: str) -> str | None:
    """The first line of a program's answer; None if it is not here or fails."""
    if shutil.which(command[0]) is None:
        return None
    done = subprocess.run(command, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    return lines[0].strip() if done.returncode == 0 and lines else None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
