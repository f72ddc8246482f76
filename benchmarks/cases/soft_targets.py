"""What the cases of log-probabilities share: soft targets, LEPO's surrogate, and its oracle."""

import torch
from torch import Tensor

from benchmarks.compiling import lazily

# What a row with one id per token lacks.
HARD = "hard targets"
# Rows that the oracle works on at a time: in float64, all logits of a case may be too many.
BLOCK = 256


def soft_targets(
    rows: int, kept: int, vocab: int, rng: torch.Generator
) -> tuple[Tensor, Tensor]:  # [N, K], [N, K]
    """Distinct ids and weights that sum to 1."""
    starts = torch.randint(vocab, (rows, 1), device=rng.device, generator=rng)
    strides = torch.arange(kept, device=rng.device) * (vocab // kept)
    weights = torch.randn(rows, kept, device=rng.device, generator=rng).softmax(-1)
    return (starts + strides) % vocab, weights


def some_advantages(rows: int, active: int, rng: torch.Generator) -> Tensor:  # [N]
    """Normal numbers for ``active`` of the rows, evenly spread, and 0 for the rest."""
    advantages = torch.randn(rows, device=rng.device, generator=rng)
    place = torch.arange(rows, device=rng.device) * active
    return advantages.masked_fill(place % rows >= active, 0.0)


def surrogate(log_prob: Tensor, advantages: Tensor) -> Tensor:  # []
    return -(advantages * log_prob).mean()


def eager_loss(logits: Tensor, ids: Tensor, weights: Tensor, advantages: Tensor) -> Tensor:  # []
    log_pi = logits.float().log_softmax(-1)
    return surrogate((weights * log_pi.gather(1, ids)).sum(-1), advantages)


compiled_loss = lazily(eager_loss)


def oracle(
    logits: Tensor,  # [N, V] float64
    ids: Tensor,  # [N, K]
    weights: Tensor,  # [N, K]
    share: Tensor,  # [N]
) -> tuple[Tensor, Tensor]:  # [], [N, V]
    """-sum of share * (weights . log pi) over some rows, and its gradient in their logits.

    By formula, in float64; a row's share is its advantage over the number of all rows.
    """
    log_pi = logits.log_softmax(-1)
    w, share = weights.double(), share.double()
    loss = -(share * (w * log_pi.gather(1, ids)).sum(-1)).sum()
    pull = log_pi.exp_().mul_(w.sum(-1, keepdim=True)).scatter_add_(1, ids, -w)
    return loss, pull.mul_(share[:, None])
