"""One compiled graph per phase of `StaticSteps`, kept from rollout to rollout.

Rollouts share graphs and buffers where they are of one size: the rows and columns of a batch are
rounded up to few sizes. With graphs, their memory stays: a key-value cache per size, of which each
model keeps the last `KEPT`.
"""

import types
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

from lepo_kernels.rollout.config import LatentGenerationConfig
from lepo_kernels.rollout.schedule import Phase
from lepo_kernels.rollout.soft_embedding import SoftEmbedding
from lepo_kernels.rollout.static_steps import StaticSteps

# Sizes that a model keeps its graphs and buffers of.
KEPT = 4
_COLUMNS = 128
_ROWS = 32


class _Size(NamedTuple):
    config: LatentGenerationConfig
    rows: int
    columns: int
    dtype: torch.dtype
    device: torch.device
    backend: str | None


class CompiledSteps:
    """Steps, and what moves them on.

    Args:
        steps: of one size.
    """

    def __init__(self, steps: StaticSteps):
        self.steps = steps
        self._advance: dict[Phase, Callable[[Any], None]] = {}

    def advance(self, base: Any, phase: Phase) -> None:
        """As `StaticSteps.advance`, in one graph."""
        if phase not in self._advance:
            self._advance[phase] = compile_step(_own_function(self.steps, phase))
        self._advance[phase](base)


_kept: "weakref.WeakKeyDictionary[nn.Module, dict[_Size, CompiledSteps]]" = (
    weakref.WeakKeyDictionary()
)


def compiled_steps(
    base: Any,
    soft: SoftEmbedding,
    config: LatentGenerationConfig,
    rows: int,
    columns: int,
    backend: str | None,
    device: torch.device,
) -> CompiledSteps:
    """The steps of a rollout of ``rows`` rows and ``columns`` columns; see `StaticSteps`."""
    weight: Any = soft.module.weight
    size = _Size(config, round_rows(rows), round_columns(columns), weight.dtype, device, backend)
    held = _kept.setdefault(base, {})
    found = held.pop(size, None)
    if found is None or not found.steps.soft.is_like(soft):
        while len(held) >= KEPT:
            del held[next(iter(held))]
        found = CompiledSteps(
            StaticSteps(base, soft, config, size.rows, size.columns, backend, device)
        )
    # The last one used is the last one to go.
    held[size] = found
    return found


def round_rows(rows: int) -> int:
    """The next power of two, or multiple of 32."""
    return 1 << (rows - 1).bit_length() if rows <= _ROWS else -(-rows // _ROWS) * _ROWS


def round_columns(columns: int) -> int:
    """The next multiple of 128."""
    return -(-columns // _COLUMNS) * _COLUMNS


def compile_step(step: Callable[[Any], None]) -> Callable[[Any], None]:
    """One graph of a step; on a GPU replayed as a CUDA graph."""
    mode = "reduce-overhead" if torch.cuda.is_available() else None
    compiled: Callable[[Any], None] = torch.compile(step, fullgraph=True, dynamic=False, mode=mode)
    return compiled


def _own_function(steps: StaticSteps, phase: Phase) -> Callable[[Any], None]:
    """A function with code of its own, by which dynamo keeps graphs and counts them."""

    def step(base: Any) -> None:
        steps.advance(base, phase)

    code = step.__code__.replace(co_name=f"{phase.value}_step_{id(steps):x}")
    return types.FunctionType(code, step.__globals__, None, None, step.__closure__)
