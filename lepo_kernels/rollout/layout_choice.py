"""Which layout a forward over a rollout takes: the cheapest one that the model can run."""

import logging
import weakref
from typing import Any

import torch
from torch import distributed, nn

from lepo_kernels.rollout._modules import sharding_of
from lepo_kernels.rollout.layout import Layout, LayoutSettings, PlainRows, Steps
from lepo_kernels.rollout.packed_rows import PackedRows, can_pack
from lepo_kernels.rollout.record import LatentRollout
from lepo_kernels.rollout.shared_prompts import SharedPrompts, why_no_sharing

# Another layout must leave out this share of the plain one's tokens at least.
_LEAST_SAVED = 1 / 16

_logger = logging.getLogger(__name__)
_told: "weakref.WeakKeyDictionary[nn.Module, set[str]]" = weakref.WeakKeyDictionary()


def choose_layout(
    base: Any,
    rollout: LatentRollout,
    steps: Steps,
    settings: LayoutSettings,
    *,
    backend: str | None = None,
) -> Layout:
    """The layout of a forward.

    Args:
        base: the unwrapped model. What it cannot run is said in the log, once.
        rollout: the rows and steps to run.
        steps: the selected steps.
        settings: which layouts may be taken.
        backend: see `lepo_kernels.backend`.
    """
    plain = PlainRows(base, rollout, backend=backend)
    if not any(settings):
        return plain
    if getattr(base.config.get_text_config(), "output_router_logits", False):
        _tell(base, "padding and repeated prompts", "its router's loss is a mean over its tokens")
        return plain
    sharded = sharding_of(base) is not None
    shared: list[SharedPrompts] = []
    if settings.share_prompts and steps.step.numel() > 0:
        shared = _shared(base, rollout, steps, backend, several_passes=not sharded)
    if sharded:
        # Every rank comes here, whatever its rows are.
        wanted = len(shared) > 0 and shared[0].passes == 1
        return shared[0] if _all_agree(wanted, rollout.device) else plain
    candidates: list[Layout] = [plain, *shared]
    if settings.packing and len(rollout) > 1 and steps.step.numel() > 0:
        candidates += _packed(base, rollout, steps, backend)
    best = min(candidates, key=lambda layout: layout.cost)
    return best if _is_worth(best, plain) else plain


def _is_worth(layout: Layout, plain: Layout) -> bool:
    return layout.cost <= (1 - _LEAST_SAVED) * plain.cost


def _packed(base: Any, rollout: LatentRollout, steps: Steps, backend: str | None) -> list[Layout]:
    if can_pack(base):
        return [PackedRows(base, rollout, steps, backend=backend)]
    _tell(base, "padding", "it cannot take several sequences laid end to end")
    return []


def _shared(
    base: Any,
    rollout: LatentRollout,
    steps: Steps,
    backend: str | None,
    *,
    several_passes: bool,
) -> list[SharedPrompts]:
    shared = SharedPrompts(base, rollout, steps, several_passes=several_passes, backend=backend)
    if not _is_worth(shared, PlainRows(base, rollout, backend=backend)):
        return []
    reason = why_no_sharing(base)
    if reason is None:
        return [shared]
    _tell(base, "repeated prompts", reason)
    return []


def _all_agree(wanted: bool, device: torch.device) -> bool:
    """Ranks that gather weights for each other must run equally many passes."""
    flag = torch.tensor(int(wanted), device=device)
    distributed.all_reduce(flag, op=distributed.ReduceOp.MIN)
    return bool(flag)


def _tell(base: Any, what: str, reason: str) -> None:
    told = _told.setdefault(base, set())
    if reason not in told:
        told.add(reason)
        _logger.warning("training runs %s of %s: %s", what, type(base).__name__, reason)
