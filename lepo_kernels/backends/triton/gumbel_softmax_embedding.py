"""Triton kernels of the dense Gumbel-softmax mixture.

Contract: float32, bfloat16 and float16 in any combination; computes in float32, what is summed over
a whole row in float64. Nothing of size [N, V] is stored but the gradient of the logits: scores and
weights exist for a chunk of the vocabulary, in a buffer of bounded size. The noise is drawn from
its counter once per entry and pass, forward and backward.

Forward reads the logits and the table once, and writes and reads the scores. For each chunk, one
kernel draws the noise, and leaves scores and the statistics of tiles; one folds these into what is
known of the rows; one makes weights of the scores, and multiplies them with the table on tensor
cores. It leaves the peak's row out, which is added at the end: so the deviation ``e - E_peak`` is a
sum of small terms, no difference of close ones. Where rows are few, products are split over the
vocabulary; a last kernel adds up the parts in their order.

Backward reads the table and the logits once for the gradient of the logits, and writes the weights
for that of the table, which reads them once per block of columns. Rows whose upstream gradients
are all zero are sorted to the end, and left out. Nothing waits for the device unless values are
checked.

Products with a bfloat16 table take the float32 factor apart into two bfloat16 numbers; those with
other tables are ``tf32x3``. Deterministic: no atomics, and every sum has its order, which may
depend on the number of rows and on the device.
"""

import torch
import triton
from torch import Tensor

from lepo_kernels.backends.rows import dense_rows
from lepo_kernels.backends.triton.common.launching import UNFUSED, device_of
from lepo_kernels.backends.triton.gumbel_softmax.backward import (
    Upstream,
    table_gradient,
    upstream_of,
)
from lepo_kernels.backends.triton.gumbel_softmax.forward import (
    Scores,
    forward,
)
from lepo_kernels.backends.triton.gumbel_softmax.gradient_kernels import (
    logits_gradient_kernel,
    weights_kernel,
)
from lepo_kernels.backends.triton.gumbel_softmax.launching import (
    Chunk,
    Draws,
    check_values,
    chunk_width,
    chunks_of,
    draws_of,
    dtype_class_beside_floats,
    is_split,
    options,
)
from lepo_kernels.backends.triton.gumbel_softmax.statistics_kernels import noisy_scores_kernel
from lepo_kernels.structures import Mixtures, MixtureUpstream, Noise
from lepo_kernels.validation import FLOAT_DTYPES, check_tensor

# Tiles, warps and stages of loads; not measured on a GPU yet. IDS are multiples of 4.
SCORES = {"ROWS": 1, "IDS": 2048, "num_warps": 4, **UNFUSED}
# Gradients of 128 ids would spill: on Ampere, Ada and the smaller Blackwell, and with triton 3.6 on
# Hopper, too.
LOGITS_GRADIENT = {
    "half": {"IDS": 64, "COLUMNS": 128, "num_warps": 8, "num_stages": 2, **UNFUSED},
    "float": {"IDS": 64, "COLUMNS": 32, "num_warps": 8, "num_stages": 2, **UNFUSED},
    "rocm": {"IDS": 64, "COLUMNS": 32, "num_warps": 8, "num_stages": 2, **UNFUSED},
}


