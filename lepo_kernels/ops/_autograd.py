"""What the torch ops of every family share."""

from typing import Any, NoReturn

from torch._library.custom_ops import CustomOpDef


def refuse_double_backward(op: CustomOpDef) -> None:
    """Make differentiating the backward op ``op`` an error that says what is not offered."""
    name = op._qualname

    def backward(ctx: Any, *grads: Any) -> NoReturn:
        raise RuntimeError(
            f"{name}: second derivatives are not offered; compute this gradient without "
            "create_graph=True, or use the plain torch expression for double backward"
        )

    op.register_autograd(backward)
