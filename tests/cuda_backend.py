"""Lets the ``cuda`` backend serve CPU tensors: on the GPU if there is one, else in the simulator.

So one contract test covers every backend, and what a GPU will be asked is what the simulator was.
"""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree

from lepo_kernels import dispatch, validation
from tests.cuda_sim import library

CPU = torch.device("cpu")


def why_not() -> str | None:
    """Make the backend ready; None if that worked, else the reason."""
    return None if has_gpu() else library.why_not()


def has_gpu() -> bool:
    """Whether the real library is here, and a GPU for it."""
    return "cuda" not in dispatch.MISSING


def serve_cpu_tensors(patch: pytest.MonkeyPatch) -> None:
    """Offer the backend for CPU tensors, as the last choice."""
    patch.setitem(dispatch.PREFERENCE, "cpu", (*dispatch.candidates(CPU), "cuda"))
    if has_gpu():
        # As on the CPU: what is wrong with values raises.
        patch.setattr(validation, "_value_checks_everywhere", True)
        patch.setattr(dispatch, "load", functools.cache(functools.partial(_load, dispatch.load)))
    else:
        patch.delitem(dispatch.MISSING, "cuda")


def _load(load: Callable[[str, str], Any], op: str, name: str) -> Callable[..., Any]:
    kernel = load(op, name)
    return functools.partial(_on_gpu, kernel) if name == "cuda" else kernel


def _on_gpu(kernel: Callable[..., Any], *arguments: Any) -> Any:
    """Call the kernel with its tensors moved to the GPU, and bring the results back."""
    moved = _pytree.tree_map_only(Tensor, Tensor.cuda, arguments)
    return _pytree.tree_map_only(Tensor, Tensor.cpu, kernel(*moved))
