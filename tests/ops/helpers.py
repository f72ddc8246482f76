"""What the tests of several op families share."""

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lepo_kernels import dispatch, native
from lepo_kernels.ops._library import OPS

HALF_DTYPES = (torch.bfloat16, torch.float16)
LOW_DTYPES = (torch.float32, *HALF_DTYPES)


def backends_of(op: str) -> list[str]:
    """Which backends can serve ``op`` on the CPU; the fixture `backend` decides about GPUs'."""
    device = torch.device("cpu")
    here = [b for b in ("cpu", "reference") if dispatch.why_not(op, device, b) is None]
    return here + [b for b in dispatch.KERNELS[op][1] if b in ("cuda", "triton")]


def kernel_of(op: str, backend: str) -> Callable[..., Any]:
    """A backend's kernel, with the arguments of ``torch.ops.lepo_kernels.<op>`` but the backend."""

    def call(*flat: Any) -> Any:
        *arguments, _ = OPS[op].unpack((*flat, backend))
        return dispatch.load(op, backend)(*arguments)

    return call


def transposed(x: Tensor) -> Tensor:
    """The same values, held column by column."""
    return x.detach().T.contiguous().T


class LargestTensor(TorchDispatchMode):
    """Records the size of the largest tensor that any op, kernels' own included, makes within."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "lepo_kernels":
            # Torch runs an op below the mode that sees it: run its kernel under the mode instead.
            with self:
                result = kernel_of(func._opname, args[-1])(*args[:-1])
        else:
            result = func(*args, **(kwargs or {}))
        made = result if isinstance(result, tuple | list) else (result,)
        for out, declared in zip(made, func._schema.returns, strict=False):
            # Not a view, nor what it was given to write to.
            if isinstance(out, Tensor) and declared.alias_info is None:
                self.numel = max(self.numel, out.numel())
        return result


def assert_passes_on(capability: str, file: str, tests: str) -> None:
    """Run the tests of ``file`` that ``-k tests`` selects on another instruction set.

    In a process of their own: a process uses one.
    """
    best = native.CAPABILITIES.index(native.cpu_capability())
    if native.CAPABILITIES.index(capability) > best:
        pytest.skip(f"this machine does not offer {capability}")
    options = ["-q", "-x", "-m", "not slow", "-p", "no:cacheprovider", "-k", tests]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, file],
        env={**os.environ, "LEPO_CPU_CAPABILITY": capability},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
