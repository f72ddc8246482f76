"""flashinfer's sampler: one token per row, by rejection, without sorting."""

from torch import Tensor

from benchmarks.peers.peer import Peer


def sample(
    logits: Tensor,  # [N, V]
    top_k: int,
    top_p: float,
) -> Tensor:  # [N]
    from flashinfer.sampling import top_k_top_p_sampling_from_logits

    return top_k_top_p_sampling_from_logits(logits, top_k, top_p)


PEER = Peer(
    name="flashinfer top_k_top_p_sampling",
    package="flashinfer-python",
    module="flashinfer",
    function=sample,
    computes="one token per row after top-k and top-p",
    lacks="one hard token: no kept set with weights, no mixture, no log-sum-exp",
)
