"""Scores: what each method's loss needs of the policy, from selected logits and log-sum-exp.

Plain torch on [N] and [N, K], differentiable in the policy's quantities (`linear_log_probs`) and in
nothing else: what the rollout stored (weights, perturbed scores, embeddings) is constant. A new
method is a new function here, not a new kernel. All of it is float32 (float64 for float64).

Where a function takes ``scores`` [N, K], entries that are -inf there are padding, as
`lepo_kernels.sample_latent` writes it, and ``mask`` can drop more. A row without entries scores 0.
"""

import math

import torch
from torch import Tensor

from lepo_kernels.formulas.kinks import clip
from lepo_kernels.validation import (
    FLOAT_DTYPES,
    check_number,
    check_positive_number,
    check_range,
    check_tensor,
)

# exp() of it is finite in float32, with room for an advantage.
_LARGEST_EXPONENT = 80.0


def hard_log_prob(
    logits: Tensor,  # [N]
    lse: Tensor,  # [N]
) -> Tensor:  # [N]
    """Log-probability of one token per row, ``a - LSE``.

    Args:
        logits: [N], ``a`` at the token.
        lse: [N], log-sum-exp of ``a`` over the whole vocabulary.

    Raises:
        TypeError, ValueError: an argument has the wrong dtype, shape or device.
    """
    check_tensor("logits", logits, ("N",), FLOAT_DTYPES)
    check_tensor("lse", lse, tuple(logits.shape), FLOAT_DTYPES, logits.device)
    return _wide(logits) - _wide(lse)


def soft_log_prob(
    logits: Tensor,  # [N, K]
    lse: Tensor,  # [N]
    weights: Tensor,  # [N, K]
) -> Tensor:  # [N]
    """Log-probability of a soft token, ``sum_k w_k (a_k - LSE)``.

    The soft surrogate of LEPO (arXiv 2604.17892): its gradient is ``w`` on the selected logits and
    ``-sum w`` on the log-sum-exp, the weights being constants.

    Args:
        logits: [N, K], ``a`` at the kept ids.
        lse: [N], log-sum-exp of ``a`` over the whole vocabulary.
        weights: [N, K]. Entries of weight 0 are skipped, whatever their logit.

    Raises:
        TypeError, ValueError: an argument has the wrong dtype, shape or device.
    """
    check_tensor("logits", logits, ("N", "K"), FLOAT_DTYPES)
    check_tensor("lse", lse, (logits.shape[0],), FLOAT_DTYPES, logits.device)
    check_tensor("weights", weights, tuple(logits.shape), FLOAT_DTYPES, logits.device)
    log_prob = _wide(logits) - _wide(lse)[:, None]
    kept = log_prob.masked_fill(weights == 0, 0)
    return (weights.detach().to(kept.dtype) * kept).sum(dim=-1)


def multiplex_log_probs(
    logits: Tensor,  # [N, K]
    lse: Tensor,  # [N]
) -> Tensor:  # [N, K]
    """Log-probability of each draw of a multiplex token, ``a_k - LSE``.

    Multiplex Thinking (arXiv 2601.08808) clips the ratio of each slot by itself; duplicate draws
    stay slots of their own.

    Args:
        logits: [N, K], ``a`` at the drawn ids.
        lse: [N], log-sum-exp of ``a`` over the whole vocabulary.

    Raises:
        TypeError, ValueError: an argument has the wrong dtype, shape or device.
    """
    check_tensor("logits", logits, ("N", "K"), FLOAT_DTYPES)
    check_tensor("lse", lse, (logits.shape[0],), FLOAT_DTYPES, logits.device)
    return _wide(logits) - _wide(lse)[:, None]


