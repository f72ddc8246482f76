"""The derivative of `lepo_objective`, written out.

A fused kernel needs it inside of an op, where autograd is switched off. The objective sees a row's
logits through ``log pi_k = logits_k - lse`` only, so one tensor says all: the derivative by the
logits is that by log pi, the one by lse minus its sum. Where the objective is not smooth it is the
inner derivative, as `lepo_kernels.formulas.kinks` says: an edge belongs to its range.
"""

import torch
from torch import Tensor

from lepo_kernels.formulas.lepo_objective import (
    LARGEST_EXPONENT,
    LossSettings,
    RowFacts,
    clipped_rows,
    ratio_of,
)
from lepo_kernels.formulas.scores import soft_log_prob


def lepo_gradient(
    logits: Tensor,  # [N, K]
    lse: Tensor,  # [N]
    facts: RowFacts,
    settings: LossSettings,
) -> tuple[Tensor, Tensor]:  # [N, K], [N]
    """Derivatives of the loss by ``logits`` and ``lse``; the arguments are `objective_of`'s."""
    weights, latent, advantages, row_weights, old_log_prob, ref_log_probs = facts
    beta, epsilon, epsilon_high, delta, latent_kl = settings
    used = facts.used()
    log_prob = soft_log_prob(logits, lse, weights)
    old = log_prob if old_log_prob is None else old_log_prob.to(log_prob.dtype)
    scale, weights = advantages.to(log_prob.dtype), weights.to(log_prob.dtype)
    slope = _ratio_slope(log_prob, old, scale, used & ~latent, epsilon, epsilon_high, delta)
    by_score = torch.where(latent, -scale, slope)
    total = weights * by_score[:, None]
    if beta > 0:
        assert ref_log_probs is not None
        padding = weights == 0
        log_probs = (logits - lse[:, None]).masked_fill(padding, 0.0)
        ref = ref_log_probs.to(log_prob.dtype).masked_fill(padding, 0.0)
        kl = _k3_slope(log_probs, ref, weights)
        if latent_kl == "exact":
            kl = torch.where(latent[:, None], _exact_kl_slope(log_probs, ref, padding), kl)
        total = total + beta * kl
    total = (row_weights.to(log_prob.dtype)[:, None] * total).masked_fill(~used[:, None], 0.0)
    return total, -total.sum(dim=-1)


def _ratio_slope(
    log_prob: Tensor,  # [N]
    old: Tensor,  # [N]
    advantages: Tensor,  # [N]
    moving: Tensor,  # [N] bool
    epsilon: float,
    epsilon_high: float,
    delta: float | None,
) -> Tensor:  # [N]
    """Of ``-min(rho A, clip(rho) A)`` by the log-probability."""
    ratio = ratio_of(log_prob, old, moving)
    stopped = clipped_rows(ratio, advantages, epsilon, epsilon_high) != 0
    if delta is not None:
        stopped |= (ratio > delta) & (advantages < 0)
    stopped |= ~moving | (log_prob - old > LARGEST_EXPONENT)
    return (-advantages * ratio).masked_fill(stopped, 0.0)


def _k3_slope(
    log_probs: Tensor,  # [N, K]
    ref: Tensor,  # [N, K]
    weights: Tensor,  # [N, K]
) -> Tensor:  # [N, K]
    """Of ``sum_k w_k (exp(r_k) - r_k - 1)``, ``r = ref - log_probs``, by log_probs."""
    log_ratio = ref - log_probs
    slope = weights * (1 - torch.exp(log_ratio.clamp(max=LARGEST_EXPONENT)))
    return slope.masked_fill(log_ratio > LARGEST_EXPONENT, 0.0)


def _exact_kl_slope(
    log_probs: Tensor,  # [N, K]
    ref: Tensor,  # [N, K]
    padding: Tensor,  # [N, K] bool
) -> Tensor:  # [N, K]
    """Of KL(p | q), p and q renormalised over the kept ids, by log_probs."""
    low = torch.finfo(log_probs.dtype).min
    kept = torch.log_softmax(log_probs.masked_fill(padding, low), -1)
    kept_ref = torch.log_softmax(ref.masked_fill(padding, low), -1)
    p = kept.exp()
    gap = (kept - kept_ref).masked_fill(padding, 0.0)
    return p * (gap - (p * gap).sum(dim=-1, keepdim=True))
