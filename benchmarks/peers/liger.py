"""Liger-Kernel: the fused linear cross-entropy, and the one for log-probabilities in RL."""

import torch
from torch import Tensor

from benchmarks.peers.peer import Peer


def fused_linear_cross_entropy(
    hidden: Tensor,  # [N, D]
    lm_head: Tensor,  # [V, D]
    targets: Tensor,  # [N]
    softcap: float | None,
) -> Tensor:  # []
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    return liger_fused_linear_cross_entropy(hidden, lm_head, targets, softcap=softcap)


def fused_linear_scaled_cross_entropy(
    hidden: Tensor,  # [N, D]
    lm_head: Tensor,  # [V, D]
    targets: Tensor,  # [N]
    softcap: None,
) -> Tensor:  # []
    from liger_kernel.ops import LigerFusedLinearScaledCrossEntropyFunction

    return LigerFusedLinearScaledCrossEntropyFunction.apply(hidden, lm_head, targets).mean()


FUSED_LINEAR_CROSS_ENTROPY = Peer(
    name="Liger fused linear cross-entropy",
    package="liger-kernel",
    module="liger_kernel",
    function=fused_linear_cross_entropy,
    computes="mean cross-entropy from hidden states; gradients in the forward pass",
    lacks="hard targets only; no weight per row, no entropy",
    softcap=True,
)
FUSED_LINEAR_SCALED_CROSS_ENTROPY = Peer(
    name="Liger fused linear scaled cross-entropy",
    package="liger-kernel",
    module="liger_kernel",
    function=fused_linear_scaled_cross_entropy,
    computes="log-probability of one target per row, with a gradient per row",
    lacks="one target per row (more ids only where all rows share them); no softcap",
    # What its kernel for Hopper takes; elsewhere it falls back on torch.
    dtypes=(torch.bfloat16,),
)