def gumbel_log_density(
    logits: Tensor,  # [N, K]
    scores: Tensor,  # [N, K]
    *,
    mask: Tensor | None = None,  # [N, K]
    min_log_prob: float = -3.0,
    clamp: tuple[float, float] | None = None,
    epsilon: float = 0.0,
) -> Tensor:  # [N]
    """Mean log-density of the perturbed log-probabilities, ``mean(-d - exp(-d))``.

    SofT-GRPO (arXiv 2511.06411). ``lp = log(p + epsilon)`` with ``p`` the softmax over the kept
    entries, ``d = scores - lp`` is Gumbel(0, 1) under the policy, and the mean is over the entries
    with ``lp > min_log_prob`` under the policy given; a row without any scores 0.

    Args:
        logits: [N, K], ``a`` at the kept ids.
        scores: [N, K], perturbed log-probabilities as drawn: of a `LatentSample` s,
            ``s.scores - s.kept_lse[:, None]``.
        mask: [N, K] bool, the kept entries; None takes those whose score is not -inf.
        min_log_prob: which entries count; -inf takes all.
        clamp: (low, high): ``d`` is clamped to it, and has no gradient outside; at an edge it has
            that of the inside. ``exp(-d)`` grows without bound where the policy has moved above a
            score; the range of the rollout's ``noise_clamp`` bounds it.
        epsilon: >= 0; the authors' code takes 1e-6.

    Raises:
        TypeError, ValueError: an argument has the wrong dtype, shape, device or range.
    """
    mask = _check_entries(logits, scores, mask)
    min_log_prob = check_number("min_log_prob", min_log_prob, -math.inf)
    epsilon = check_number("epsilon", epsilon, 0)
    if clamp is not None:
        clamp = check_range("clamp", clamp)
    a, q = _fill(logits, mask), _fill(scores.detach(), mask)
    log_prob = a - _kept_lse(a, mask)[:, None]
    if epsilon > 0:
        log_prob = (log_prob.exp() + epsilon).log()
    d = q - log_prob
    if clamp is not None:
        d = clip(d, *clamp)
    return _mean_gumbel_log_density(d, mask & (log_prob > min_log_prob))


def latent_grpo_log_density(
    logits: Tensor,  # [N, K]
    lse: Tensor,  # [N]
    scores: Tensor,  # [N, K]
    advantages: Tensor,  # [N]
    *,
    mask: Tensor | None = None,  # [N, K]
) -> Tensor:  # [N]
    """Mean log-density of perturbed log-probabilities, with a gradient that is bounded.

    Latent-GRPO (arXiv 2604.27998): with ``d = scores - (a - LSE)``, against the whole vocabulary,
    the mean of ``-d - exp(-d)``. Its derivative in ``a`` is ``1 - exp(-d)``, which has no bound
    for d < 0. Where a row's advantage is not positive and d < 0 it is that of the mirrored density
    ``d - exp(d)`` instead, ``exp(d) - 1``, in (-1, 0). The value is the plain one everywhere, as
    the authors' code has it (a straight-through estimator), so that ratios are of one function.

    Args:
        logits: [N, K], ``a`` at the kept ids.
        lse: [N], log-sum-exp of ``a`` over the whole vocabulary.
        scores: [N, K], perturbed log-probabilities as drawn: of a `LatentSample` s,
            ``s.scores - s.lse[:, None]``, plus the method's shift of the noise.
        advantages: [N], of which only the sign matters.
        mask: [N, K] bool, the kept entries; None takes those whose score is not -inf.

    Raises:
        TypeError, ValueError: an argument has the wrong dtype, shape or device.
    """
    mask = _check_entries(logits, scores, mask)
    check_tensor("lse", lse, (logits.shape[0],), FLOAT_DTYPES, logits.device)
    check_tensor("advantages", advantages, (logits.shape[0],), FLOAT_DTYPES, logits.device)
    d = _deviation(logits, lse, scores, mask)
    plain = _mean_gumbel_log_density(d.detach(), mask)
    mirrored = (advantages <= 0)[:, None] & (d < 0)
    moving = _mean_gumbel_log_density(torch.where(mirrored, -d, d), mask)
    # The plain value, with the derivative of the other.
    return plain + (moving - moving.detach())


def bounded_gumbel_slopes(
    logits: Tensor,  # [N, K]
    lse: Tensor,  # [N]
    scores: Tensor,  # [N, K]
    advantages: Tensor,  # [N]
) -> Tensor:  # [N, K]
    """The derivative of `latent_grpo_log_density` by the logits; that by lse is minus its sum."""
    mask = scores > -torch.inf
    d = _deviation(logits, lse, scores, mask)
    mirrored = (advantages <= 0)[:, None] & (d < 0)
    plain = -torch.expm1(-d.clamp_min(-_LARGEST_EXPONENT)).masked_fill(d < -_LARGEST_EXPONENT, 0)
    slope = torch.where(mirrored, torch.expm1(d), plain)
    return slope.masked_fill(~mask, 0) / mask.sum(dim=-1, keepdim=True).clamp_min(1)


