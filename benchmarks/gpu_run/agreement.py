"""Whether two backends' results agree, and whether two runs of one have the same bits."""

import torch
from torch import Tensor

# A row without anything of its own shows what is left of others' rounding.
_FLOOR = 1e-3


def disagreement(
    ours: Tensor,  # [...]
    expected: Tensor,  # [...]
    sums: int,
) -> str:
    """What is wrong with a result; empty if nothing is.

    What is expected may be of a wider dtype. Integers are equal. Of floating-point matrices each
    row's error is compared to the row's norm.
    A result in 16 bits may be off by two of its roundings, its own and that of the logits'
    gradients, each half an epsilon of what is rounded; what the signs of a sum cancel doubles it.
    One in float32 may be off by half an epsilon for each of the ``sums`` terms of two sums.
    """
    if ours.shape != expected.shape:
        return f"is {_form(ours)} instead of {_form(expected)}"
    expected = expected.to(ours.dtype)
    if not ours.is_floating_point():
        wrong = int((ours != expected).sum())
        return f"differs in {wrong} of {ours.numel()} entries" if wrong else ""
    if not torch.equal(ours.isfinite(), expected.isfinite()):
        return "is finite elsewhere"
    eps = torch.finfo(ours.dtype).eps
    unit = 2 * eps if ours.dtype != torch.float32 else sums * eps
    a, b = (x.nan_to_num(0.0, 0.0, 0.0).float() for x in (ours, expected))
    a, b = (x if x.dim() > 1 else x.reshape(1, -1) for x in (a, b))
    size = torch.linalg.vector_norm(b, dim=-1)
    allowed = unit * (size + _FLOOR * size.amax())
    error = torch.linalg.vector_norm(a - b, dim=-1)
    worst = int((error - allowed).argmax())
    found, most = (float(x.flatten()[worst]) for x in (error, allowed))
    return "" if found <= most else f"row {worst} is off by {found:.3g}, allowed {most:.3g}"


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether all bytes are equal, those of NaN included."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    x, y = (t.contiguous().view(-1).view(torch.uint8) for t in (a, b))
    return torch.equal(x, y)


def _form(x: Tensor) -> str:
    return f"{str(x.dtype).removeprefix('torch.')} {list(x.shape)}"
