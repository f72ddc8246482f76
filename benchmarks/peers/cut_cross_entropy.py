"""Cut cross-entropy: no logits in memory, in the forward pass or in the backward pass."""

import torch
from torch import Tensor

from benchmarks.peers.peer import Peer


def loss(
    hidden: Tensor,  # [N, D]
    lm_head: Tensor,  # [V, D]
    targets: Tensor,  # [N]
    softcap: float | None,
) -> Tensor:  # []
    from cut_cross_entropy import linear_cross_entropy

    return linear_cross_entropy(hidden, lm_head, targets, softcap=softcap)


PEER = Peer(
    name="cut-cross-entropy",
    package="cut-cross-entropy",
    module="cut_cross_entropy",
    function=loss,
    computes="mean cross-entropy from hidden states; logits are formed in shared memory, twice",
    lacks="hard targets only; no entropy; by default drops gradients of small probabilities",
    dtypes=(torch.bfloat16, torch.float16),
    softcap=True,
)