def gumbel_slopes(
    logits: Tensor,  # [N, K]
    scores: Tensor,  # [N, K]
    min_log_prob: float,
    clamp: tuple[float, float] | None,
    epsilon: float,
) -> Tensor:  # [N, K]
    """The derivative of `gumbel_log_density` by the logits; that by lse is 0."""
    mask = scores > -torch.inf
    a, q = _fill(logits, mask), _fill(scores, mask)
    p = kept_softmax(logits, mask)
    log_prob = (p + epsilon).log() if epsilon > 0 else a - _kept_lse(a, mask)[:, None]
    d = q - log_prob
    counts = mask & (log_prob > min_log_prob)
    moves = counts & (d >= -_LARGEST_EXPONENT)
    if clamp is not None:
        moves &= (d >= clamp[0]) & (d <= clamp[1])
    u = -torch.expm1(-d.masked_fill(~moves, 0))
    if epsilon > 0:
        u = u * p / (p + epsilon)
    u = u.masked_fill(~moves, 0) / counts.sum(dim=-1, keepdim=True).clamp_min(1)
    return u - p * u.sum(dim=-1, keepdim=True)


def exp_concrete_slopes(
    logits: Tensor,  # [N, K]
    scores: Tensor,  # [N, K]
) -> Tensor:  # [N, K]
    """The derivative of `exp_concrete_log_density` by the logits; that by lse is 0."""
    mask = scores > -torch.inf
    gaps = _fill(logits, mask) - _fill(scores, mask)
    share = (gaps - _kept_lse(gaps, mask)[:, None]).exp()
    size = mask.sum(dim=-1, keepdim=True).to(gaps.dtype)
    return (1 - size * share).masked_fill(~mask, 0)


def exp_concrete_log_density(
    logits: Tensor,  # [N, K]
    scores: Tensor,  # [N, K]
    tau: float,
    *,
    mask: Tensor | None = None,  # [N, K]
) -> Tensor:  # [N]
    """Log-density of ``y = log z`` where ``z = softmax(scores / tau)`` was drawn by Gumbel noise.

    The ExpConcrete density (Maddison et al., arXiv 1611.00712) on the m kept entries,
    ``log Gamma(m) + (m - 1) log tau + sum(a - tau y) - m LSE(a - tau y)``. As ``tau y`` is the
    scores less a constant, it is computed on ``a - scores``, which does not underflow as ``z``
    does. Its gradient in ``a`` is ``1 - m softmax(a - scores)``: of a single survivor, 0.

    Args:
        logits: [N, K], ``a`` at the kept ids.
        scores: [N, K], the perturbed logits as drawn, up to a constant per row.
        tau: > 0, as float32 can hold it.
        mask: [N, K] bool, the kept entries; None takes those whose score is not -inf.

    Raises:
        TypeError, ValueError: an argument has the wrong dtype, shape, device or range.
    """
    mask = _check_entries(logits, scores, mask)
    tau = check_positive_number("tau", tau)
    gaps = _fill(logits, mask) - _fill(scores.detach(), mask)
    size = mask.sum(dim=-1).to(gaps.dtype)
    # A row without entries has the value of a row with one, 0.
    constant = size.clamp_min(1).lgamma() + (size - 1).clamp_min(0) * math.log(tau)
    return constant + gaps.sum(dim=-1) - size * _kept_lse(gaps, mask)


def concrete_log_density(
    logits: Tensor,  # [N, K]
    scores: Tensor,  # [N, K]
    tau: float,
    *,
    mask: Tensor | None = None,  # [N, K]
) -> Tensor:  # [N]
    """Log-density of ``z = softmax(scores / tau)`` on the simplex, drawn by Gumbel noise.

    The Concrete density (Maddison et al., arXiv 1611.00712): `exp_concrete_log_density` less
    ``sum log z``, so their gradients are equal.

    Args:
        logits, scores, tau, mask: as in `exp_concrete_log_density`.

    Raises:
        TypeError, ValueError: an argument has the wrong dtype, shape, device or range.
    """
    density = exp_concrete_log_density(logits, scores, tau, mask=mask)
    tau = check_positive_number("tau", tau)
    mask = _check_entries(logits, scores, mask)
    q = _fill(scores.detach(), mask) / tau
    return density - q.sum(dim=-1) + mask.sum(dim=-1) * _kept_lse(q, mask)


