"""How the torch ops of every family are declared.

`torch_op` does what ``torch.library.custom_op`` does, through the same public functions of
``torch.library``, but puts nothing between torch and the function: a call costs a quarter. Its
functions must neither change nor return an input.
"""

from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.autograd import forward_ad


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


class TorchOp:
    """The op ``torch.ops.lepo_kernels.<name>`` for every device."""

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self.name = f"lepo_kernels::{name}"
        schema = torch.library.infer_schema(function, mutates_args=())
        _LIBRARY.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
        _LIBRARY.impl(name, function, "CompositeExplicitAutograd")

    def register_fake(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Let ``function`` tell the results' shapes and dtypes."""
        torch.library.register_fake(self.name, function, lib=_LIBRARY)
        return function

    def register_autograd(
        self, backward: Callable[..., Any], *, setup_context: Callable[..., None] | None = None
    ) -> None:
        """Let ``backward`` compute the gradients."""
        torch.library.register_autograd(
            self.name, backward, setup_context=setup_context, lib=_LIBRARY
        )

    def refuse_double_backward(self) -> None:
        """Make differentiating this backward op an error that says what is not offered."""

        def backward(ctx: Any, *grads: Any) -> NoReturn:
            raise RuntimeError(
                f"{self.name}: second derivatives are not offered; compute this gradient without "
                "create_graph=True, or use the plain torch expression for double backward"
            )

        self.register_autograd(backward)


def torch_op(name: str) -> Callable[[Callable[..., Any]], TorchOp]:
    """Declare the decorated function as ``torch.ops.lepo_kernels.<name>``."""
    return lambda function: TorchOp(name, function)
