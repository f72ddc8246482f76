"""TRL's log-probabilities of selected ids, which its trainers take from logits."""

from torch import Tensor

from benchmarks.peers.peer import Peer


def log_probs(
    logits: Tensor,  # [N, V]
    ids: Tensor,  # [N, K]
) -> Tensor:  # [N, K]
    from trl.trainer.utils import selective_log_softmax

    return selective_log_softmax(logits, ids)


PEER = Peer(
    name="TRL selective_log_softmax",
    package="trl",
    module="trl",
    function=log_probs,
    computes="log-probabilities of K ids per row, from logits",
    lacks="no entropy; takes logits, which the model has to store",
    devices=("cpu", "cuda"),
)
