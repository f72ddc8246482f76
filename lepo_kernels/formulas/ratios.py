"""Scores of rows, their importance ratios, and where these are clipped."""

from typing import NamedTuple

import torch
from torch import Tensor

from lepo_kernels.formulas.kinks import clip
from lepo_kernels.formulas.latent_scores import SOFT, ScoredRows, latent_score
from lepo_kernels.formulas.loss_rows import LossSettings, RowFacts

# exp() of it is finite in float32, with room for an advantage.
LARGEST_EXPONENT = 80.0
# What may multiply such an exponential.
LARGEST_FACTOR = 1000.0


def score_of(
    name: str,
    log_prob: Tensor,  # [N]
    logits: Tensor,  # [N, K]
    lse: Tensor,  # [N]
    latent: Tensor,  # [N] bool
    rows: ScoredRows,
) -> Tensor:  # [N], or [N, K] of a score with slots
    """What has the ratio: log-probabilities, and on latent rows the score of a name.

    Of a score with slots the first is the log-probability of a discrete row, and the others are 0.

    Args:
        name: of the latent score.
        log_prob: [N], the log-probabilities of discrete rows, and the soft ones of latent rows.
        logits, lse: of the policy.
        latent: [N], which rows are latent steps.
        rows: what the score may read besides.
    """
    if name == SOFT:
        return log_prob
    found = latent_score(name)
    value = found.value(logits, lse, rows).to(log_prob.dtype)
    if not found.slots:
        return torch.where(latent, value, log_prob)
    kept = latent[:, None] & (rows.weights != 0)
    first = torch.nn.functional.pad(
        log_prob.masked_fill(latent, 0.0)[:, None], (0, value.shape[1] - 1)
    )
    return first + value.masked_fill(~kept, 0.0)


class Ratios(NamedTuple):
    """The importance ratios of rows, or of their slots, as far as they move the loss."""

    score: Tensor  # [N], or [N, K] of a score with slots
    old: Tensor  # the same of the policy that sampled
    entries: Tensor  # bool, the same: which numbers the loss has; of a row without slots, its own
    moving: Tensor  # bool, the same: which of them have a ratio that is not 1
    sequences: Tensor | None  # [N]: discrete rows of one number share a ratio
    latent: Tensor  # [N] bool

    @classmethod
    def of(cls, score: Tensor, facts: RowFacts, settings: LossSettings) -> "Ratios":
        """Of scores as `score_of` gives them."""
        old = score.detach() if facts.old_log_prob is None else facts.old_log_prob.to(score.dtype)
        used = facts.used()
        entries = torch.ones_like(used)
        if score.dim() == 2:
            first = torch.arange(score.shape[1], device=score.device) == 0
            entries = torch.where(facts.latent[:, None], facts.weights != 0, first)
        has_ratio = used if settings.latent_ratio else used & ~facts.latent
        moving = entries & per_entry(has_ratio, score)
        return cls(score, old, entries, moving, facts.sequences, facts.latent)

    @property
    def values(self) -> Tensor:
        """exp(score - old), of a sequence the exponential of its mean; 1 where it does not move."""
        if self.sequences is None:
            return ratio_of(self.score, self.old, self.moving)
        apart = self.score - self.old
        discrete = self.moving & ~self.latent
        mean = _mean_of_sequences(apart, self.sequences, discrete)
        return ratio_of(torch.where(discrete, mean, apart), torch.zeros_like(apart), self.moving)

    @property
    def discrete_values(self) -> Tensor:  # [N]
        """The ratios of discrete rows, at most `LARGEST_FACTOR`; 1 on latent ones."""
        values = self.values if self.score.dim() == 1 else self.values[:, :1].sum(dim=-1)
        return clip(values, high=LARGEST_FACTOR).masked_fill(self.latent, 1.0)


def _mean_of_sequences(
    x: Tensor,  # [N]
    sequences: Tensor,  # [N]
    counted: Tensor,  # [N] bool
) -> Tensor:  # [N]
    """For each row, the mean of the rows of its sequence that are counted; 0 where none is."""
    zeros = x.new_zeros(len(sequences))
    total = zeros.index_add(0, sequences, x.masked_fill(~counted, 0.0))
    count = zeros.index_add(0, sequences, counted.to(x.dtype))
    return (total / count.clamp_min(1))[sequences]


def per_entry(
    x: Tensor,  # [N]
    like: Tensor,  # [N] or [N, K]
) -> Tensor:  # [N] or [N, 1]
    """A number of each row, to go with rows or with their slots."""
    return x if like.dim() == 1 else x[:, None]


def clipped_rows(
    ratio: Tensor,  # [N] or [N, K]
    advantages: Tensor,  # [N] or [N, 1]
    settings: LossSettings,
) -> Tensor:  # int8, as ratio
    """-1 where the ratio is clipped from below, +1 where from above, 0 elsewhere.

    Only a ratio beyond its range, on the side where the advantage would push it further, is; one on
    an edge is not. CISPO's has no lower end, and ``epsilon_high`` is the upper one.
    """
    if settings.surrogate == "cispo":
        return ((ratio > settings.epsilon_high) & (advantages > 0)).to(torch.int8)
    below = (ratio < 1 - settings.epsilon) & (advantages < 0)
    above = (ratio > 1 + settings.epsilon_high) & (advantages > 0)
    return above.to(torch.int8) - below.to(torch.int8)


def bounded_ratio(
    ratio: Tensor,  # [N] or [N, K]
    advantages: Tensor,  # [N] or [N, 1]
    clipped: Tensor,  # int8, as ratio
    settings: LossSettings,
) -> Tensor:  # as ratio
    """The number b of ``min(rho A, clip(rho) A) = b A``, with the derivative 1 where it moves.

    By the sign of A, not by the smaller product: products tie where rounding makes them equal.
    """
    bounded = ratio.masked_fill(clipped < 0, 1 - settings.epsilon)
    bounded = bounded.masked_fill(clipped > 0, 1 + settings.epsilon_high)
    if settings.delta is None:
        return bounded
    return torch.where(advantages < 0, clip(bounded, high=settings.delta), bounded)


def ratio_of(
    score: Tensor,  # [N] or [N, K]
    old: Tensor,  # the same
    moving: Tensor,  # bool, the same
) -> Tensor:  # the same
    """``exp(score - old)`` where ``moving``, else 1.

    The exponent is bounded before exp: an infinite ratio has the gradient 0 * inf where it is
    clipped.
    """
    return torch.exp(clip((score - old).masked_fill(~moving, 0.0), high=LARGEST_EXPONENT))
