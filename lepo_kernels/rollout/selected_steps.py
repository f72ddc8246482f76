"""One forward of the policy over a rollout, for what is computed from its hidden states.

Contract: prompt and completion are run once, in the cheapest layout that the model can run
(`choose_layout`). The mixtures are formed again from the stored (ids, weights) with the current
table; what the caller computes from the selected steps' hidden states runs in the place of the
output projection (`LmHead.replaced`). Logits are formed for these only.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lepo_kernels.rollout.layout import Layout, LayoutSettings, PlainRows, Steps
from lepo_kernels.rollout.layout_choice import choose_layout
from lepo_kernels.rollout.lm_head import LmHead
from lepo_kernels.rollout.record import LatentRollout
from lepo_kernels.validation import check_tensor, checks_enabled

_ANY_LAYOUT = LayoutSettings()


class SelectedSteps(NamedTuple):
    """What was chosen at M selected steps, in row-major order of the selection."""

    ids: Tensor  # [M, K] int64; on a discrete step its id, repeated
    weights: Tensor  # [M, K] float32; on a discrete step (1, 0, ..., 0)
    latent: Tensor  # [M] bool
    recorded: Tensor | None  # [M, K] float32, -inf where nothing is; None if no step has a record


class OnSteps(NamedTuple):
    """What `run_on_steps` returns."""

    steps: SelectedSteps
    outputs: tuple[Tensor, ...]
    layout: Layout
    tokens_saved: float  # the share of the plain layout's tokens that was not run


# From the head, the hidden states [M, D] that predict the steps, and the steps.
Compute = Callable[[LmHead, Tensor, SelectedSteps], tuple[Tensor, ...]]


def run_on_steps(
    model: Any,
    rollout: LatentRollout,
    step_mask: Tensor,  # [B, T]
    compute: Compute,
    *,
    layout: LayoutSettings = _ANY_LAYOUT,
    backend: str | None = None,
) -> OnSteps:
    """Run the model over a rollout, and ``compute`` in the place of its head.

    Args:
        model: a decoder-only transformers model, possibly inside DDP, FSDP or peft. It is run in
            the mode (train or eval) it is in.
        rollout: B rows of at most T steps, on the model's device.
        step_mask: [B, T] bool, the steps.
        compute: what to return for the steps.
        layout: which layouts the forward may take.
        backend: see `lepo_kernels.backend`.

    Returns:
        The steps, the tensors of ``compute`` as the call of the model returns them, the layout of
        the forward, and what it saved. A mixture of experts with ``output_router_logits`` has its
        load-balancing loss behind the tensors.

    Raises:
        TypeError, ValueError: a wrong shape, dtype or device; a step that does not exist (checked
            on the CPU, or with ``LEPO_CHECK_VALUES=1``); a model that cannot be served (see
            ``SoftEmbedding`` and ``LmHead``).
    """
    B, T = rollout.completion_ids.shape
    check_tensor("step_mask", step_mask, (B, T), (torch.bool,), rollout.device)
    if checks_enabled(step_mask.device) and bool((step_mask & ~rollout.completion_mask).any()):
        raise ValueError(
            "step_mask: expected steps inside completion_mask, got steps past a row's end"
        )
    at = Steps(*step_mask.nonzero(as_tuple=True))
    part = rollout.crop(int(at.step.max()) + 1 if at.step.numel() else 1)
    steps = _chosen_at(part, at)
    head = LmHead(model, backend=backend)
    chosen = choose_layout(head.base, part, at, layout, backend=backend)

    def in_place_of_head(hidden: Tensor) -> tuple[Tensor, ...]:
        of_steps = chosen.hidden_of_steps(hidden, at)
        return (hidden,) if of_steps is None else compute(head, of_steps, steps)

    with chosen.entered(), head.replaced(in_place_of_head):
        outputs = model(**chosen.arguments())
    saved = 1 - chosen.tokens / PlainRows(head.base, part).tokens
    return OnSteps(steps, outputs, chosen, saved)


def _chosen_at(rollout: LatentRollout, at: Steps) -> SelectedSteps:
    row, step = at
    ids = rollout.completion_ids[row, step][:, None]
    weights = torch.ones(ids.shape, dtype=torch.float32, device=ids.device)
    latent = rollout.latent_mask[row, step]
    L, K = rollout.latent_ids.shape[1:]
    has_record = rollout.latent_scores.shape[2] > 0
    if not bool(latent.any()):
        nothing = torch.full_like(weights, -torch.inf) if has_record else None
        return SelectedSteps(ids, weights, latent, nothing)
    ids = ids.expand(-1, K)
    weights = torch.nn.functional.pad(weights, (0, K - 1))
    stored = step.clamp(max=L - 1)
    mixed = latent[:, None]
    recorded = None
    if has_record:
        recorded = rollout.latent_scores[row, stored].masked_fill(~mixed, -torch.inf)
    return SelectedSteps(
        torch.where(mixed, rollout.latent_ids[row, stored], ids),
        torch.where(mixed, rollout.latent_weights[row, stored], weights),
        latent,
        recorded,
    )
