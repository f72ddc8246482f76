"""Arguments of public ops, right and wrong, for property-based tests.

An argument is *good* (the docstring allows it), *edge* (allowed, but the result may overflow, so
that the op may refuse it or return numbers that are not finite) or *bad* (it must be refused). A
`Draft` collects the arguments of one call: most are good, those named in ``spoiled`` are not.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from typing import Any

import hypothesis.strategies as st
import numpy as np
import torch
from torch import Tensor

from lepo_kernels.validation import FLOAT_DTYPES, INDEX_DTYPES

ALL_DTYPES = (
    *FLOAT_DTYPES,
    *INDEX_DTYPES,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
    torch.complex64,
    torch.float8_e4m3fn,
)
LAYOUTS = ("contiguous", "transposed", "strided", "offset", "expanded", "negated")
NOT_TENSORS = ("x", 1, 1.5, [1], (), np.zeros((2, 2)), object(), torch.float32)
NOT_NUMBERS = ("1", None, True, 1j, Decimal(1), [1.0], torch.tensor(1.0), np.ones(2))
NOT_INTEGERS = ("1", None, True, 1.0, float("nan"), [1], torch.tensor([[1]]))
NOT_CHOICES = ("laplace", "", None, 3, ["gumbel"], np.array(["gumbel", "none"]), torch.ones(2))
NOT_BACKENDS = ("tpu", "", 5, True, b"cpu", ["cpu"], np.array(["cpu", "cuda"]))
# Python's own integers and Fractions know no largest number.
HUGE = 10**400


@dataclass
class Draft:
    """The arguments of one call as they are drawn.

    ``anchors`` are the arguments that others are measured against: when one of them is wrong, the
    blame may fall on any.
    """

    draw: Callable[[st.SearchStrategy], Any]
    anchors: frozenset[str]
    spoiled: tuple[str | None, ...]
    arguments: dict[str, Any] = field(default_factory=dict)
    edge: set[str] = field(default_factory=set)
    bad: set[str] = field(default_factory=set)

    def pick(self, *choices: Any) -> Any:
        return self.draw(st.sampled_from(choices))

    def put(
        self,
        name: str,
        good: Callable[[], Any],
        bad: Callable[[], Any] | None = None,
        edge: Callable[[], Any] | None = None,
    ) -> Any:
        """Draw argument ``name``; a function that returns ``Skip`` cannot spoil it this time."""
        value = good()
        if name in self.spoiled:
            kinds = [(kind, make) for kind, make in ((self.bad, bad), (self.edge, edge)) if make]
            kind, make = kinds[self.draw(st.integers(0, len(kinds) - 1))]
            other = make()
            if other is not Skip:
                kind.add(name)
                value = other
        self.arguments[name] = value
        return value

    # Tensors.

    def tensor(
        self, shape: tuple[int, ...], dtype: torch.dtype, *, scale: float = 1.0, keep: bool = False
    ) -> Tensor:
        """Normal numbers in any layout; ``keep`` rules out layouts that repeat the first row."""
        generator = torch.Generator().manual_seed(self.draw(st.integers(0, 99)))
        values = torch.randn(shape, generator=generator, dtype=torch.float64) * scale
        return self.laid_out(values.to(dtype), keep=keep)

    def ids(self, shape: tuple[int, ...], vocab: int) -> Tensor:
        """Ids in [0, vocab), of either dtype and in any layout."""
        generator = torch.Generator().manual_seed(self.draw(st.integers(0, 99)))
        ids = torch.randint(0, max(vocab, 1), shape, generator=generator)
        return self.laid_out(ids.to(self.pick(*INDEX_DTYPES)))

    def laid_out(self, x: Tensor, *, keep: bool = False) -> Tensor:
        return lay_out(x, self.pick(*(y for y in LAYOUTS if not (keep and y == "expanded"))))

    def bad_ids(self, ids: Tensor, vocab: int) -> Any:
        limits = torch.iinfo(ids.dtype)
        return self.with_value(ids, self.pick(-1, vocab, limits.min, limits.max))

    def with_value(self, x: Tensor, value: float) -> Any:
        """``x`` with one entry replaced."""
        if x.numel() == 0:
            return Skip
        changed = x.detach().clone(memory_format=torch.contiguous_format)
        changed.view(-1)[self.draw(st.integers(0, x.numel() - 1))] = value
        return changed

    def bad_tensor(
        self,
        like: Tensor,
        welcome: tuple[torch.dtype, ...],
        *,
        bound: tuple[int, ...] = (),
        optional: bool = False,
        anchor: bool = False,
        any_rank: bool = False,
    ) -> Any:
        """Something of the wrong type, dtype, rank, size, device or layout.

        Args:
            like: a good value.
            welcome: the dtypes that are good.
            bound: dimensions whose size other arguments fix.
            optional: whether None is good.
            anchor: whether the other arguments' device is this one's.
            any_rank: whether every rank from 1 is good.
        """
        kinds = ["type", "dtype", "layout", "scalar"]
        kinds += [] if anchor else ["device"]
        kinds += ["size"] if bound else []
        kinds += [] if any_rank else ["rank"]
        kind = self.pick(*kinds)
        if kind == "type":
            return self.pick(*NOT_TENSORS, *(() if optional else (None,)))
        if kind == "dtype":
            others = [d for d in ALL_DTYPES if d not in welcome]
            # The likeliest mistakes are as likely as all others together.
            near = [
                d
                for d in others
                if d in (FLOAT_DTYPES if like.is_floating_point() else INDEX_DTYPES)
            ]
            return like.to(self.pick(*(near if near and self.pick(True, False) else others)))
        if kind == "layout":
            return like.to_sparse()
        if kind == "scalar":
            return like.new_zeros(())
        if kind == "device":
            return like.to("meta")
        if kind == "rank":
            return like[None]
        dim = self.pick(*bound)
        sizes = list(like.shape)
        sizes[dim] = self.pick(*(x for x in (sizes[dim] + 1, sizes[dim] - 1, 0) if x >= 0))
        if sizes[dim] == like.shape[dim]:
            return Skip
        return torch.zeros(sizes, dtype=like.dtype)

    # Numbers.

    def number(self, low: float, high: float) -> Any:
        value = self.draw(st.floats(low, high))
        kind = self.pick("float", "float", "numpy", "fraction", "int")
        if kind == "numpy":
            return np.float64(value)
        if kind == "fraction":
            return Fraction(value)
        return int(value) if kind == "int" and low <= int(value) else value

    def bad_number(self, *out_of_range: float, optional: bool = False) -> Any:
        others = (y for y in NOT_NUMBERS if not (optional and y is None))
        return self.pick(float("nan"), 1e300, HUGE, -HUGE, Fraction(-HUGE), *out_of_range, *others)

    def bad_integer(self, *out_of_range: int, optional: bool = False) -> Any:
        return self.pick(*out_of_range, *(y for y in NOT_INTEGERS if not (optional and y is None)))

    # Arguments that several ops share.

    def put_per_row(self, name: str, rows: int, *, zero_included: bool = False) -> None:
        """A positive number, or one per row."""

        def good() -> Any:
            if self.pick(True, False):
                return (
                    self.pick(0.0, 5e-324, 1e-38, 3e38)
                    if self._zero(zero_included)
                    else (self.number(1e-3, 1e3))
                )
            shape = self.pick((), (rows,))
            values = self.tensor(shape, self.pick(torch.float32, torch.float64)).abs() + 0.1
            return self.laid_out(values)

        def bad() -> Any:
            out = (-1.0, 1e39, float("inf"), -float("inf"))
            out += () if zero_included else (0, 0.0, 1e-39, 5e-324)
            if self.pick(True, False):
                return self.pick(float("nan"), HUGE, "1", None, True, *out)
            like = self.pick(torch.ones(rows), torch.ones(()))
            if self.pick(True, False):
                return self.with_value(like.double(), self.pick(float("nan"), *out))
            if like.dim() == 0:
                return like[None].expand(rows + 1)
            return self.bad_tensor(like, (torch.float32, torch.float64), bound=(0,), any_rank=True)

        self.put(name, good, lambda: _no_scalar(bad()), lambda: self.pick(2e-38, 3e38))

    def _zero(self, zero_included: bool) -> bool:
        return zero_included and self.pick(True, False)

    def put_seed(self, *, required: bool = False) -> None:
        def good() -> Any:
            seed = self.draw(st.integers(-(1 << 63), (1 << 64) - 1))
            as_tensor = seed < 1 << 63 and self.pick(True, False)
            return torch.tensor(seed) if as_tensor else seed

        def bad() -> Any:
            if self.pick(True, False):
                return self.bad_integer(1 << 64, -(1 << 63) - 1, HUGE)
            return self.pick(
                torch.tensor(1, dtype=torch.int32),
                torch.tensor([1]),
                torch.tensor(1.0),
                torch.tensor(1, device="meta"),
            )

        self.put("seed", good, bad)

    def put_step(self, rows: int, *, used: bool = True) -> None:
        def good() -> Any:
            step = self.draw(st.integers(0, (1 << 32) - 1))
            if self.pick(True, False):
                return step
            return self.laid_out(torch.full(self.pick((), (rows,)), step))

        def bad() -> Any:
            kind = self.pick("integer", "value", "tensor")
            if kind == "integer":
                return self.bad_integer(-1, 1 << 32, 1 << 63, -HUGE)
            steps = torch.zeros(rows, dtype=torch.int64)
            if kind == "value":
                # Nothing reads the steps of a draw without noise.
                extremes = (-1, 1 << 32, -(1 << 63), (1 << 63) - 1)
                return self.with_value(steps, self.pick(*extremes)) if used else Skip
            return _no_scalar(self.bad_tensor(steps, INDEX_DTYPES, bound=(0,)))

        self.put("step", good, bad)

    def put_row_keys(self, rows: int, *, optional: bool = True) -> None:
        def some() -> Tensor:
            limits = (-(1 << 63), -1, 0, (1 << 63) - 1)
            return self.laid_out(torch.tensor([self.pick(*limits) for _ in range(rows)]).long())

        def good() -> Any:
            return self.pick(None, some()) if optional else some()

        self.put(
            "row_keys",
            good,
            lambda: self.bad_tensor(
                torch.zeros(rows, dtype=torch.int64),
                (torch.int64,),
                bound=(0,) if optional else (),
                optional=optional,
                anchor=not optional,
            ),
        )

    def put_backend(self, backend: str) -> None:
        self.put("backend", lambda: backend, lambda: self.pick(*NOT_BACKENDS))


class Skip:
    """In place of a value that these sizes do not offer."""


def _no_scalar(value: Any) -> Any:
    """Where a number or a 0-d tensor is good, one that came up as no [N] tensor spoils nothing."""
    if isinstance(value, Tensor) and value.dim() == 0 and value.device.type == "cpu":
        welcome = value.dtype in (*INDEX_DTYPES, torch.float32, torch.float64)
        return Skip if welcome and bool(value >= 0) else value
    return Skip if isinstance(value, int | float) and value in (1, 1.5) else value


def lay_out(x: Tensor, layout: str) -> Tensor:
    """The values of ``x`` in another memory layout; "expanded" repeats the first row."""
    if layout == "negated":
        return torch._neg_view(-x) if x.dtype in FLOAT_DTYPES else x
    if x.dim() == 0 or layout == "contiguous":
        return x
    if layout == "transposed":
        order = tuple(reversed(range(x.dim())))
        return x.permute(order).contiguous().permute(order)
    if layout == "expanded":
        return x[:1].expand(x.shape) if len(x) else x
    stride, start = (2, 1) if layout == "strided" else (1, 3)
    width = x.shape[-1]
    room = x.new_zeros(*x.shape[:-1], stride * width + start)
    view = room[..., start::stride][..., :width]
    view.copy_(x)
    return view
