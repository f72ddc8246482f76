"""`lepo_objective`: LEPO's loss of latent and discrete rows from selected log-probabilities.

Plain torch on [N, K]. `lepo_kernels.lepo_loss` puts it on top of hidden states and a head.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from lepo_kernels.formulas.latent_scores import SOFT
from lepo_kernels.formulas.loss_rows import LossSettings, RowFacts, check_loss
from lepo_kernels.formulas.ratios import (
    Ratios,
    bounded_ratio,
    clipped_rows,
    per_entry,
    score_of,
)
from lepo_kernels.formulas.row_kl import row_kl
from lepo_kernels.formulas.scores import soft_log_prob
from lepo_kernels.validation import FLOAT_DTYPES, check_tensor


class LepoLoss(NamedTuple):
    """What `lepo_loss` and `lepo_objective` return.

    All but ``loss`` are detached, for metrics. A row is left out where its weight is 0 and, unless
    reference log-probs ask for its KL, where its advantage is 0: it cannot move the loss. Its
    log_prob, kl and clipped are 0, its ratio is 1.
    """

    loss: Tensor  # []
    log_prob: Tensor  # [N]
    kl: Tensor  # [N]; zeros without reference log-probs
    ratio: Tensor  # [N]; 1 on latent rows
    clipped: Tensor  # [N] int8: -1 clipped from below, +1 from above, 0 inside and on an edge


torch.serialization.add_safe_globals([LepoLoss])


def lepo_objective(
    logits: Tensor,  # [N, K]
    lse: Tensor,  # [N]
    weights: Tensor,  # [N, K]
    latent: Tensor,  # [N] bool
    advantages: Tensor,  # [N]
    row_weights: Tensor,  # [N]
    *,
    old_log_prob: Tensor | None = None,  # [N]
    ref_log_probs: Tensor | None = None,  # [N, K]
    beta: float = 0.0,
    epsilon: float = 0.2,
    epsilon_high: float | None = None,
    delta: float | None = None,
    latent_kl: str = "k3",
    latent_score: str = SOFT,
    latent_ratio: bool = False,
    recorded: Tensor | None = None,  # [N, K]
    sequences: Tensor | None = None,  # [N] int64
    surrogate: str = "ppo",
    kl_times_ratio: bool = False,
) -> LepoLoss:
    """LEPO's loss (arXiv 2604.17892) from selected logits and their log-sum-exp.

    With ``log pi = logits - lse`` over the whole vocabulary and ``s = sum_k weights_k log pi_k``::

        latent row:    l = -A s                                          (the soft surrogate)
        discrete row:  l = -min(rho A, clip(rho, 1 - epsilon, 1 + epsilon_high) A)
                       with rho = exp(s - old_log_prob), capped at delta if given
        loss = sum_rows row_weights * (l + beta * KL)

    KL is the k3 estimator ``exp(r) - r - 1``, ``r = log pi_ref - log pi``, averaged with the row's
    weights (one-hot on discrete rows); with ``latent_kl="exact"`` a latent row takes the exact
    KL(pi | pi_ref) of the two policies renormalised over its kept ids.

    Other methods put another score in the place of ``s`` on latent rows (``latent_score``), and
    clip its ratio as on discrete ones (``latent_ratio``); a score with slots has a ratio in each,
    and their losses are summed. `lepo_kernels.methods` has both by the method's name.

    Where the loss has a corner (rho on an edge of the clipping, or equal to delta) its derivative
    is the inner one, ``-A rho``: an edge belongs to its range, and `LepoLoss.clipped` is 0 there.

    Args:
        logits: [N, K] scaled logits at the row's ids, as `linear_log_probs` returns them.
        lse: [N] log-sum-exp of the scaled logits over the vocabulary.
        weights: [N, K] mixture weights; one-hot on discrete rows. Entries of weight 0 are padding.
        latent: [N] bool: which rows are latent steps.
        advantages: [N] floating point.
        row_weights: [N] floating point: the normalisation; 0 leaves a row out, and so does an
            advantage of 0 without ``ref_log_probs``.
        old_log_prob: [N] log-probability under the policy that sampled, where a latent row has a
            ratio its score; None means the current one (ratio 1, gradient that of REINFORCE). Of a
            score with slots [N, K], of which discrete rows use the first.
        ref_log_probs: [N, K] log-probabilities of the ids under the reference policy; needed when
            ``beta`` is not 0.
        beta: weight of the KL term, at least 0.
        epsilon: lower clipping range, in (0, 1].
        epsilon_high: upper clipping range; None takes ``epsilon``.
        delta: upper bound of rho in the unclipped branch (dual clip), above 1 + epsilon_high.
        latent_kl: ``"k3"``, ``"exact"``, or ``"score"``: the k3 estimator on the latent score, that
            of the reference being formed of ``ref_log_probs``.
        latent_score: the name of a score of `lepo_kernels.formulas.latent_scores`.
        latent_ratio: whether latent rows have clipped ratios, or the plain ``-A s``.
        recorded: [N, K] what the rollout recorded for the score, -inf on padding; for scores that
            read it.
        sequences: [N] which sequence a row is of, numbers below N: its discrete rows then share
            one ratio, the exponential of their mean log-ratio (GSPO, arXiv 2507.18071); None gives
            each its own.
        surrogate: ``"ppo"`` as above, or ``"cispo"`` (arXiv 2506.13585): where there is a ratio,
            ``l = -min(rho, epsilon_high) A s`` with rho a constant.
        kl_times_ratio: whether the KL term of discrete rows is multiplied by their ratio, at most
            1000, which makes its gradient unbiased off the policy (TRL's
            ``use_bias_correction_kl``).

    Returns:
        `LepoLoss`. Differentiable in ``logits`` and ``lse``; everything else is constant.

    Raises:
        TypeError, ValueError: an argument has the wrong dtype, shape, device or range.
    """
    facts = RowFacts(
        weights,
        latent,
        advantages,
        row_weights,
        old_log_prob,
        ref_log_probs,
        recorded,
        sequences,
    )
    upper = epsilon if epsilon_high is None else epsilon_high
    settings = LossSettings(
        beta,
        epsilon,
        upper,
        delta,
        latent_kl,
        latent_score,
        latent_ratio,
        surrogate,
        kl_times_ratio,
    )
    return objective_of(logits, lse, facts, settings)


def objective_of(
    logits: Tensor,  # [N, K]
    lse: Tensor,  # [N]
    facts: RowFacts,
    settings: LossSettings,
) -> LepoLoss:
    """`lepo_objective`, with its arguments in structures."""
    check_tensor("logits", logits, ("N", "K"), FLOAT_DTYPES)
    check_tensor("lse", lse, (logits.shape[0],), FLOAT_DTYPES, logits.device)
    settings = check_loss(logits, facts, settings)
    facts = facts.detach()
    # A row that is left out adds exactly nothing, whatever its scores are.
    used = facts.used()
    logits = logits.masked_fill(~used[:, None], 0.0)
    lse = lse.masked_fill(~used, 0.0)
    log_prob = soft_log_prob(logits, lse, facts.weights)
    score = score_of(settings.latent_score, log_prob, logits, lse, facts.latent, facts.scored())
    ratios = Ratios.of(score, facts, settings)
    values = ratios.values
    advantages = per_entry(facts.advantages.to(log_prob.dtype), values)
    clipped = clipped_rows(values, advantages, settings)
    row_loss = _row_loss(ratios, values, clipped, facts, settings)

    kl = torch.zeros_like(log_prob)
    if facts.ref_log_probs is not None:
        # Without a KL term it is a metric only, and may be infinite.
        with torch.set_grad_enabled(torch.is_grad_enabled() and settings.beta > 0):
            kl = row_kl(score, logits, lse, facts, settings).masked_fill(~used, 0.0)
            if settings.kl_times_ratio:
                kl = kl * ratios.discrete_values
    if settings.beta > 0:
        row_loss = row_loss + settings.beta * kl

    row_weights = facts.row_weights.to(log_prob.dtype)
    loss = (row_weights * row_loss.masked_fill(~used, 0.0)).sum()
    # The slots of a row share its advantage, so they are clipped on the same side.
    of_row = clipped if clipped.dim() == 1 else clipped.sum(dim=-1).sign().to(torch.int8)
    ratio = _ratio_of_row(values.detach(), ratios.entries)
    return LepoLoss(loss, log_prob.detach(), kl.detach(), ratio, of_row)


def _row_loss(
    ratios: Ratios,
    values: Tensor,  # [N] or [N, K]
    clipped: Tensor,  # int8, the same
    facts: RowFacts,
    settings: LossSettings,
) -> Tensor:  # [N]
    advantages = facts.advantages.to(values.dtype)
    each = per_entry(advantages, values)
    if settings.surrogate == "cispo":
        bounded = values.detach().clamp(max=settings.epsilon_high) * ratios.score
    else:
        bounded = bounded_ratio(values, each, clipped, settings)
    clipped_loss = _sum_of_entries(-each * bounded, ratios.entries)
    if settings.latent_ratio:
        return clipped_loss
    score = _sum_of_entries(ratios.score, ratios.entries)
    return torch.where(facts.latent, -advantages * score, clipped_loss)


def _sum_of_entries(
    x: Tensor,  # [N] or [N, K]
    entries: Tensor,  # bool, the same
) -> Tensor:  # [N]
    return x if x.dim() == 1 else x.masked_fill(~entries, 0.0).sum(dim=-1)


def _ratio_of_row(
    values: Tensor,  # [N] or [N, K]
    entries: Tensor,  # bool, the same
) -> Tensor:  # [N]
    """The mean of a row's slots."""
    if values.dim() == 1:
        return values
    return _sum_of_entries(values, entries) / entries.sum(dim=-1).clamp_min(1)
