"""TRL's log-probabilities of selected ids, which its trainers take from logits.

It works on sequences, one after the other where it cannot use its fused kernel, which takes one id
per token.
"""

from torch import Tensor

from benchmarks.peers.peer import Peer

# Of a trainer's micro-batch.
_SEQUENCES = 8


def log_probs(
    logits: Tensor,  # [N, V]
    ids: Tensor,  # [N, K]
) -> Tensor:  # [N, K]
    sequences = _sequences(logits)
    return _of(logits.unflatten(0, sequences), ids.unflatten(0, sequences)).flatten(0, 1)


def hard_log_probs(
    logits: Tensor,  # [N, V]
    ids: Tensor,  # [N]
) -> Tensor:  # [N]
    sequences = _sequences(logits)
    return _of(logits.unflatten(0, sequences), ids.unflatten(0, sequences)).flatten()


def _of(logits: Tensor, ids: Tensor) -> Tensor:
    from trl.trainer.utils import selective_log_softmax

    return selective_log_softmax(logits, ids)


def _sequences(logits: Tensor) -> tuple[int, int]:
    """Of equal lengths."""
    count = _SEQUENCES if len(logits) % _SEQUENCES == 0 else 1
    return count, len(logits) // count


PEER = Peer(
    name="TRL selective_log_softmax",
    package="trl",
    module="trl",
    function=log_probs,
    computes="log-probabilities of K ids per token, from logits",
    lacks="no entropy; K ids per token are beyond its fused kernel",
    devices=("cpu", "cuda"),
)
HARD = Peer(
    name="TRL selective_log_softmax, hard targets",
    package="trl",
    module="trl",
    function=hard_log_probs,
    computes="log-probabilities of one id per token, from logits",
    lacks="hard targets; no entropy",
    devices=("cpu", "cuda"),
)
