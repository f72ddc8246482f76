"""The launches that a call of a backend makes, caught instead of run.

What is compiled ahead of time is then what a GPU would be asked for: the types, the tiles, and what
Triton makes of the values (a 1 is a constant, 16 divides an address or a size).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from triton.runtime.jit import JITFunction

from lepo_kernels.backends import checks

TYPES = {
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.float64: "fp64",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.int8: "i8",
    torch.bool: "i1",
}


@dataclass
class Launch:
    """A kernel, with its arguments by name, and options such as num_warps."""

    kernel: JITFunction
    arguments: dict[str, Any]
    options: dict[str, Any]

    @property
    def name(self) -> str:
        return str(self.kernel.fn.__name__)

    def source(self) -> dict[str, Any]:
        """What `triton.compiler.ASTSource` takes, as Triton's own launch specializes it."""
        signature, constants, attributes = {}, {}, {}
        for index, parameter in enumerate(self.kernel.params):
            value = self.arguments[parameter.name]
            kind, divisible = specialized(value)
            if parameter.do_not_specialize:
                kind, divisible = plain(value), False
            if parameter.is_constexpr or kind == "constexpr":
                kind, divisible = "constexpr", False
                constants[parameter.name] = value
            if divisible:
                attributes[(index,)] = [["tt.divisibility", 16]]
            signature[parameter.name] = kind
        return {
            "fn": self.kernel,
            "signature": signature,
            "constexprs": constants,
            "attrs": attributes,
        }


def specialized(value: Any) -> tuple[str, bool]:
    """The type of an argument, and whether 16 is known to divide it."""
    if isinstance(value, torch.Tensor):
        return "*" + TYPES[value.dtype], value.data_ptr() % 16 == 0
    if isinstance(value, bool):
        return "i1", False
    if isinstance(value, int) and value != 1:
        return plain(value), value % 16 == 0
    return ("fp32" if isinstance(value, float) else "constexpr"), False


def plain(value: int) -> str:
    """The type of a number, whatever it is."""
    return "i32" if -(1 << 31) <= value < 1 << 31 else "i64"


@contextmanager
def caught() -> Iterator[list[Launch]]:
    """Collect the launches inside instead of running them: all outputs stay as they were made."""
    launches: list[Launch] = []

    def run(kernel: JITFunction, *args: Any, grid: Any, warmup: bool = False, **named: Any) -> None:
        parameters = [p.name for p in kernel.params]
        arguments = dict(zip(parameters, args, strict=False))
        arguments |= {name: value for name, value in named.items() if name in parameters}
        options = {name: value for name, value in named.items() if name not in parameters}
        launches.append(Launch(kernel, arguments, options))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(JITFunction, "run", run)
        # Nothing was computed that could be checked.
        patch.setattr(checks, "checks_enabled", lambda device: False)
        yield launches


def launches_of(call: Callable[[], Any]) -> list[Launch]:
    with caught() as launches:
        call()
    return launches
