"""Rows for torch.compile: the eager expression, compiled for the case's own shape."""

import functools
import importlib.util
import shutil
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from benchmarks.case import Implementation


def compiled(eager: Implementation, run: Callable[[Any], Any]) -> Implementation:
    """The row of ``eager`` under torch.compile; ``run`` calls what `lazily` made."""
    name = eager.name.replace("eager", "torch.compile")
    return replace(eager, name=name, run=run, why_not=why_not, compiles=True)


def lazily(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` under torch.compile, of which nothing is imported before the first call."""

    @functools.cache
    def made() -> Callable[..., Any]:
        # Noise as eager draws it, so that one check serves both.
        return torch.compile(function, dynamic=False, options={"fallback_random": True})

    return lambda *arguments: made()(*arguments)


def why_not(device: torch.device) -> str | None:
    if device.type == "cpu":
        found = any(shutil.which(name) for name in ("g++", "clang++", "c++"))
        return None if found else "torch.compile finds no C++ compiler"
    missing = importlib.util.find_spec("triton") is None
    return "torch.compile takes triton, which is not installed" if missing else None
