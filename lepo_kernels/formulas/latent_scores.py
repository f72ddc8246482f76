"""Latent scores: what a method's loss makes of a latent row, with its derivative written out.

A score is a function of a row's selected logits and log-sum-exp; `lepo_kernels.lepo_loss` knows it
by its name. A fused kernel forms the gradient of a row as soon as its logits are known, inside of
an op, where autograd is switched off: hence the derivative beside the value. A score without one is
served by autograd, from logits that are formed twice.

The scores here are those of `lepo_kernels.formulas.scores`; the methods that use them are in
`lepo_kernels.methods`. `register_latent_score` adds one.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lepo_kernels.formulas.scores import (
    bounded_gumbel_slopes,
    exp_concrete_log_density,
    exp_concrete_slopes,
    gumbel_log_density,
    gumbel_slopes,
    kept_softmax,
    latent_grpo_log_density,
    multiplex_log_probs,
    soft_log_prob,
)

# `LatentScore.value` and `LatentScore.slopes` are given the selected logits [N, K], the log-sum-exp
# [N], and what else is known of the rows.
Value = Callable[[Tensor, Tensor, "ScoredRows"], Tensor]
Slopes = Callable[[Tensor, Tensor, "ScoredRows", Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class ScoredRows:
    """What a score may read of N rows besides the policy.

    Attributes:
        weights: [N, K], the mixture's weights; 0 on padding.
        recorded: [N, K], what the rollout recorded for the score (-inf on padding), or None.
        advantages: [N].
    """

    weights: Tensor
    recorded: Tensor | None
    advantages: Tensor

    @property
    def noisy(self) -> Tensor:  # [N, K]
        """``recorded``, of a score that cannot do without.

        Raises:
            ValueError: there is none.
        """
        if self.recorded is None:
            raise ValueError("recorded: the latent score needs what the rollout recorded, got None")
        return self.recorded


@dataclass(frozen=True)
class LatentScore:
    """A score by its name.

    Attributes:
        name: how `lepo_kernels.lepo_loss` and a method name it.
        value: (logits, lse, rows) -> [N], or [N, K] of a score with a slot per entry;
            differentiable in logits and lse.
        slopes: (logits, lse, rows, upstream) -> [N, K] and [N]: the derivatives by logits and lse
            of the sum of ``upstream * value``; None leaves them to autograd.
        slots: whether the value is [N, K]. Each slot of weight above 0 then has its own ratio.
        reads_record: whether it reads ``ScoredRows.recorded``.
    """

    name: str
    value: Value
    slopes: Slopes | None = None
    slots: bool = False
    reads_record: bool = False


LATENT_SCORES: dict[str, LatentScore] = {}
# LEPO's, which is also what a row's log-probability is recorded as.
SOFT = "soft_log_prob"


def register_latent_score(score: LatentScore) -> LatentScore:
    """Make a score known by its name; returns it.

    Raises:
        ValueError: another score has the name.
    """
    if LATENT_SCORES.setdefault(score.name, score) != score:
        raise ValueError(f"name: there is another latent score {score.name!r} already")
    return score


def latent_score(name: str) -> LatentScore:
    """The score of a name.

    Raises:
        TypeError: the name is not a text.
        ValueError: there is none.
    """
    if not isinstance(name, str):
        raise TypeError(f"latent_score: expected a str, got {type(name).__name__}")
    if name not in LATENT_SCORES:
        known = ", ".join(map(repr, LATENT_SCORES))
        raise ValueError(f"latent_score: expected one of {known}, got {name!r}")
    return LATENT_SCORES[name]


def _soft_slopes(
    logits: Tensor,  # [N, K]
    lse: Tensor,  # [N]
    rows: ScoredRows,
    upstream: Tensor,  # [N]
) -> tuple[Tensor, Tensor]:  # [N, K], [N]
    by_logits = rows.weights.to(upstream.dtype) * upstream[:, None]
    return by_logits, -by_logits.sum(dim=-1)


def _slot_slopes(
    logits: Tensor,  # [N, K]
    lse: Tensor,  # [N]
    rows: ScoredRows,
    upstream: Tensor,  # [N, K]
) -> tuple[Tensor, Tensor]:  # [N, K], [N]
    return upstream, -upstream.sum(dim=-1)


register_latent_score(
    LatentScore(SOFT, lambda a, lse, rows: soft_log_prob(a, lse, rows.weights), _soft_slopes)
)
register_latent_score(
    LatentScore(
        "multiplex_log_probs",
        lambda a, lse, rows: multiplex_log_probs(a, lse),
        _slot_slopes,
        slots=True,
    )
)


def gumbel_score(
    name: str,
    min_log_prob: float,
    clamp: tuple[float, float] | None,
    epsilon: float,
) -> LatentScore:
    """`gumbel_log_density` with its settings, of scores recorded relative to the kept entries.

    Args:
        name: of the score.
        min_log_prob, clamp, epsilon: see `gumbel_log_density`.
    """

    def value(logits: Tensor, lse: Tensor, rows: ScoredRows) -> Tensor:
        return gumbel_log_density(
            logits, rows.noisy, min_log_prob=min_log_prob, clamp=clamp, epsilon=epsilon
        )

    def slopes(
        logits: Tensor, lse: Tensor, rows: ScoredRows, upstream: Tensor
    ) -> tuple[Tensor, Tensor]:
        by_logits = gumbel_slopes(logits, rows.noisy, min_log_prob, clamp, epsilon)
        return upstream[:, None] * by_logits, torch.zeros_like(lse)

    return LatentScore(name, value, slopes, reads_record=True)


def bounded_gumbel_score(name: str, shift: float = 0.0) -> LatentScore:
    """`latent_grpo_log_density`, of scores recorded relative to the whole vocabulary.

    Args:
        name: of the score.
        shift: what the method adds to every entry's noise, which the rollout does not record.
    """

    def value(logits: Tensor, lse: Tensor, rows: ScoredRows) -> Tensor:
        return latent_grpo_log_density(logits, lse, rows.noisy + shift, rows.advantages)

    def slopes(
        logits: Tensor, lse: Tensor, rows: ScoredRows, upstream: Tensor
    ) -> tuple[Tensor, Tensor]:
        each = bounded_gumbel_slopes(logits, lse, rows.noisy + shift, rows.advantages)
        by_logits = upstream[:, None] * each
        return by_logits, -by_logits.sum(dim=-1)

    return LatentScore(name, value, slopes, reads_record=True)


register_latent_score(bounded_gumbel_score("latent_grpo_log_density"))


def expected_score(name: str) -> LatentScore:
    """``sum_k p_k c_k``, p the softmax over the kept entries and c what the rollout recorded.

    Args:
        name: of the score.
    """

    def terms(logits: Tensor, rows: ScoredRows) -> tuple[Tensor, Tensor]:  # [N, K], [N, K]
        kept = rows.noisy > -torch.inf
        p = kept_softmax(logits, kept)
        return p, rows.noisy.detach().to(p.dtype).masked_fill(~kept, 0.0)

    def value(logits: Tensor, lse: Tensor, rows: ScoredRows) -> Tensor:
        p, c = terms(logits, rows)
        return (p * c).sum(dim=-1)

    def slopes(
        logits: Tensor, lse: Tensor, rows: ScoredRows, upstream: Tensor
    ) -> tuple[Tensor, Tensor]:
        p, c = terms(logits, rows)
        by_logits = p * (c - (p * c).sum(dim=-1, keepdim=True))
        return upstream[:, None] * by_logits, torch.zeros_like(lse)

    return LatentScore(name, value, slopes, reads_record=True)


register_latent_score(expected_score("expected_record"))


def concrete_score(name: str, tau: float) -> LatentScore:
    """`exp_concrete_log_density` at a temperature, the exact density of a Gumbel-softmax draw.

    Args:
        name: of the score.
        tau: > 0; the derivative does not depend on it.
    """

    def value(logits: Tensor, lse: Tensor, rows: ScoredRows) -> Tensor:
        return exp_concrete_log_density(logits, rows.noisy, tau)

    def slopes(
        logits: Tensor, lse: Tensor, rows: ScoredRows, upstream: Tensor
    ) -> tuple[Tensor, Tensor]:
        by_logits = upstream[:, None] * exp_concrete_slopes(logits, rows.noisy)
        return by_logits, torch.zeros_like(lse)

    return LatentScore(name, value, slopes, reads_record=True)


register_latent_score(concrete_score("exp_concrete_log_density", tau=1.0))
register_latent_score(
    gumbel_score("gumbel_log_density", min_log_prob=-3.0, clamp=None, epsilon=0.0)
)
