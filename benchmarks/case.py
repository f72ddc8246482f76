"""What a benchmark case is: random inputs, and implementations that are checked before timing."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from lepo_kernels import dispatch

Kind = Literal["ours", "other", "floor"]


@dataclass(frozen=True)
class Implementation:
    """One way to do a case's work, or for a floor the least part of it that nobody can leave out.

    Attributes:
        name: unique within its case.
        kind: ours, another implementation, or a floor.
        run: inputs -> result; what is timed.
        check: (inputs, result) -> None; raises AssertionError where the result is wrong.
        missing: why it cannot run here; None if it can.
    """

    name: str
    kind: Kind
    run: Callable[[Any], Any]
    check: Callable[[Any, Any], None]
    missing: str | None = None


@dataclass(frozen=True)
class Case:
    """One op at one shape.

    Attributes:
        op: the group of the case.
        shape: in words, with dtypes.
        make: device -> inputs, the same at every call.
        implementations: what is compared.
        bytes: the least traffic: inputs read once in each pass that the op needs, results written
            once.
        flops: of the matrix products; 0 where there are none.
        dtype: of the matrix products.
        words: random words made, where that is the op's work.
        rounds: how many timed rounds are enough.
    """

    op: str
    shape: str
    make: Callable[[torch.device], Any]
    implementations: tuple[Implementation, ...]
    bytes: int
    flops: int = 0
    dtype: torch.dtype = torch.float32
    words: int = 0
    rounds: int = 5

    @property
    def name(self) -> str:
        return f"{self.op} {self.shape}"


@dataclass(frozen=True)
class Family:
    """The cases of an op: at the sizes that are timed, and at tiny ones that a test can run."""

    timed: tuple[Case, ...]
    tiny: tuple[Case, ...]


def backends_of(ops: Iterable[str], device: torch.device) -> list[str]:
    """Backends that serve all of ``ops`` on ``device``, fastest first."""
    return [
        name
        for name in dispatch.candidates(device)
        if all(dispatch.why_not(op, device, name) is None for op in ops)
    ]


def ours(
    label: str,
    ops: Iterable[str],
    run: Callable[[Any, str], Any],
    check: Callable[[Any, Any], None],
) -> list[Implementation]:
    """One implementation per backend that serves ``ops``; ``run`` takes (inputs, backend)."""
    device = torch.device("cpu")

    def on(backend: str) -> Implementation:
        return Implementation(f"{label} ({backend})", "ours", lambda x: run(x, backend), check)

    return [on(name) for name in backends_of(ops, device)]


def tensor_bytes(*tensors: Tensor) -> int:
    return sum(x.numel() * x.element_size() for x in tensors)


def assert_close(name: str, got: Tensor, want: Tensor, tolerance: float) -> None:
    """Elementwise |got - want| <= tolerance * max |want|, both finite."""
    assert got.shape == want.shape, f"{name}: shape {list(got.shape)}, not {list(want.shape)}"
    error = float((got.double() - want.double()).abs().max())
    allowed = tolerance * float(want.double().abs().max())
    assert error <= allowed, f"{name}: off by {error:.3g}, {allowed:.3g} allowed"


def tolerance_of(dtype: torch.dtype) -> float:
    """What rounding inputs and results to ``dtype`` may cost, with room for long sums."""
    return 1e-4 if dtype == torch.float32 else 0.03


def generator(device: torch.device) -> torch.Generator:
    return torch.Generator(device).manual_seed(0)
