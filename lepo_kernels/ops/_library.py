"""How the torch ops of every family are declared.

`torch_op` does what ``torch.library.custom_op`` does, through the same public functions of
``torch.library``, but puts nothing between torch and the function: a call costs a quarter. Its
functions must neither change nor return an input.
"""

from collections.abc import Callable
from typing import Any, NoReturn

import torch

_LIBRARY = torch.library.Library("lepo_kernels", "FRAGMENT")


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
