"""`lepo_loss` over a head of which each rank holds a part of the vocabulary.

It is plain torch on the log-probabilities, which all ranks have, so it needs no collective of its
own.
"""

import torch.distributed as dist
from torch import Tensor

from lepo_kernels.formulas.latent_scores import SOFT
from lepo_kernels.formulas.lepo_objective import LepoLoss, objective_of
from lepo_kernels.formulas.loss_rows import LossSettings, RowFacts, check_loss
from lepo_kernels.parallel.linear_log_probs import vocab_parallel_linear_log_probs
from lepo_kernels.parallel.shards import Ranks
from lepo_kernels.validation import INDEX_DTYPES, check_tensor


def vocab_parallel_lepo_loss(
    hidden: Tensor,  # [N, D]
    lm_head: Tensor,  # [V_r, D]
    ids: Tensor,  # [N, K]
    weights: Tensor,  # [N, K]
    latent: Tensor,  # [N] bool
    advantages: Tensor,  # [N]
    row_weights: Tensor,  # [N]
    *,
    group: "dist.ProcessGroup | None" = None,
    first_id: int | None = None,
    vocab_size: int | None = None,
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
    bias: Tensor | None = None,  # [V_r]
    softcap: float | None = None,
    inv_temperature: float | Tensor = 1.0,  # [] or [N]
    backend: str | None = None,
) -> LepoLoss:
    """`lepo_kernels.lepo_loss` over a head whose rows are spread over a process group.

    `vocab_parallel_linear_log_probs` followed by `lepo_kernels.lepo_objective`. All ranks pass the
    same tensors, but for their rows of the head, and get the same loss. Rows that are left out
    (`LepoLoss`) cost nothing in the backward pass.

    Args:
        hidden, lm_head, ids, group, first_id, vocab_size, bias, softcap, inv_temperature, backend:
            see `vocab_parallel_linear_log_probs`.
        weights, latent, advantages, row_weights, old_log_prob, ref_log_probs, beta, epsilon,
            epsilon_high, delta, latent_kl, latent_score, latent_ratio, recorded, sequences,
            surrogate, kl_times_ratio: see `lepo_kernels.lepo_objective`.

    Returns:
        `LepoLoss`. Differentiable in ``hidden``, ``lm_head`` and ``bias``.

    Raises:
        TypeError, ValueError, IndexError, RuntimeError: see both.
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

    def check() -> None:
        check_tensor("ids", ids, ("N", "K"), INDEX_DTYPES)
        check_loss(ids, facts, settings)

    # Before the head's ranks wait for each other.
    Ranks(group, first_id, vocab_size).prepare(check)
    scored = vocab_parallel_linear_log_probs(
        hidden,
        lm_head,
        ids,
        group=group,
        first_id=first_id,
        vocab_size=vocab_size,
        bias=bias,
        softcap=softcap,
        inv_temperature=inv_temperature,
        backend=backend,
    )
    return objective_of(scored.logits, scored.lse, facts, settings)
