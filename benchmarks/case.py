"""What a benchmark case is: random inputs, and implementations that are checked before timing."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import torch
from torch import Tensor

from benchmarks.plan import Plan
from lepo_kernels import dispatch

Kind = Literal["ours", "other", "floor"]

# Entries that a check compares at a time.
_COMPARED = 1 << 26


def runs_anywhere(device: torch.device) -> None:
    """Nothing keeps it from running."""


@dataclass(frozen=True)
class Implementation:
    """One way to do a case's work, or for a floor the least part of it that nobody can leave out.

    Attributes:
        name: unique within its case.
        kind: ours, another implementation, or a floor.
        run: inputs -> result; what is timed.
        check: (inputs, result) -> None; raises AssertionError where the result is wrong.
        why_not: device -> why it cannot run there; None if it can.
        backend: which of ours it is.
        lacks: what it does not do that ours do in this case.
        compiles: whether its first call takes many seconds.
        foreign: whether it is another library's: that it fails is no fault of ours.
    """

    name: str
    kind: Kind
    run: Callable[[Any], Any]
    check: Callable[[Any, Any], None]
    why_not: Callable[[torch.device], str | None] = runs_anywhere
    backend: str | None = None
    lacks: str = ""
    compiles: bool = False
    foreign: bool = False


def clones(inputs: Any, index: int) -> Any:
    """The same inputs in other memory; ``index`` tells copies apart where they differ."""
    tensors = {field.name: getattr(inputs, field.name) for field in fields(inputs)}
    return replace(
        inputs,
        **{
            name: x.detach().clone().requires_grad_(x.requires_grad)
            for name, x in tensors.items()
            if isinstance(x, Tensor)
        },
    )


@dataclass(frozen=True)
class Case:
    """One op at one shape.

    Attributes:
        op: the group of the case.
        shape: in words, with the model and dtypes.
        make: device -> inputs, a dataclass of tensors, the same at every call.
        implementations: what is compared.
        bytes: the least traffic: inputs read once in each pass that the op needs, results written
            once.
        flops: of the matrix products; 0 where there are none.
        dtype: of the matrix products.
        words: random words made, where that is the op's work.
        tokens: steps that a model makes, where it is run.
        another: (inputs, index) -> inputs that a call finds in no cache. Where a call reads a few
            rows of a large table, the copies share it and read other rows.
    """

    op: str
    shape: str
    make: Callable[[torch.device], Any]
    implementations: tuple[Implementation, ...]
    bytes: int
    flops: int = 0
    dtype: torch.dtype = torch.float32
    words: int = 0
    tokens: int = 0
    another: Callable[[Any, int], Any] = clones

    @property
    def name(self) -> str:
        return f"{self.op} {self.shape}"

    def on(self, device: torch.device) -> tuple[Implementation, ...]:
        """What is compared on ``device``; a backend for other devices is no part of it."""
        here = dispatch.candidates(device)
        return tuple(x for x in self.implementations if x.backend is None or x.backend in here)


@dataclass(frozen=True)
class Family:
    """The cases of an op: those that a plan asks for, and tiny ones that a test can run.

    Every implementation of ``timed`` is in ``tiny``, too, under the same name and dtype.
    """

    timed: Callable[[Plan], Iterable[Case]]
    tiny: tuple[Case, ...]


def ours(
    label: str,
    ops: Iterable[str],
    run: Callable[[Any, str], Any],
    check: Callable[[Any, Any], None],
    lacks: str = "",
) -> list[Implementation]:
    """One implementation per backend that has kernels for ``ops``, fastest first.

    ``run`` takes (inputs, backend).
    """
    wanted = tuple(ops)

    def on(backend: str) -> Implementation:
        def why_not(device: torch.device) -> str | None:
            reasons = (dispatch.why_not(op, device, backend) for op in wanted)
            return next((reason for reason in reasons if reason is not None), None)

        return Implementation(
            f"{label} ({backend})",
            "ours",
            lambda x: run(x, backend),
            check,
            why_not,
            backend,
            lacks,
        )

    names = dispatch.BACKENDS
    return [on(name) for name in names if all(name in dispatch.KERNELS[op][1] for op in wanted)]


def tensor_bytes(*tensors: Tensor) -> int:
    return sum(x.numel() * x.element_size() for x in tensors)


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def assert_close(name: str, got: Tensor, want: Tensor, tolerance: float) -> None:
    """Elementwise |got - want| <= tolerance * max |want|, both finite."""
    assert got.shape == want.shape, f"{name}: shape {list(got.shape)}, not {list(want.shape)}"
    allowed = tolerance * float(want.detach().abs().max())
    parts = (x.detach().flatten().split(_COMPARED) for x in (got, want))
    for x, y in zip(*parts, strict=True):
        error = float((x.double() - y.double()).abs().max())
        assert error <= allowed, f"{name}: off by {error:.3g}, {allowed:.3g} allowed"


def tolerance_of(dtype: torch.dtype) -> float:
    """What rounding inputs and results to ``dtype`` may cost, with room for long sums."""
    return 1e-4 if dtype == torch.float32 else 0.03


def generator(device: torch.device) -> torch.Generator:
    return torch.Generator(device).manual_seed(0)
