"""What others offer for the same work, one file per peer, by what it computes."""

from benchmarks.peers import (
    cut_cross_entropy,
    flashinfer,
    liger,
    torch_linear_cross_entropy,
    trl,
)
from benchmarks.peers.peer import Peer

# (hidden [N, D], lm_head [V, D], targets [N], softcap) -> mean cross-entropy [].
LOSSES: tuple[Peer, ...] = (
    torch_linear_cross_entropy.PLAIN,
    torch_linear_cross_entropy.CHUNKED,
    liger.FUSED_LINEAR_CROSS_ENTROPY,
    liger.FUSED_LINEAR_SCALED_CROSS_ENTROPY,
    cut_cross_entropy.PEER,
)
# (logits [N, V], ids [N, K]) -> log-probabilities [N, K].
LOG_PROBS: tuple[Peer, ...] = (trl.PEER,)
# (logits [N, V], ids [N]) -> log-probabilities [N].
HARD_LOG_PROBS: tuple[Peer, ...] = (trl.HARD,)
# (logits [N, V], top_k, top_p) -> one id per row [N].
SAMPLERS: tuple[Peer, ...] = (flashinfer.PEER,)

PEERS = (*LOSSES, *LOG_PROBS, *HARD_LOG_PROBS, *SAMPLERS)
