"""`lepo_objective`: LEPO's loss of latent and discrete rows from selected log-probabilities.

Plain torch on [N, K]. `lepo_kernels.lepo_loss` puts it on top of hidden states and a head.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from lepo_kernels.formulas.kinks import clip
from lepo_kernels.formulas.scores import soft_log_prob
from lepo_kernels.validation import FLOAT_DTYPES, check_choice, check_number, check_tensor

LATENT_KL = ("k3", "exact")
# exp() of it is finite in float32, with room for an advantage.
LARGEST_EXPONENT = 80.0


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


class RowFacts(NamedTuple):
    """What the loss needs to know of each row, by the names that `lepo_objective` has for it."""

    weights: Tensor  # [N, K]
    latent: Tensor  # [N] bool
    advantages: Tensor  # [N]
    row_weights: Tensor  # [N]
    old_log_prob: Tensor | None  # [N]
    ref_log_probs: Tensor | None  # [N, K]

    def at(self, rows: slice | Tensor) -> "RowFacts":
        """Of some of the rows."""
        return RowFacts(*(None if x is None else x[rows] for x in self))  # type: ignore[arg-type]

    def detach(self) -> "RowFacts":
        """The same numbers, constant to autograd."""
        return RowFacts(*(None if x is None else x.detach() for x in self))  # type: ignore[arg-type]

    def used(self) -> Tensor:  # [N] bool
        """The rows that are not left out; see `LepoLoss`."""
        weighted = self.row_weights != 0
        return weighted if self.ref_log_probs is not None else weighted & (self.advantages != 0)


class LossSettings(NamedTuple):
    """The numbers of the loss, by the names that `lepo_objective` has for them."""

    beta: float
    epsilon: float
    epsilon_high: float
    delta: float | None
    latent_kl: str


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
        old_log_prob: [N] log-probability under the policy that sampled; None means the current one
            (ratio 1, gradient that of REINFORCE).
        ref_log_probs: [N, K] log-probabilities of the ids under the reference policy; needed when
            ``beta`` is not 0.
        beta: weight of the KL term, at least 0.
        epsilon: lower clipping range, in (0, 1].
        epsilon_high: upper clipping range; None takes ``epsilon``.
        delta: upper bound of rho in the unclipped branch (dual clip), above 1 + epsilon_high.
        latent_kl: ``"k3"`` or ``"exact"``.

    Returns:
        `LepoLoss`. Differentiable in ``logits`` and ``lse``; everything else is constant.

    Raises:
        TypeError, ValueError: an argument has the wrong dtype, shape, device or range.
    """
    facts = RowFacts(weights, latent, advantages, row_weights, old_log_prob, ref_log_probs)
    upper = epsilon if epsilon_high is None else epsilon_high
    return objective_of(logits, lse, facts, LossSettings(beta, epsilon, upper, delta, latent_kl))


def objective_of(
    logits: Tensor,  # [N, K]
    lse: Tensor,  # [N]
    facts: RowFacts,
    settings: LossSettings,
) -> LepoLoss:
    """`lepo_objective`, with its arguments in structures."""
    check_tensor("logits", logits, ("N", "K"), FLOAT_DTYPES)
    check_tensor("lse", lse, (logits.shape[0],), FLOAT_DTYPES, logits.device)
    check_facts(logits, facts)
    weights, latent, advantages, row_weights, old_log_prob, ref_log_probs = facts.detach()
    settings = check_settings(settings, ref_log_probs is not None)
    beta, epsilon, epsilon_high, delta, latent_kl = settings

    # A row that is left out adds exactly nothing, whatever its scores are.
    used = facts.used()
    logits = logits.masked_fill(~used[:, None], 0.0)
    lse = lse.masked_fill(~used, 0.0)
    log_prob = soft_log_prob(logits, lse, weights)
    constants = (advantages, row_weights, log_prob if old_log_prob is None else old_log_prob)
    advantages, row_weights, old = (x.detach().to(log_prob.dtype) for x in constants)
    ratio = ratio_of(log_prob, old, used & ~latent)
    clipped = clipped_rows(ratio, advantages, epsilon, epsilon_high)
    bounded = _bounded_ratio(ratio, advantages, clipped, epsilon, epsilon_high, delta)
    discrete_loss = -advantages * bounded
    row_loss = torch.where(latent, -advantages * log_prob, discrete_loss)

    kl = torch.zeros_like(log_prob)
    if ref_log_probs is not None:
        ref = ref_log_probs.to(log_prob.dtype)
        # Without a KL term it is a metric only, and may be infinite.
        with torch.set_grad_enabled(torch.is_grad_enabled() and beta > 0):
            kl = _kl(logits, lse, weights, latent, ref, latent_kl).masked_fill(~used, 0.0)
    if beta > 0:
        row_loss = row_loss + beta * kl

    loss = (row_weights * row_loss.masked_fill(~used, 0.0)).sum()
    return LepoLoss(loss, log_prob.detach(), kl.detach(), ratio.detach(), clipped)


