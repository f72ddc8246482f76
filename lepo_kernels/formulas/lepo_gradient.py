"""The derivative of `lepo_objective`, written out.

A fused kernel needs it inside of an op, where autograd is switched off. Where the objective sees a
row's logits through ``log pi_k = logits_k - lse`` only, one tensor says all: the derivative by the
logits is that by log pi, the one by lse minus its sum. A latent score that sees them otherwise has
a derivative of its own (`lepo_kernels.formulas.latent_scores`). Where the objective is not smooth
it is the inner derivative, as `lepo_kernels.formulas.kinks` says: an edge belongs to its range.
"""

import torch
from torch import Tensor

from lepo_kernels.formulas.latent_scores import SOFT, latent_score
from lepo_kernels.formulas.loss_rows import LossSettings, RowFacts
from lepo_kernels.formulas.ratios import (
    LARGEST_EXPONENT,
    LARGEST_FACTOR,
    Ratios,
    clipped_rows,
    per_entry,
    score_of,
)
from lepo_kernels.formulas.row_kl import ref_score, row_kl
from lepo_kernels.formulas.scores import soft_log_prob


def lepo_gradient(
    logits: Tensor,  # [N, K]
    lse: Tensor,  # [N]
    facts: RowFacts,
    settings: LossSettings,
) -> tuple[Tensor, Tensor]:  # [N, K], [N]
    """Derivatives of the loss by ``logits`` and ``lse``; the arguments are `objective_of`'s."""
    log_prob = soft_log_prob(logits, lse, facts.weights)
    weights = facts.weights.to(log_prob.dtype)
    score = score_of(settings.latent_score, log_prob, logits, lse, facts.latent, facts.scored())
    ratios = Ratios.of(score, facts, settings)
    by_score = _by_score(score, ratios, facts, settings)
    if settings.beta > 0 and settings.latent_kl == "score":
        by_score = by_score + settings.beta * _score_kl_slope(score, logits, facts, settings)
    of_log_prob = by_score if by_score.dim() == 1 else by_score[:, :1].sum(dim=-1)
    if settings.latent_score != SOFT:
        of_log_prob = of_log_prob.masked_fill(facts.latent, 0.0)
    total = weights * of_log_prob[:, None]
    if settings.beta > 0:
        kl_slope = _kl_slope(logits, lse, weights, facts, settings)
        if settings.kl_times_ratio:
            # Of a product: the ratio moves with the log-probability of a discrete row.
            ratio = ratios.discrete_values
            kl = row_kl(score, logits, lse, facts, settings)
            values = ratios.values
            own = values if values.dim() == 1 else values[:, :1].sum(dim=-1)
            still = facts.latent | (own > LARGEST_FACTOR)
            kl_slope = ratio[:, None] * kl_slope
            kl_slope = kl_slope + weights * (kl * ratio).masked_fill(still, 0.0)[:, None]
        total = total + settings.beta * kl_slope
    scale = facts.row_weights.to(log_prob.dtype)
    left_out = ~facts.used()
    total = (scale[:, None] * total).masked_fill(left_out[:, None], 0.0)
    by_lse = -total.sum(dim=-1)
    if settings.latent_score == SOFT:
        return total, by_lse
    moved = facts.latent & ~left_out
    upstream = (per_entry(scale, by_score) * by_score).masked_fill(~per_entry(moved, by_score), 0.0)
    return _with_score(total, by_lse, logits, lse, facts, settings, upstream)


def _with_score(
    total: Tensor,  # [N, K]
    by_lse: Tensor,  # [N]
    logits: Tensor,  # [N, K]
    lse: Tensor,  # [N]
    facts: RowFacts,
    settings: LossSettings,
    upstream: Tensor,  # [N], or [N, K] of a score with slots; 0 where no latent score is used
) -> tuple[Tensor, Tensor]:  # [N, K], [N]
    """Add the derivatives of the latent rows' scores."""
    slopes = latent_score(settings.latent_score).slopes
    assert slopes is not None, "scores without slopes are served by autograd"
    of_logits, of_lse = slopes(logits, lse, facts.scored(), upstream)
    # Where nothing is asked for, a score that is not finite would make NaN of 0.
    unused = (upstream == 0) if upstream.dim() == 1 else (upstream == 0).all(dim=-1)
    total = total + of_logits.masked_fill(unused[:, None], 0.0)
    return total, by_lse + of_lse.masked_fill(unused, 0.0)


def _by_score(
    score: Tensor,  # [N], or [N, K] of a score with slots
    ratios: Ratios,
    facts: RowFacts,
    settings: LossSettings,
) -> Tensor:  # as score
    """Of a row's loss, without its KL term, by the score."""
    advantages = per_entry(facts.advantages.to(score.dtype), score)
    slope = _ratio_slope(ratios, advantages, settings)
    if settings.latent_ratio:
        return slope
    surrogate = (-advantages).expand_as(score)
    if score.dim() == 2:
        surrogate = surrogate.masked_fill(~ratios.entries, 0.0)
    return torch.where(per_entry(facts.latent, score), surrogate, slope)


def _ratio_slope(
    ratios: Ratios,
    advantages: Tensor,  # [N] or [N, 1]
    settings: LossSettings,
) -> Tensor:  # [N], or [N, K] of a score with slots
    """Of the surrogate of rows that have a ratio, by the score."""
    values = ratios.values
    if settings.surrogate == "cispo":
        return (-advantages * values.clamp(max=settings.epsilon_high)).masked_fill(
            ~ratios.moving, 0.0
        )
    stopped = clipped_rows(values, advantages, settings) != 0
    if settings.delta is not None:
        stopped |= (values > settings.delta) & (advantages < 0)
    stopped |= ~ratios.moving | _is_capped(ratios)
    return (-advantages * values).masked_fill(stopped, 0.0)


def _is_capped(ratios: Ratios) -> Tensor:  # as the ratios
    """Where a ratio stands still, being as large as it may be."""
    return ratios.score - ratios.old > LARGEST_EXPONENT


def _score_kl_slope(
    score: Tensor,  # [N], or [N, K] of a score with slots
    logits: Tensor,  # [N, K]
    facts: RowFacts,
    settings: LossSettings,
) -> Tensor:  # as score
    """Of ``exp(r) - r - 1``, ``r = reference - score``, by the score; 0 on discrete rows."""
    apart = ref_score(logits, facts, settings) - score
    slope = 1 - torch.exp(apart.clamp(max=LARGEST_EXPONENT))
    discrete = per_entry(~facts.latent, score)
    return slope.masked_fill((apart > LARGEST_EXPONENT) | discrete, 0.0)


def _kl_slope(
    logits: Tensor,  # [N, K]
    lse: Tensor,  # [N]
    weights: Tensor,  # [N, K]
    facts: RowFacts,
    settings: LossSettings,
) -> Tensor:  # [N, K]
    """Of the KL term by log pi; of a latent row's KL of scores it is 0."""
    assert facts.ref_log_probs is not None
    padding = weights == 0
    log_probs = (logits - lse[:, None]).masked_fill(padding, 0.0)
    ref = facts.ref_log_probs.to(log_probs.dtype).masked_fill(padding, 0.0)
    slope = _k3_slope(log_probs, ref, weights)
    latent = facts.latent[:, None]
    if settings.latent_kl == "exact":
        slope = torch.where(latent, _exact_kl_slope(log_probs, ref, padding), slope)
    elif settings.latent_kl == "score":
        slope = slope.masked_fill(latent, 0.0)
    return slope


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
