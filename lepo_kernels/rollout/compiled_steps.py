"""One compiled graph per phase of `StaticSteps`, kept from rollout to rollout.

Rollouts share graphs and buffers where they are of one size: the rows and columns of a batch are
rounded up to few sizes. With graphs, their memory stays: a key-value cache per size, of which each
model keeps the last `KEPT`.
"""

import functools
import logging
import types
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn
from torch._dynamo.exc import TorchDynamoException

from lepo_kernels.rollout.config import LatentGenerationConfig
from lepo_kernels.rollout.schedule import Phase
from lepo_kernels.rollout.soft_embedding import SoftEmbedding
from lepo_kernels.rollout.static_steps import StaticSteps

_logger = logging.getLogger(__name__)

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
        required: whether a step that torch cannot compile is an error; else the log says so, and
            the phase goes on one operation at a time.
    """

    def __init__(self, steps: StaticSteps, *, required: bool):
        self.steps = steps
        self._required = required
        self._advance: dict[Phase, Callable[[Any], None]] = {}

    def advance(self, base: Any, phase: Phase) -> None:
        """As `StaticSteps.advance`, in one graph.

        Raises:
            TorchDynamoException: torch cannot compile it, and that is required.
        """
        if phase not in self._advance:
            self._advance[phase] = compile_step(_own_function(self.steps, phase))
        try:
            self._advance[phase](base)
        except TorchDynamoException as error:
            if self._required:
                raise
            # Nothing of the step has run.
            _logger.warning(
                "rollouts of %s do not compile %s steps: %s",
                type(base).__name__,
                phase.value,
                str(error).strip().partition("\n")[0],
            )
            self._advance[phase] = functools.partial(self.steps.advance, phase=phase)
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
        steps = StaticSteps(base, soft, config, size.rows, size.columns, backend, device)
        found = CompiledSteps(steps, required=config.compile_rollout is True)
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
