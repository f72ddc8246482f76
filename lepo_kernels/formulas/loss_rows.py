"""What the loss knows of each row, and its settings, with their checks."""

from typing import NamedTuple

import torch
from torch import Tensor

from lepo_kernels.formulas.latent_scores import ScoredRows, latent_score
from lepo_kernels.validation import (
    FLOAT_DTYPES,
    check_choice,
    check_flag,
    check_number,
    check_tensor,
    checks_enabled,
)

LATENT_KL = ("k3", "exact", "score")
SURROGATES = ("ppo", "cispo")


class RowFacts(NamedTuple):
    """What the loss needs to know of each row, by the names that `lepo_objective` has for it."""

    weights: Tensor  # [N, K]
    latent: Tensor  # [N] bool
    advantages: Tensor  # [N]
    row_weights: Tensor  # [N]
    old_log_prob: Tensor | None  # [N], or [N, K] of a score with slots
    ref_log_probs: Tensor | None  # [N, K]
    recorded: Tensor | None  # [N, K]
    sequences: Tensor | None  # [N] int64

    def at(self, rows: slice | Tensor) -> "RowFacts":
        """Of some of the rows."""
        return RowFacts(*(None if x is None else x[rows] for x in self))  # type: ignore[arg-type]

    def detach(self) -> "RowFacts":
        """The same numbers, constant to autograd."""
        return RowFacts(*(None if x is None else x.detach() for x in self))  # type: ignore[arg-type]

    def used(self) -> Tensor:  # [N] bool
        """The rows that are not left out; see `LepoLoss`."""
        weighted = self.row_weights != 0
        # A sequence's ratio is of all its rows.
        if self.ref_log_probs is not None or self.sequences is not None:
            return weighted
        return weighted & (self.advantages != 0)

    def scored(self) -> ScoredRows:
        """What a latent score may read."""
        return ScoredRows(self.weights, self.recorded, self.advantages)


class LossSettings(NamedTuple):
    """The numbers of the loss, by the names that `lepo_objective` has for them."""

    beta: float
    epsilon: float
    epsilon_high: float
    delta: float | None
    latent_kl: str
    latent_score: str
    latent_ratio: bool
    surrogate: str
    kl_times_ratio: bool


def check_loss(
    like: Tensor,  # [N, K]
    facts: RowFacts,
    settings: LossSettings,
) -> LossSettings:
    """Check what the loss needs to know of each row, for ids or logits ``like``, and its settings.

    Returns:
        The settings, as `check_settings` gives them.

    Raises:
        TypeError, ValueError: an argument has the wrong dtype, shape, device or range, or one that
            the settings need is missing.
        IndexError: a sequence has no number that a row could have (checked on the CPU, or with
            ``LEPO_CHECK_VALUES=1``).
    """
    (rows, kept), device = like.shape, like.device
    check_tensor("weights", facts.weights, (rows, kept), FLOAT_DTYPES, device)
    check_tensor("latent", facts.latent, (rows,), (torch.bool,), device)
    check_tensor("advantages", facts.advantages, (rows,), FLOAT_DTYPES, device)
    check_tensor("row_weights", facts.row_weights, (rows,), FLOAT_DTYPES, device)
    settings = check_settings(settings)
    score = latent_score(settings.latent_score)
    if facts.old_log_prob is not None:
        shape = (rows, kept) if score.slots else (rows,)
        check_tensor("old_log_prob", facts.old_log_prob, shape, FLOAT_DTYPES, device)
    if facts.ref_log_probs is not None:
        check_tensor("ref_log_probs", facts.ref_log_probs, (rows, kept), FLOAT_DTYPES, device)
    elif settings.beta > 0:
        raise ValueError("ref_log_probs: needed when beta is not 0, got None")
    if facts.recorded is not None:
        check_tensor("recorded", facts.recorded, (rows, kept), FLOAT_DTYPES, device)
    elif score.reads_record:
        raise ValueError(f"recorded: needed by latent_score={score.name!r}, got None")
    if facts.sequences is not None:
        _check_sequences(facts.sequences, rows, device)
        if score.slots:
            raise ValueError(
                f"sequences: latent_score={score.name!r} has a ratio in each slot, which no "
                "sequence has"
            )
    return settings


def _check_sequences(
    sequences: Tensor,  # [N]
    rows: int,
    device: torch.device,
) -> None:
    check_tensor("sequences", sequences, (rows,), (torch.int64,), device)
    if checks_enabled(device) and bool(((sequences < 0) | (sequences >= rows)).any()):
        raise IndexError(f"sequences: expected numbers in [0, {rows}), the number of rows")


def check_settings(settings: LossSettings) -> LossSettings:
    """Check the numbers of the loss, and make them floats: torch knows no Fraction.

    Raises:
        TypeError, ValueError: one is out of range.
    """
    beta = check_number("beta", settings.beta, 0.0)
    epsilon = check_number("epsilon", settings.epsilon, 0.0, 1.0, low_included=False)
    epsilon_high = check_number("epsilon_high", settings.epsilon_high, 0.0, low_included=False)
    delta = settings.delta
    if delta is not None:
        delta = check_number("delta", delta, 1 + epsilon_high, low_included=False)
    check_choice("latent_kl", settings.latent_kl, LATENT_KL)
    latent_score(settings.latent_score)
    check_flag("latent_ratio", settings.latent_ratio)
    check_choice("surrogate", settings.surrogate, SURROGATES)
    check_flag("kl_times_ratio", settings.kl_times_ratio)
    return settings._replace(beta=beta, epsilon=epsilon, epsilon_high=epsilon_high, delta=delta)
