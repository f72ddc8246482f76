"""How the torch ops of every family are declared.

A declaration is the op's fake kernel, which tells the results' shapes:

    @torch_op("linear_log_probs")
    def _linear_log_probs(head: Head, selection: Selection, backend: str) -> LinearLogProbs: ...

Arguments are tensors, numbers, and structures: named tuples of these (`lepo_kernels.structures`).
Torch's schema is flat, and holds the fields of a structure in its place. `_Layout` unpacks them, so
the callers of the op, its fake kernel, its autograd and the backends' kernels see structures. What
runs is the kernel of the op's name that `lepo_kernels.dispatch` loads from ``backend``, the last
argument; it gets all the others, and returns what torch sees: tensors. It must neither change nor
return an input.

It is what ``torch.library.custom_op`` does, through the same public functions of
``torch.library``, but puts less between torch and the kernel: a call costs a quarter.
"""

import inspect
from collections.abc import Callable
from itertools import islice
from typing import Any, Generic, NoReturn, TypeVar, get_type_hints

import torch
from torch import Tensor
from torch.autograd import forward_ad
from typing_extensions import TypeVarTuple, Unpack

from lepo_kernels import dispatch

_Arguments = TypeVarTuple("_Arguments")
_Results = TypeVar("_Results")


class _Library(torch.library.Library):
    """A library whose ops refuse forward-mode differentiation.

    What ``torch.library.register_autograd`` makes knows the backward pass only, and would drop the
    tangents of its inputs: the derivative would be 0 without a word.
    """

    def impl(self, op_name: Any, fn: Any, dispatch_key: str = "", **settings: Any) -> Any:
        """Register ``fn``; for autograd, behind the refusal."""
        if dispatch_key == "Autograd":
            fn = _refusing_tangents(op_name, fn)
        return super().impl(op_name, fn, dispatch_key, **settings)


def _refusing_tangents(op_name: Any, kernel: Callable[..., Any]) -> Callable[..., Any]:
    def refusing(keyset: Any, *args: Any) -> Any:
        # No level is open in all but a few calls: a glance instead of a look at every tensor.
        if getattr(forward_ad, "_current_level", 0) < 0:
            return kernel(keyset, *args)
        for x in args:
            if isinstance(x, Tensor) and forward_ad.unpack_dual(x).tangent is not None:
                raise RuntimeError(
                    f"lepo_kernels::{op_name}: forward-mode derivatives (torch.func.jvp, jacfwd, "
                    "torch.autograd.forward_ad) are not offered; use backward() or "
                    "torch.autograd.grad, or the plain torch expression"
                )
        return kernel(keyset, *args)

    return refusing


_LIBRARY = _Library("lepo_kernels", "FRAGMENT")


class _Layout:
    """Where arguments or results lie in torch's flat list of them."""

    def __init__(self, kinds: dict[str, Any]) -> None:
        self.flat: dict[str, Any] = {}  # the types of the flat list, by name
        self._kinds, packed, unpacked = kinds, [], []
        for name, kind in kinds.items():
            fields = get_type_hints(kind) if _is_structure(kind) else {name: kind}
            assert self.flat.keys().isdisjoint(fields), f"two arguments share a name: {fields}"
            first, past = len(self.flat), len(self.flat) + len(fields)
            self.flat |= fields
            packed.append(f"*{name}" if _is_structure(kind) else name)
            unpacked.append(
                f"new({name}, flat[{first}:{past}])" if _is_structure(kind) else f"flat[{first}]"
            )
        self._unpacked = unpacked
        self.pack = _function(f"{', '.join(kinds)}: ({''.join(f'{x}, ' for x in packed)})", {})
        self.unpack = self.calling("", "flat")

    def calling(
        self, function: str, flat: str = "*flat", count: int | None = None, **names: Any
    ) -> Callable[..., Any]:
        """A function of the flat list, which calls ``function`` with what it unpacks of it."""
        arguments = "".join(f"{x}, " for x in self._unpacked[:count])
        return _function(
            f"{flat}: {function}({arguments})", {"new": tuple.__new__, **names, **self._kinds}
        )


def _function(source: str, names: dict[str, Any]) -> Callable[..., Any]:
    # Written out: a loop over the arguments would take longer than some of the kernels.
    function: Callable[..., Any] = eval(compile(f"lambda {source}", __file__, "eval"), names)
    return function


def _is_structure(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, tuple)