def gaussian_log_density(
    embedding: Tensor,  # [N, D]
    mean: Tensor,  # [N, D]
    sigma: float,
) -> Tensor:  # [N]
    """Log-density of a noisy embedding, ``-|e - mu|^2 / (2 sigma^2) - (D / 2) log(2 pi sigma^2)``.

    Soft Tokens, Hard Truths (arXiv 2509.19170). Summed over D dimensions it moves far for a small
    step of the policy: use it on-policy, or divide by D before a ratio is made of it.

    Args:
        embedding: [N, D], as drawn; a constant.
        mean: [N, D], the policy's mixture; differentiable.
        sigma: > 0, as float32 can hold it.

    Raises:
        TypeError, ValueError: an argument has the wrong dtype, shape, device or range.
    """
    check_tensor("mean", mean, ("N", "D"), FLOAT_DTYPES)
    check_tensor("embedding", embedding, tuple(mean.shape), FLOAT_DTYPES, mean.device)
    sigma = check_positive_number("sigma", sigma)
    # Divided before it is squared: sigma^2 need not be a float32.
    distance = ((_wide(embedding.detach()) - _wide(mean)) / sigma).square().sum(dim=-1)
    constant = mean.shape[1] * (math.log(2 * math.pi) / 2 + math.log(sigma))
    return -distance / 2 - constant


def kept_softmax(
    logits: Tensor,  # [N, K]
    kept: Tensor,  # [N, K] bool
) -> Tensor:  # [N, K]
    """The softmax over the kept entries of each row, 0 at the others."""
    a = _fill(logits, kept)
    return (a - _kept_lse(a, kept)[:, None]).exp().masked_fill(~kept, 0)


def _deviation(
    logits: Tensor,  # [N, K]
    lse: Tensor,  # [N]
    scores: Tensor,  # [N, K]
    mask: Tensor,  # [N, K]
) -> Tensor:  # [N, K]
    """How far a perturbed log-probability is above the policy's own; 0 on padding."""
    d = _fill(scores.detach(), mask) - (_fill(logits, mask) - _wide(lse)[:, None])
    return d.masked_fill(~mask, 0)


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _check_entries(logits: Tensor, scores: Tensor, mask: Tensor | None) -> Tensor:  # [N, K]
    """Check the arguments every density shares; returns the mask of real entries."""
    check_tensor("logits", logits, ("N", "K"), FLOAT_DTYPES)
    check_tensor("scores", scores, tuple(logits.shape), FLOAT_DTYPES, logits.device)
    real = scores > -torch.inf
    if mask is None:
        return real
    check_tensor("mask", mask, tuple(logits.shape), (torch.bool,), logits.device)
    return mask & real


def _fill(x: Tensor, mask: Tensor) -> Tensor:
    """Zeros for padding, in value and gradient, so that no difference of -inf is ever formed."""
    return _wide(x).masked_fill(~mask, 0)


def _kept_lse(x: Tensor, mask: Tensor) -> Tensor:  # [N]
    """Log-sum-exp over the real entries; 0 for a row without any."""
    empty = ~mask.any(dim=-1, keepdim=True)
    lse = x.masked_fill(~mask, -torch.inf).masked_fill(empty, 0).logsumexp(-1)
    # Filled, not multiplied by 0: of K = 0 entries it is -inf.
    return lse.masked_fill(empty[:, 0], 0)


def _mean_gumbel_log_density(d: Tensor, mask: Tensor) -> Tensor:  # [N]
    """Mean of ``-d - exp(-d)`` over the entries that count; 0 where none does."""
    # Filled before exp too: an entry that overflows there would have the gradient 0 * inf.
    d = clip(d.masked_fill(~mask, 0), low=-_LARGEST_EXPONENT)
    density = (-d - (-d).exp()).masked_fill(~mask, 0)
    return density.sum(dim=-1) / mask.sum(dim=-1).clamp_min(1)
