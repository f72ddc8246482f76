"""The policy's log-probabilities on the steps of a rollout, with gradient.

Contract: one forward over prompt and completion, the mixtures formed again from the stored
(ids, weights) with the current table; agrees with the rollout's own ``log_probs``. Old, current and
reference log-probabilities all come from here, so none is computed on shadow ids.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lepo_kernels.ops.scores import soft_log_prob
from lepo_kernels.rollout.lm_head import LmHead
from lepo_kernels.rollout.record import LatentRollout
from lepo_kernels.rollout.soft_embedding import soft_inputs
from lepo_kernels.validation import check_number, check_tensor, checks_enabled


@dataclass(frozen=True)
class PolicyLogProbs:
    """What the policy gives to M selected steps, in row-major order of the selection.

    Attributes:
        ids: [M, K] int64; on a discrete step its id, repeated.
        weights: [M, K] float32; on a discrete step (1, 0, ..., 0).
        logits: [M, K] float32, logits / temperature at ``ids``.
        lse: [M] float32, log-sum-exp over the whole vocabulary.
        entropy: [M] float32, over the whole vocabulary.
    """

    ids: Tensor
    weights: Tensor
    logits: Tensor
    lse: Tensor
    entropy: Tensor

    @property
    def log_prob(self) -> Tensor:
        """[M]: sum_k w_k log pi(id_k), which on a discrete step is log pi(id)."""
        return soft_log_prob(self.logits, self.lse, self.weights)


def policy_log_probs(
    model: Any,
    rollout: LatentRollout,
    rows: Tensor,  # [B, T]
    *,
    temperature: float = 1.0,
    backend: str | None = None,
) -> PolicyLogProbs:
    """Log-probabilities of ``softmax(logits / temperature)`` on selected steps of a rollout.

    Args:
        model: a decoder-only transformers model, possibly inside DDP, FSDP or peft. It is run in
            the mode (train or eval) it is in.
        rollout: B rows of at most T steps, on the model's device.
        rows: [B, T] bool, the steps to score. Logits are formed for these only.
        temperature: as in the rollout's settings.
        backend: see `lepo_kernels.backend`.

    Returns:
        `PolicyLogProbs`; differentiable in all parameters of the model, the embedding table through
        the mixtures included.

    Raises:
        TypeError, ValueError: a wrong shape, dtype or device; a step that does not exist (checked
            on the CPU, or with ``LEPO_CHECK_VALUES=1``); a model that cannot be served (see
            ``SoftEmbedding`` and ``LmHead``).
    """
    B, T = rollout.completion_ids.shape
    check_tensor("rows", rows, (B, T), (torch.bool,), rollout.device)
    check_number("temperature", temperature, 0.0, low_included=False)
    if checks_enabled(rows.device) and bool((rows & ~rollout.completion_mask).any()):
        raise ValueError("rows: expected steps inside completion_mask, got steps past a row's end")
    row, step = rows.nonzero(as_tuple=True)
    part = rollout.crop(int(step.max()) + 1 if step.numel() else 1)
    ids, weights = _targets(part, row, step)
    head = LmHead(model, backend=backend)
    columns = part.prompt_ids.shape[1] - 1 + step

    def compute(hidden: Tensor) -> tuple[Tensor, ...]:
        return tuple(head.log_probs(hidden[row, columns], ids, temperature=temperature))

    # The last step is predicted, never fed.
    input_ids = torch.cat([part.prompt_ids, part.completion_ids[:, :-1]], dim=1)
    mask = torch.cat([part.prompt_mask, part.completion_mask[:, :-1]], dim=1).long()
    with soft_inputs(model, part, backend=backend), head.replaced(compute):
        logits, lse, entropy = model(
            input_ids=input_ids,
            attention_mask=mask,
            position_ids=(mask.cumsum(dim=1) - 1).clamp(min=0),
            use_cache=False,
        )
    return PolicyLogProbs(ids, weights, logits, lse, entropy)


def _targets(rollout: LatentRollout, row: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
    """Ids and weights [M, K] of the selected steps."""
    ids = rollout.completion_ids[row, step][:, None]
    weights = torch.ones(ids.shape, dtype=torch.float32, device=ids.device)
    latent = rollout.latent_mask[row, step]
    if not bool(latent.any()):
        return ids, weights
    L, K = rollout.latent_ids.shape[1:]
    ids = ids.expand(-1, K)
    weights = torch.nn.functional.pad(weights, (0, K - 1))
    stored = step.clamp(max=L - 1)
    mixed = latent[:, None]
    return (
        torch.where(mixed, rollout.latent_ids[row, stored], ids),
        torch.where(mixed, rollout.latent_weights[row, stored], weights),
    )
