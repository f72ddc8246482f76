"""LEPO's loss of the steps of a rollout, with gradient.

Contract: `policy_log_probs` followed by `lepo_objective`, by `lepo_loss`, which multiplies the head
three times instead of four.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lepo_kernels.rollout._modules import unwrap_model
from lepo_kernels.rollout.layout import LayoutSettings
from lepo_kernels.rollout.lm_head import LmHead
from lepo_kernels.rollout.record import LatentRollout
from lepo_kernels.rollout.selected_steps import SelectedSteps, run_on_steps
from lepo_kernels.validation import check_positive_number


class PolicyLoss(NamedTuple):
    """What `policy_loss` returns: `LepoLoss`, and the load-balancing loss of a mixture of experts.

    All but ``loss`` are detached, for metrics.
    """

    loss: Tensor  # [], with the router's loss times its coefficient
    log_prob: Tensor  # [M]
    kl: Tensor  # [M]
    ratio: Tensor  # [M]
    clipped: Tensor  # [M] int8
    router_loss: Tensor | None  # []; None without ``output_router_logits``
    layout: str  # of the forward: "plain", "shared" or "packed"; see ``rollout/layout.py``
    tokens_saved: float  # the share of the plain layout's tokens that was not run


torch.serialization.add_safe_globals([PolicyLoss])


def policy_loss(
    model: Any,
    rollout: LatentRollout,
    step_mask: Tensor,  # [B, T]
    advantages: Tensor,  # [M]
    row_weights: Tensor,  # [M]
    *,
    old_log_prob: Tensor | None = None,  # [M], or [M, >= K] of a score with slots
    ref_log_probs: Tensor | None = None,  # [M, >= K]
    temperature: float = 1.0,
    router_loss_scale: float = 1.0,
    share_prompts: bool = True,
    packing: bool = True,
    hidden_gradient: Callable[[Tensor, Tensor], None] | None = None,
    backend: str | None = None,
    **settings: Any,
) -> PolicyLoss:
    """LEPO's loss on the M selected steps of a rollout, in row-major order of the selection.

    Args:
        model, rollout, step_mask, temperature, share_prompts, packing: see `policy_log_probs`.
        advantages, row_weights, old_log_prob: see `lepo_objective`.
        ref_log_probs: [M, K] or wider: the log-probabilities of the steps' ids under the reference
            policy come first. K is 1 where no step is latent.
        router_loss_scale: multiplies the router's loss of a mixture of experts whose config sets
            ``output_router_logits``, beside the model's ``router_aux_loss_coef``: what this call is
            of an update, as that loss is a mean over tokens.
        hidden_gradient: called in the backward pass with which steps are latent, [M] bool, and the
            gradient of their hidden states, [M, D], which it must not change.
        backend: see `lepo_kernels.backend`.
        **settings: ``beta`` and the others of `lepo_objective`; what a latent score reads is the
            rollout's record.

    Returns:
        `PolicyLoss` of the M steps; differentiable in all parameters of the model, the embedding
        table through the mixtures included.

    Raises:
        TypeError, ValueError: as `policy_log_probs` and `lepo_objective`.
    """
    temperature = check_positive_number("temperature", temperature)

    def loss(head: LmHead, hidden: Tensor, steps: SelectedSteps) -> tuple[Tensor, ...]:
        kept = steps.ids.shape[1]
        if hidden_gradient is not None and hidden.requires_grad:
            hidden.register_hook(partial(hidden_gradient, steps.latent))
        old = old_log_prob
        if old is not None and old.dim() == 2:
            old = old[:, :kept]
        return head.lepo_loss(
            hidden,
            steps.ids,
            steps.weights,
            steps.latent,
            advantages,
            row_weights,
            recorded=steps.recorded,
            old_log_prob=old,
            ref_log_probs=None if ref_log_probs is None else ref_log_probs[:, :kept],
            temperature=temperature,
            **settings,
        )

    found = run_on_steps(
        model,
        rollout,
        step_mask,
        loss,
        layout=LayoutSettings(share_prompts, packing),
        backend=backend,
    )
    total, log_prob, kl, ratio, clipped, *rest = found.outputs
    router_loss = rest[0] if rest else None
    if router_loss is not None:
        total = total + router_loss_scale * _router_coefficient(model) * router_loss
        router_loss = router_loss.detach()
    return PolicyLoss(
        total, log_prob, kl, ratio, clipped, router_loss, found.layout.name, found.tokens_saved
    )


def _router_coefficient(model: Any) -> float:
    """The coefficient with which transformers adds the router's loss."""
    base = unwrap_model(model)
    for place in (base, base.config.get_text_config()):
        for name in ("router_aux_loss_coef", "aux_loss_coef"):
            if hasattr(place, name):
                return float(getattr(place, name))
    raise ValueError(
        f"model: {type(base).__name__} returns a router's loss, but its config names no "
        "router_aux_loss_coef; set one, or output_router_logits=False"
    )
