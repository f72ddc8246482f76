"""Triton kernels of the dense Gumbel-softmax mixture from hidden states.

Contract: that of `gumbel_softmax_embedding`, with logits ``hidden @ lm_head^T`` that exist for a
chunk of the vocabulary, as scores, or as their gradient in the dtype of the states. Every kernel
that needs logits forms them anew, in float32, in the same order. Products of states and
head take both as they are; those of float32 are ``tf32x3``.

Forward reads the head once and the table once, which are two reads of a tied head. Backward reads
head and table once for the gradient of the logits, which is one read of a tied head, and the head
once more for that of the states. A tied head's gradient is one sum, and is written once.
"""

import torch
import triton
from torch import Tensor

from lepo_kernels.backends.triton.common.launching import UNFUSED, device_of
from lepo_kernels.backends.triton.gumbel_softmax.backward import table_gradient, upstream_of
from lepo_kernels.backends.triton.gumbel_softmax.forward import Scores, forward
from lepo_kernels.backends.triton.gumbel_softmax.launching import (
    Chunk,
    check_values,
    chunk_width,
    chunks_of,
    draws_of,
    options,
)
from lepo_kernels.backends.triton.gumbel_softmax.linear_backward import (
    Buffers,
    StatesGradient,
    bias_gradient,
    head_gradient,
    logits_gradient,
)
from lepo_kernels.backends.triton.gumbel_softmax.linear_head import head_of
from lepo_kernels.backends.triton.gumbel_softmax.statistics_kernels import (
    linear_noisy_scores_kernel,
)
from lepo_kernels.structures import Head, Mixtures, MixtureUpstream, Needs, Noise, empty_gradient

# Tiles, warps and stages of loads, as for LINEAR_LOGITS_GRADIENT; not measured on a GPU yet.
LINEAR_SCORES = {
    "half": {"IDS": 128, "COLUMNS": 64, "num_warps": 8, "num_stages": 3, **UNFUSED},
    "mixed": {"IDS": 128, "COLUMNS": 32, "num_warps": 8, "num_stages": 4, **UNFUSED},
    "float": {"IDS": 32, "COLUMNS": 32, "num_warps": 8, "num_stages": 2, **UNFUSED},
    "rocm": {"IDS": 64, "COLUMNS": 32, "num_warps": 8, "num_stages": 2, **UNFUSED},
}


def linear_gumbel_softmax_embedding(
    head: Head,
    embedding: Tensor | None,  # [V, E]
    noise: Noise,
    chunk_size: int,
    shard: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # [N, E], [N], [N], [N, E], [N, 8]
    """Mixtures ``z @ embedding``, ``sum z log pi``, log-densities, and what backward takes over.

    Without an embedding, the head is the table.
    """
    made = head_of(head, embedding)
    hidden, rows = made.hidden, len(made.hidden)
    draws = draws_of(rows, noise)
    check_values(draws)
    tiles = options(LINEAR_SCORES, made.dtype_class_with_table, rows, hidden.device)
    row_blocks = triton.cdiv(rows, tiles["ROWS"])

    def write_scores(chunk: Chunk, scores: Scores) -> None:
        linear_noisy_scores_kernel[(row_blocks * scores.tiles,)](
            *made.arguments(),
            *draws.arguments(),
            scores.scores,
            scores.parts,
            scores.peaks,
            rows,
            chunk.width,
            chunk.first,
            chunk.past,
            scores.tiles,
            row_blocks,
            **tiles,
        )

    width = chunk_width(rows, made.vocab, chunk_size * made.vocab)
    checked = None if shard else "logits of hidden"
    with device_of(hidden):
        return forward(draws, width, tiles["IDS"], write_scores, made.table, checked)


def linear_gumbel_softmax_embedding_backward(
    upstream: MixtureUpstream,
    head: Head,
    embedding: Tensor | None,  # [V, E]
    noise: Noise,
    chunk_size: int,
    mixtures: Mixtures,
    needs: Needs,
    need_dembedding: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # [N, D], [V, D], [V], [V, E], or [0]
    """Gradients of states, head, bias and table; that of a tied head is the sum of both uses."""
    made = head_of(head, embedding)
    hidden, rows = made.hidden, len(made.hidden)
    draws = draws_of(rows, noise)
    dhidden, dlm_head, dbias = head.empty_gradients(needs)
    dembedding = empty_gradient(made.table, need_dembedding)
    if rows == 0:
        return dhidden, dlm_head.zero_(), dbias.zero_(), dembedding.zero_()
    width = chunk_width(rows, made.vocab, chunk_size * made.vocab)
    buffers = Buffers(
        torch.empty(rows, width, dtype=hidden.dtype, device=hidden.device),
        torch.empty(rows, width, dtype=torch.float32, device=hidden.device),
    )
    with device_of(hidden):
        ready = upstream_of(draws, upstream, mixtures, made.table)
        states = StatesGradient(made, ready, width) if dhidden.numel() > 0 else None
        for chunk in chunks_of(made.vocab, width):
            logits_gradient(chunk, made, draws, ready, buffers)
            if states is not None:
                states.add(chunk, buffers)
            if dlm_head.numel() > 0:
                head_gradient(chunk, made, ready, buffers, dlm_head)
            if dbias.numel() > 0:
                bias_gradient(chunk, ready, buffers, dbias)
            if dembedding.numel() > 0:
                table_gradient(chunk, buffers.weights, ready, dembedding)
        if states is not None:
            states.finish(dhidden)
    return dhidden, dlm_head, dbias, dembedding