class TorchOp(Generic[Unpack[_Arguments], _Results]):
    """The op ``torch.ops.lepo_kernels.<name>`` for every device."""

    def __init__(
        self,
        name: str,
        fake: Callable[[Unpack[_Arguments]], _Results],
        implementation: Callable[[Unpack[_Arguments]], Any] | None,
    ) -> None:
        self.name = f"lepo_kernels::{name}"
        kinds = get_type_hints(fake)
        result = kinds.pop("return")
        self._arguments = _Layout(kinds)
        self._results = _Layout(get_type_hints(result) if _is_structure(result) else {})
        self._places = {field: at for at, field in enumerate(self._arguments.flat)}
        _LIBRARY.define(name + self._schema(result), tags=(torch.Tag.pt2_compliant_tag,))
        if implementation is None:
            load = "dispatch.load(op, flat[-1])"
            run = self._arguments.calling(load, count=-1, dispatch=dispatch, op=name)
        else:
            run = self._arguments.calling("run", run=implementation)
        _LIBRARY.impl(name, run, "CompositeExplicitAutograd")
        empty = self._arguments.calling("fake", fake=fake)
        # Results as callers see them, of results as torch sees them.
        self._structured: Callable[[Any], Any] = lambda flat: flat
        if _is_structure(result):
            pack, fake_structure = self._results.pack, empty
            empty = lambda *flat: pack(*fake_structure(*flat))  # noqa: E731
            self._structured = self._results.calling("result", "flat", result=result)
        torch.library.register_fake(self.name, empty, lib=_LIBRARY)
        self._op = getattr(torch.ops.lepo_kernels, name).default

    def __call__(self, *arguments: Unpack[_Arguments]) -> _Results:
        """Call the op; structures come back as such."""
        results: _Results = self._structured(self._op(*self._arguments.pack(*arguments)))
        return results

    def unpack(self, flat: Any) -> tuple[Any, ...]:
        """Arguments as the kernels see them, of arguments as torch sees them."""
        unpacked: tuple[Any, ...] = self._arguments.unpack(flat)
        return unpacked

    def needs(self, ctx: Any, *names: str) -> list[bool]:
        """Which of the named arguments, fields of structures among them, take a gradient."""
        needed = ctx.needs_input_grad
        return [needed[self._places[name]] for name in names]

    def register_autograd(
        self,
        backward: Callable[..., dict[str, Tensor]],
        setup_context: Callable[[Any, tuple[Any, ...], Any], None],
    ) -> None:
        """Differentiate the op.

        Args:
            backward: called with a context and the gradients of all results; returns those of
                arguments, or of fields of them, by name. One that is not needed may be anything.
            setup_context: called with a context, the arguments and the results; it says with `save`
                what ``backward`` gets from `saved`.
        """

        def setup(ctx: Any, inputs: Any, output: Any) -> None:
            setup_context(ctx, self._arguments.unpack(inputs), self._structured(output))

        def flat_backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
            needed = ctx.needs_input_grad
            gradients: list[Tensor | None] = [None] * len(needed)
            for name, gradient in backward(ctx, *grads).items():
                at = self._places[name]
                gradients[at] = gradient if needed[at] else None
            return tuple(gradients)

        torch.library.register_autograd(self.name, flat_backward, setup_context=setup, lib=_LIBRARY)

    def refuse_double_backward(self) -> None:
        """Make differentiating this backward op an error that says what is not offered."""

        def backward(ctx: Any, *grads: Any) -> NoReturn:
            raise RuntimeError(
                f"{self.name}: second derivatives are not offered; compute this gradient without "
                "create_graph=True, or use the plain torch expression for double backward"
            )

        torch.library.register_autograd(self.name, backward, lib=_LIBRARY)

    def _schema(self, result: Any) -> str:
        def prototype() -> None: ...

        if self._results.flat:
            # With brackets, mypy takes it for a type that is written here.
            result = tuple.__class_getitem__(tuple(self._results.flat.values()))
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        prototype.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [inspect.Parameter(x, kind, annotation=y) for x, y in self._arguments.flat.items()],
            return_annotation=result,
        )
        return torch.library.infer_schema(prototype, mutates_args=())


OPS: dict[str, TorchOp] = {}


def torch_op(
    name: str, implementation: Callable[..., Any] | None = None
) -> Callable[[Callable[[Unpack[_Arguments]], _Results]], TorchOp[Unpack[_Arguments], _Results]]:
    """Declare ``torch.ops.lepo_kernels.<name>``, whose fake kernel the decorated function is.

    Args:
        name: of the op, and of the backends' kernels.
        implementation: what runs instead of those, with all arguments.
    """

    def declare(
        fake: Callable[[Unpack[_Arguments]], _Results],
    ) -> TorchOp[Unpack[_Arguments], _Results]:
        OPS[name] = TorchOp(name, fake, implementation)
        return OPS[name]

    return declare


def save(ctx: Any, *values: Any) -> None:
    """Keep tensors, numbers and structures of them for the backward pass."""
    flat: list[Any] = []
    for value in values:
        flat += value if isinstance(value, tuple) else (value,)
    tensors = [x if isinstance(x, Tensor) else None for x in flat]
    ctx.save_for_backward(*tensors)
    ctx.numbers = [x if kept is None else None for x, kept in zip(flat, tensors, strict=True)]
    ctx.kinds = [type(value) if isinstance(value, tuple) else None for value in values]


def saved(ctx: Any) -> list[Any]:
    """What `save` was given."""
    kept = zip(ctx.saved_tensors, ctx.numbers, strict=True)
    flat = iter([number if tensor is None else tensor for tensor, number in kept])
    return [
        next(flat) if kind is None else kind._make(islice(flat, len(kind._fields)))
        for kind in ctx.kinds
    ]
