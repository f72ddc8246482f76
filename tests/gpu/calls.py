"""Calls of every op that the cuda backend serves, by the names in `dispatch.KERNELS` alone."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree

from lepo_kernels import dispatch
from tests.ops.native_cases import NATIVE_OPS, Case, cases, same_bits


def widths_on(device: torch.device) -> tuple[int, ...]:
    """Some vectors of 16 bytes and a rest; more than the 64 entries of the draw's fast path.

    On a GPU also some tiles of any kernel and a rest: the simulator would take seconds for them.
    """
    return (37, 97) if device.type == "cpu" else (37, 97, 4099)


def cuda_ops() -> list[str]:
    return [op for op, (_, backends) in dispatch.KERNELS.items() if "cuda" in backends]


def needs(*ops: str) -> pytest.MarkDecorator:
    """Skips a test of ops for which there is no kernel."""
    lacking = [op for op in ops if op not in cuda_ops()]
    return pytest.mark.skipif(bool(lacking), reason=f"no CUDA kernel for {', '.join(lacking)}")


def calls_of(op: str, device: torch.device) -> Iterator[Case]:
    """The example calls of ``op``, on the device; made on the CPU, so that no other kernel runs."""
    for case in cases(op, widths_on(device)):
        yield case._replace(arguments=moved(case.arguments, device))


def assert_agree(case: Case, ours: Tensor, expected: Tensor) -> None:
    """The same bits; of an op with matrix products, as close as two orders of its sums are.

    torch's products need not have the same bits on another stream or in a graph.
    """
    if not (NATIVE_OPS[case.op].has_matrix_product and ours.is_floating_point()):
        assert same_bits(ours, expected), case.name
        return
    assert ours.shape == expected.shape, case.name
    # Both round once to their dtype; what cancels in float32 sums leaves more than a rounding.
    unit = 1e-5 if ours.dtype == torch.float32 else 2 * torch.finfo(ours.dtype).eps
    if ours.numel() > 0:
        error = (ours.double() - expected.double()).abs().amax()
        assert error <= unit * expected.double().abs().amax(), case.name


def moved(values: Any, device: torch.device) -> Any:
    """The same, with every tensor on the device, in the same layout."""
    return _pytree.tree_map_only(Tensor, lambda x: x.to(device), values)
