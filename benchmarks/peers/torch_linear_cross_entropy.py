"""torch's own linear_cross_entropy: as it is by default, and in chunks, without all logits."""

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.peers.peer import Peer

_LACKS = "hard targets only; no weight per row, no entropy"


def plain(
    hidden: Tensor,  # [N, D]
    lm_head: Tensor,  # [V, D]
    targets: Tensor,  # [N]
    softcap: None,
) -> Tensor:  # []
    return F.linear_cross_entropy(hidden, lm_head, targets)


def chunked(
    hidden: Tensor,  # [N, D]
    lm_head: Tensor,  # [V, D]
    targets: Tensor,  # [N]
    softcap: None,
) -> Tensor:  # []
    options = torch.nn.LinearCrossEntropyOptions()
    return F.linear_cross_entropy(hidden, lm_head, targets, options=options)


PLAIN = Peer(
    name="torch linear_cross_entropy",
    package="torch",
    module="torch.nn.functional",
    function=plain,
    computes="mean cross-entropy from hidden states, through all logits",
    lacks=_LACKS,
    devices=("cpu", "cuda"),
    needs="linear_cross_entropy",
)
CHUNKED = Peer(
    name="torch linear_cross_entropy, chunked",
    package="torch",
    module="torch.nn",
    function=chunked,
    computes="mean cross-entropy from hidden states, a chunk of logits at a time",
    lacks=_LACKS,
    devices=("cpu", "cuda"),
    needs="LinearCrossEntropyOptions",
)
