"""Runs Triton kernels on the CPU, in Triton's interpreter, repaired and watched.

Triton decides when a function is decorated whether to compile or to interpret it, by
``TRITON_INTERPRET``, and its own library is decorated when triton is imported. Here the functions
stay what they are, ready to be compiled for a GPU, and are interpreted when they are called inside
`interpreted`. All that this changes in triton is undone at its end.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import triton.language as tl
import triton.runtime.interpreter as ti
from torch.utils._python_dispatch import _disable_current_modes
from triton.runtime.jit import JITFunction

from tests.triton_sim.builder import Builder
from tests.triton_sim.memory import KernelError, Memory

# What the interpreter puts its own functions into.
PATCHED = (tl, tl.core, tl.math, tl.tensor, tl.dtype, tl.condition, tl.core.tensor_descriptor_base)


@contextmanager
def interpreted(*, races: bool = True) -> Iterator[None]:
    """Interpret every ``triton.jit`` function that is called or launched inside.

    Raises:
        KernelError: a kernel accesses memory outside its arguments or, with ``races``, memory that
            others access.
    """
    with ExitStack() as stack:
        for changed in PATCHED:
            stack.callback(_restore, changed, dict(vars(changed)))
        ti._patch_lang(SimpleNamespace(__globals__={"tl": tl, "core": tl.core}))
        # Triton 3.6 reads a scalar in a way that numpy 2.4 refuses.
        tl.tensor.__index__ = lambda self: self.handle.data.item()
        for owner, name, value in (
            # Done once above: else each call of a device function does it again, for good.
            (ti, "_patch_lang", lambda _: SimpleNamespace(restore=lambda: None)),
            (ti.ReduceScanOpInterface, "check_tensor", _checked(ti.ReduceScanOpInterface)),
            (ti.interpreter_builder, "__class__", Builder),
            (ti.interpreter_builder, "memory", None),
            (JITFunction, "run", _launcher(races)),
            (JITFunction, "__call__", lambda f, *a, **k: ti.InterpretedFunction(f.fn)(*a, **k)),
        ):
            stack.callback(setattr, owner, name, getattr(owner, name, None))
            setattr(owner, name, value)
        # Infinities and NaN are ordinary numbers to a kernel.
        stack.enter_context(np.errstate(all="ignore"))
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", "All-NaN (slice|axis) encountered", RuntimeWarning)
        yield


def _restore(changed: Any, before: dict[str, Any]) -> None:
    for name in vars(changed).keys() - before.keys():
        delattr(changed, name)
    for name, value in before.items():
        if vars(changed)[name] is not value:
            setattr(changed, name, value)


def _launcher(races: bool) -> Callable[..., None]:
    def run(
        kernel: JITFunction, *args: Any, grid: Any, warmup: bool = False, **kwargs: Any
    ) -> None:
        function = ti.InterpretedFunction(kernel.fn)
        tensors = [x for x in (*args, *kwargs.values()) if isinstance(x, torch.Tensor)]
        ti.interpreter_builder.memory = Memory(tensors, races)
        try:
            # What the interpreter does with torch is not the kernel's doing.
            with _disable_current_modes():
                function.run(*args, grid=grid, warmup=warmup, **kwargs)
        except ti.InterpreterError as error:
            fault = _cause(error)
            if isinstance(fault, KernelError):
                raise KernelError(f"{kernel.fn.__name__}: {fault}") from error
            raise
        finally:
            ti.interpreter_builder.memory = None

    return run


def _cause(error: BaseException) -> BaseException:
    """What was raised first: each device function on the way wraps it."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _checked(interface: Any) -> Callable[..., None]:
    check = interface.check_tensor

    def check_tensor(self: Any, inputs: Any) -> None:
        check(self, inputs)
        for x in inputs:
            if x.dtype.scalar == tl.bfloat16:
                raise TypeError("the interpreter cannot reduce or scan bfloat16: widen it first")

    return check_tensor
