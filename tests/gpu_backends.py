"""Lets a backend that needs a GPU serve CPU tensors, by taking them there and back."""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree

from lepo_kernels import dispatch, validation

CPU = torch.device("cpu")


def offer_for_cpu_tensors(patch: pytest.MonkeyPatch, backend: str) -> None:
    """Let ``dispatch`` name the backend for CPU tensors, as the last choice."""
    patch.setitem(dispatch.PREFERENCE, "cpu", (*dispatch.candidates(CPU), backend))


def run_on_gpu(patch: pytest.MonkeyPatch, backend: str) -> None:
    """Run the backend's kernels on the GPU."""
    # As on the CPU: what is wrong with values raises.
    patch.setattr(validation, "_value_checks_everywhere", True)
    load = functools.partial(_load, dispatch.load, backend)
    patch.setattr(dispatch, "load", functools.cache(load))


def _load(load: Callable[[str, str], Any], backend: str, op: str, name: str) -> Callable[..., Any]:
    kernel = load(op, name)
    return functools.partial(_on_gpu, kernel) if name == backend else kernel


def _on_gpu(kernel: Callable[..., Any], *arguments: Any) -> Any:
    """Call the kernel with its tensors moved to the GPU, and bring the results back."""
    moved = _pytree.tree_map_only(Tensor, Tensor.cuda, arguments)
    return _pytree.tree_map_only(Tensor, Tensor.cpu, kernel(*moved))