def clipped_rows(
    ratio: Tensor,  # [N]
    advantages: Tensor,  # [N]
    epsilon: float,
    epsilon_high: float,
) -> Tensor:  # [N] int8
    """-1 where the ratio is clipped from below, +1 where from above, 0 elsewhere.

    Only a ratio beyond its range, on the side where the advantage would push it further, is; one on
    an edge is not.
    """
    below = (ratio < 1 - epsilon) & (advantages < 0)
    above = (ratio > 1 + epsilon_high) & (advantages > 0)
    return above.to(torch.int8) - below.to(torch.int8)


def _bounded_ratio(
    ratio: Tensor,  # [N]
    advantages: Tensor,  # [N]
    clipped: Tensor,  # [N] int8
    epsilon: float,
    epsilon_high: float,
    delta: float | None,
) -> Tensor:  # [N]
    """The number b of ``min(rho A, clip(rho) A) = b A``, with the derivative 1 where it moves.

    By the sign of A, not by the smaller product: products tie where rounding makes them equal.
    """
    bounded = ratio.masked_fill(clipped < 0, 1 - epsilon).masked_fill(clipped > 0, 1 + epsilon_high)
    if delta is None:
        return bounded
    return torch.where(advantages < 0, clip(bounded, high=delta), bounded)


def ratio_of(
    log_prob: Tensor,  # [N]
    old: Tensor,  # [N]
    moving: Tensor,  # [N] bool
) -> Tensor:  # [N]
    """``exp(log_prob - old)`` where ``moving``, else 1.

    The exponent is bounded before exp: an infinite ratio has the gradient 0 * inf where it is
    clipped.
    """
    return torch.exp(clip((log_prob - old).masked_fill(~moving, 0.0), high=LARGEST_EXPONENT))


def _kl(
    logits: Tensor,  # [N, K]
    lse: Tensor,  # [N]
    weights: Tensor,  # [N, K]
    latent: Tensor,  # [N]
    ref_log_probs: Tensor,  # [N, K]
    latent_kl: str,
) -> Tensor:  # [N]
    padding = weights == 0
    log_probs = (logits - lse[:, None]).masked_fill(padding, 0.0)
    ref = ref_log_probs.masked_fill(padding, 0.0)
    log_ratio = ref - log_probs
    if latent_kl == "exact":
        # Masked before exp: what a latent row does not use must not overflow in its gradient.
        log_ratio = log_ratio.masked_fill(latent[:, None], 0.0)
    log_ratio = clip(log_ratio, high=LARGEST_EXPONENT)
    k3 = (weights.to(log_probs.dtype) * (torch.exp(log_ratio) - log_ratio - 1)).sum(-1)
    if latent_kl == "k3":
        return k3
    # The lowest finite number rather than -inf: padding then weighs 0 without 0 * inf.
    low = torch.finfo(log_probs.dtype).min
    kept = torch.log_softmax(log_probs.masked_fill(padding, low), -1)
    kept_ref = torch.log_softmax(ref.masked_fill(padding, low), -1)
    exact = (kept.exp() * (kept - kept_ref).masked_fill(padding, 0.0)).sum(-1)
    return torch.where(latent, exact, k3)


def check_facts(
    like: Tensor,  # [N, K]
    facts: RowFacts,
) -> None:
    """Check what the loss needs to know of each row, for ids or logits ``like``.

    Raises:
        TypeError, ValueError: an argument has the wrong dtype, shape or device.
    """
    (rows, kept), device = like.shape, like.device
    check_tensor("weights", facts.weights, (rows, kept), FLOAT_DTYPES, device)
    check_tensor("latent", facts.latent, (rows,), (torch.bool,), device)
    check_tensor("advantages", facts.advantages, (rows,), FLOAT_DTYPES, device)
    check_tensor("row_weights", facts.row_weights, (rows,), FLOAT_DTYPES, device)
    if facts.old_log_prob is not None:
        check_tensor("old_log_prob", facts.old_log_prob, (rows,), FLOAT_DTYPES, device)
    if facts.ref_log_probs is not None:
        check_tensor("ref_log_probs", facts.ref_log_probs, (rows, kept), FLOAT_DTYPES, device)


def check_settings(settings: LossSettings, has_reference: bool) -> LossSettings:
    """Check the numbers of the loss, and make them floats: torch knows no Fraction.

    A KL term takes log-probabilities of the reference policy.

    Raises:
        TypeError, ValueError: one is out of range.
    """
    beta, epsilon, epsilon_high, delta, latent_kl = settings
    beta = check_number("beta", beta, 0.0)
    epsilon = check_number("epsilon", epsilon, 0.0, 1.0, low_included=False)
    epsilon_high = check_number("epsilon_high", epsilon_high, 0.0, low_included=False)
    if delta is not None:
        delta = check_number("delta", delta, 1 + epsilon_high, low_included=False)
    check_choice("latent_kl", latent_kl, LATENT_KL)
    if beta > 0 and not has_reference:
        raise ValueError("ref_log_probs: needed when beta is not 0, got None")
    return LossSettings(beta, epsilon, epsilon_high, delta, latent_kl)
