"""Calls the ops of a backend on tensors beside forbidden pages; run by test_guard_pages.py.

Argument: the backend. Prints each call before it makes it.
"""

import sys
from typing import Any

import torch
from torch import Tensor

from tests.guarded import SIDES, GuardedMemory
from tests.ops.native_cases import NATIVE_OPS, Case, cases, native_ops, same_bits, with_row_stride
from tests.tolerances import rounding, sum_error

# One entry; a pair; less than one vector of any instruction set; one less and one more than two of
# the widest; many and a rest; one past a power of two.
WIDTHS = (1, 2, 7, 31, 33, 1000, 4097)


class GuardedArguments:
    """Copies of a call's tensors, with their strides, whose memory is guarded at one side."""

    def __init__(self, arguments: tuple[Any, ...], side: str):
        self._side = side
        self._memory: list[GuardedMemory] = []
        self.values = tuple(self._guard(x) for x in arguments)
        self._before = [m.bytes.raw for m in self._memory]

    def unchanged(self) -> bool:
        """Whether the tensors, the gaps between their rows and what lies beside are as before."""
        return all(
            memory.bytes.raw == before and memory.untouched_beside()
            for memory, before in zip(self._memory, self._before, strict=True)
        )

    def _guard(self, x: Any) -> Any:
        if not isinstance(x, Tensor) or x.numel() == 0:
            return x
        span = 1 + sum((n - 1) * stride for n, stride in zip(x.shape, x.stride(), strict=True))
        memory = GuardedMemory(span * x.element_size(), self._side)
        self._memory.append(memory)
        flat = torch.frombuffer(memory.bytes, dtype=x.dtype)
        return flat.as_strided(x.shape, x.stride()).copy_(x)


def check(case: Case, backend: str) -> None:
    expected = case.run(backend)
    for layout in ("dense", "row stride"):
        arguments = case.arguments
        if layout == "row stride":
            arguments = tuple(with_row_stride(x) for x in arguments)
        for side in SIDES:
            print(f"{case.name}, {layout}, guarded at the {side}", flush=True)
            guarded = GuardedArguments(arguments, side)
            found = case.run(backend, guarded.values)
            assert guarded.unchanged(), "an input changed"
            for ours, same in zip(found, expected, strict=True):
                if NATIVE_OPS[case.op].has_matrix_product:
                    # Another alignment is another order of summation. What follows from such a
                    # product is as exact as float32, whatever dtype it is kept in: two sums of up
                    # to WIDTHS[-1] terms, of magnitude 16 beside a result of about 1.
                    slack = 2 * 16 * sum_error(WIDTHS[-1]) + 2 * rounding(ours.dtype)
                    torch.testing.assert_close(ours, same, rtol=slack, atol=slack, equal_nan=True)
                else:
                    assert same_bits(ours, same), "other results than from ordinary memory"


def main(backend: str) -> None:
    torch.set_num_threads(1)
    for op in native_ops() if backend == "cpu" else NATIVE_OPS:
        for case in cases(op, WIDTHS):
            check(case, backend)


if __name__ == "__main__":
    main(*sys.argv[1:])
