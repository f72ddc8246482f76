"""The KL term of the loss, row by row."""

import torch
from torch import Tensor

from lepo_kernels.formulas.kinks import clip
from lepo_kernels.formulas.loss_rows import LossSettings, RowFacts
from lepo_kernels.formulas.ratios import LARGEST_EXPONENT, per_entry, score_of
from lepo_kernels.formulas.scores import soft_log_prob


def ref_score(
    logits: Tensor,  # [N, K]
    facts: RowFacts,
    settings: LossSettings,
) -> Tensor:  # [N], or [N, K] of a score with slots
    """The score of the reference policy, whose log-probabilities stand for logits of lse 0."""
    assert facts.ref_log_probs is not None
    ref = facts.ref_log_probs.to(logits.dtype)
    zero = logits.new_zeros(len(logits))
    log_prob = soft_log_prob(ref, zero, facts.weights)
    return score_of(settings.latent_score, log_prob, ref, zero, facts.latent, facts.scored())


def row_kl(
    score: Tensor,  # [N] or [N, K]
    logits: Tensor,  # [N, K]
    lse: Tensor,  # [N]
    facts: RowFacts,
    settings: LossSettings,
) -> Tensor:  # [N]
    """The estimator that ``settings.latent_kl`` names on latent rows, k3 on the others."""
    weights, latent, latent_kl = facts.weights, facts.latent, settings.latent_kl
    assert facts.ref_log_probs is not None
    padding = weights == 0
    log_probs = (logits - lse[:, None]).masked_fill(padding, 0.0)
    ref = facts.ref_log_probs.to(log_probs.dtype).masked_fill(padding, 0.0)
    log_ratio = ref - log_probs
    if latent_kl != "k3":
        # Masked before exp: what a latent row does not use must not overflow in its gradient.
        log_ratio = log_ratio.masked_fill(latent[:, None], 0.0)
    log_ratio = clip(log_ratio, high=LARGEST_EXPONENT)
    k3 = (weights.to(log_probs.dtype) * (torch.exp(log_ratio) - log_ratio - 1)).sum(-1)
    if latent_kl == "k3":
        return k3
    if latent_kl == "score":
        apart = (ref_score(logits, facts, settings) - score).masked_fill(
            ~per_entry(latent, score), 0.0
        )
        apart = clip(apart, high=LARGEST_EXPONENT)
        of_score = torch.exp(apart) - apart - 1
        return torch.where(latent, of_score if apart.dim() == 1 else of_score.sum(-1), k3)
    # The lowest finite number rather than -inf: padding then weighs 0 without 0 * inf.
    low = torch.finfo(log_probs.dtype).min
    kept = torch.log_softmax(log_probs.masked_fill(padding, low), -1)
    kept_ref = torch.log_softmax(ref.masked_fill(padding, low), -1)
    exact = (kept.exp() * (kept - kept_ref).masked_fill(padding, 0.0)).sum(-1)
    return torch.where(latent, exact, k3)
