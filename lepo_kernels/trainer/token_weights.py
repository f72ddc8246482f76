"""The normalisations of the loss over tokens, as TRL names them."""

import torch
from torch import Tensor

LOSS_TYPES = ("grpo", "bnpo", "dr_grpo", "dapo", "cispo")
NORMALIZE_OVER = ("update", "generation")
IMPORTANCE_SAMPLING_LEVELS = ("token", "sequence")


def token_weights(
    mask: Tensor,  # [A, B, T] bool
    loss_type: str,
    max_completion_length: int,
    total_tokens: Tensor | None = None,  # []
) -> Tensor:  # [A, B, T]
    """Weights w such that one update minimises ``sum_{a,b,t} w * loss`` over its micro-batches.

    ========  ==============================================================================
    grpo      mean over sequences of the mean over a sequence's tokens (arXiv 2402.03300)
    bnpo      mean over micro-batches of the mean over the micro-batch's tokens
    dr_grpo   sum over tokens / (sequences * max_completion_length)  (arXiv 2503.20783)
    dapo      mean over all tokens of the update  (arXiv 2503.14476)
    cispo     the same
    ========  ==============================================================================

    Args:
        mask: [A, B, T]: the steps that count, for A micro-batches of B sequences.
        loss_type: one of these.
        max_completion_length: T's upper limit, for ``dr_grpo``.
        total_tokens: for ``dapo`` and ``cispo``: tokens of the update, averaged over the processes
            that train together; None counts those of ``mask``.

    Returns:
        [A, B, T] float32; 0 where ``mask`` is false.
    """
    counted = mask.float()
    micro_batches, sequences, _ = mask.shape
    if loss_type == "grpo":
        per_sequence = counted.sum(-1, keepdim=True).clamp(min=1)
        return counted / per_sequence / (micro_batches * sequences)
    if loss_type == "bnpo":
        per_micro_batch = counted.sum((1, 2), keepdim=True).clamp(min=1)
        return counted / per_micro_batch / micro_batches
    if loss_type == "dr_grpo":
        return counted / (micro_batches * sequences * max_completion_length)
    total = counted.sum() if total_tokens is None else total_tokens.to(counted.dtype)
    return counted / torch.clamp(total, min=1)


def surrogate_of(loss_type: str) -> str:
    """What the loss makes of a ratio: PPO's clipped one, or CISPO's constant."""
    return "cispo" if loss_type == "cispo" else "ppo"