def gumbel_softmax_embedding(
    logits: Tensor,  # [N, V]
    embedding: Tensor,  # [V, D]
    noise: Noise,
    shard: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # [N, D], [N], [N], [N, D], [N, 8]
    """Mixtures ``z @ embedding``, ``sum z log pi``, log-densities, and what backward takes over.

    The latter are the deviations ``e - E_peak`` and the statistics of the rows, see the op.
    """
    logits, embedding = _checked(logits, embedding)
    rows, vocab = logits.shape
    draws = draws_of(rows, noise)
    check_values(draws)

    def write_scores(chunk: Chunk, scores: Scores) -> None:
        noisy_scores_kernel[(triton.cdiv(rows, SCORES["ROWS"]) * scores.tiles,)](
            logits,
            logits.stride(0),
            *draws.arguments(),
            scores.scores,
            scores.parts,
            scores.peaks,
            rows,
            chunk.width,
            chunk.first,
            chunk.past,
            scores.tiles,
            **SCORES,
        )

    width, checked = chunk_width(rows, vocab), None if shard else "logits"
    with device_of(logits):
        return forward(draws, width, SCORES["IDS"], write_scores, embedding, checked)


def gumbel_softmax_embedding_backward(
    upstream: MixtureUpstream,
    logits: Tensor,  # [N, V]
    embedding: Tensor,  # [V, D]
    noise: Noise,
    mixtures: Mixtures,
    need_dlogits: bool,
    need_dembedding: bool,
) -> tuple[Tensor, Tensor]:  # [N, V] or [0], [V, D] or [0]
    """da and dE as the op's file has them."""
    logits, embedding = _checked(logits, embedding)
    rows, vocab = logits.shape
    draws = draws_of(rows, noise)
    dlogits = logits.new_empty((rows, vocab) if need_dlogits else (0,))
    dembedding = embedding.new_empty(embedding.shape if need_dembedding else (0,))
    if rows == 0:
        return dlogits, dembedding.zero_()
    has_table_gradient = dembedding.numel() > 0
    # Without weights nothing is held for a chunk.
    width = chunk_width(rows, vocab) if has_table_gradient else vocab
    weights = torch.empty(
        (rows, width) if has_table_gradient else (0,), dtype=torch.float32, device=logits.device
    )
    with device_of(logits):
        sorted_upstream = upstream_of(draws, upstream, mixtures, embedding)
        for chunk in chunks_of(vocab, width):
            if need_dlogits:
                _logits_gradient(chunk, draws, logits, embedding, sorted_upstream, dlogits, weights)
            elif has_table_gradient:
                _weights(chunk, draws, logits, sorted_upstream, weights)
            if has_table_gradient:
                table_gradient(chunk, weights, sorted_upstream, dembedding)
    return dlogits, dembedding


def _checked(
    logits: Tensor,  # [N, V]
    embedding: Tensor,  # [V, D]
) -> tuple[Tensor, Tensor]:  # [N, V], [V, D]
    check_tensor("logits", logits, ("N", "V"), FLOAT_DTYPES)
    vocab = logits.shape[1]
    check_tensor("embedding", embedding, (vocab, "D"), FLOAT_DTYPES, logits.device)
    return dense_rows(logits), dense_rows(embedding)


def _logits_gradient(
    chunk: Chunk,
    draws: Draws,
    logits: Tensor,  # [N, V]
    embedding: Tensor,  # [V, D]
    upstream: Upstream,
    dlogits: Tensor,  # [N, V], written
    weights: Tensor,  # [N, chunk] or [0], written
) -> None:
    rows, vocab = logits.shape
    tiles = options(LOGITS_GRADIENT, dtype_class_beside_floats(embedding), rows, embedding.device)
    row_blocks = triton.cdiv(rows, tiles["ROWS"])
    logits_gradient_kernel[(row_blocks * triton.cdiv(chunk.ids, tiles["IDS"]),)](
        logits,
        logits.stride(0),
        *draws.tau_arguments(),
        *draws.noise_arguments(),
        upstream.statistics,
        embedding,
        embedding.stride(0),
        upstream.high,
        upstream.low,
        upstream.upstream,
        upstream.order,
        upstream.count,
        dlogits,
        weights,
        rows,
        vocab,
        chunk.width,
        chunk.first,
        chunk.past,
        embedding.shape[1],
        row_blocks,
        WEIGHTS=weights.numel() > 0,
        SPLIT=is_split(embedding),
        **tiles,
    )


def _weights(
    chunk: Chunk,
    draws: Draws,
    logits: Tensor,  # [N, V]
    upstream: Upstream,
    weights: Tensor,  # [N, chunk], written
) -> None:
    rows = len(logits)
    tiles = triton.cdiv(chunk.ids, SCORES["IDS"])
    weights_kernel[(triton.cdiv(rows, SCORES["ROWS"]) * tiles,)](
        logits,
        logits.stride(0),
        *draws.arguments(),
        upstream.statistics,
        upstream.order,
        upstream.count,
        weights,
        rows,
        chunk.width,
        chunk.first,
        chunk.past,
        tiles,
        **SCORES,
    )
