"""The memory of one launch: what belongs to its tensors, and which program touched what."""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

NOBODY, MANY = -1, -2


class KernelError(AssertionError):
    """A kernel did with memory what it must not; the message says what and where."""


class _Span:
    """Memory without gaps that tensors of a launch share, and who touched its grains.

    A grain is as large as the smallest element of these tensors.
    """

    def __init__(self, first: int, past: int, grain: int) -> None:
        self.first, self.past, self.grain = first, past, grain
        # Program that loaded (or several), stored, and updated atomically (or several).
        self.loaded, self.stored, self.updated = (
            np.full(-(-(past - first) // grain), NOBODY, np.int32) for _ in range(3)
        )


class Memory:
    """Checks every access of a launch.

    Programs of a launch run in any order, and a barrier between the threads of one is nothing that
    a kernel can rely on having. So it is a fault if a program stores what another one touches, if
    plain and atomic accesses of several programs meet, if lanes of one store meet, or if a program
    loads what it has stored.
    """

    def __init__(self, tensors: Sequence[Tensor], races: bool) -> None:
        self._races = races
        self._spans = _merged(sorted(_extent(x) for x in tensors if x.numel() > 0))
        self._starts = np.array([span.first for span in self._spans], np.uint64)

    def access(self, kind: str, lanes: np.ndarray, size: int, program: int) -> None:
        """A program loads, stores or atomically updates ``size`` bytes at each address."""
        where = np.searchsorted(self._starts, lanes, side="right") - 1
        for index in np.unique(where):
            mine = lanes[where == index]
            if index < 0:
                raise KernelError(f"program {program}: {kind} outside of every tensor")
            span = self._spans[index]
            outside = mine + np.uint64(size) > span.past
            if outside.any():
                past = int(mine[outside][0]) - span.past
                raise KernelError(
                    f"program {program}: {kind} of {size} bytes outside of every tensor, in "
                    f"{int(outside.sum())} lanes, {past} bytes past the nearest one before it"
                )
            if (mine % np.uint64(size)).any():
                raise KernelError(f"program {program}: misaligned {kind} of {size} bytes")
            if self._races:
                self._touch(kind, span, mine, size, program)

    def _touch(self, kind: str, span: _Span, lanes: np.ndarray, size: int, program: int) -> None:
        grains = ((lanes - np.uint64(span.first)) // np.uint64(span.grain)).astype(np.int64)
        width = max(1, size // span.grain)
        if width > 1:
            grains = (grains[:, None] + np.arange(width)).reshape(-1)
        if kind == "load":
            _refuse(span.stored[grains] == program, program, "loads what it has stored")
            _refuse(span.stored[grains] != NOBODY, program, "loads what another one stores")
            _refuse(_others(span.updated[grains], program), program, "loads what others update")
            _mark(span.loaded, grains, program)
            return
        _refuse(_others(span.loaded[grains], program), program, f"{kind}s what others load")
        _refuse(_others(span.stored[grains], program), program, f"{kind}s what another one stores")
        if kind == "store":
            _refuse(_others(span.updated[grains], program), program, "stores what others update")
            span.stored[grains] = program
            if np.unique(grains).size != grains.size:
                raise KernelError(f"race: lanes of program {program} store to the same place")
        else:
            _mark(span.updated, grains, program)


def _extent(x: Tensor) -> tuple[int, int, int]:
    elements = 1 + sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True))
    size = x.element_size()
    return x.data_ptr(), x.data_ptr() + elements * size, size


def _merged(extents: list[tuple[int, int, int]]) -> list[_Span]:
    """Tensors may be views of one storage, whose extents overlap."""
    merged: list[tuple[int, int, int]] = []
    for first, past, size in extents:
        if merged and first < merged[-1][1]:
            before = merged.pop()
            first, past, size = before[0], max(past, before[1]), min(size, before[2])
        merged.append((first, past, size))
    return [_Span(*extent) for extent in merged]


def _others(touched: np.ndarray, program: int) -> np.ndarray:
    return (touched != NOBODY) & (touched != program)


def _mark(touched: np.ndarray, grains: np.ndarray, program: int) -> None:
    touched[grains] = np.where(_others(touched[grains], program), MANY, program)


def _refuse(bad: np.ndarray, program: int, what: str) -> None:
    if bad.any():
        raise KernelError(f"race: program {program} {what}, in {int(bad.sum())} places")
