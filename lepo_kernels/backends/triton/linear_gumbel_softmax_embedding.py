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

# Tiles, warps and stages of loads, as for LINEAR_LOGITS_GRADIENT; not measured on a GPU yet.
LINEAR_SCORES = {
    "half": {"IDS": 128, "COLUMNS": 64, "num_warps": 8, "num_stages": 3, **UNFUSED},
    "mixed": {"IDS": 128, "COLUMNS": 32, "num_warps": 8, "num_stages": 4, **UNFUSED},
    "float": {"IDS": 32, "COLUMNS": 32, "num_warps": 8, "num_stages": 2, **UNFUSED},
    "rocm": {"IDS": 64, "COLUMNS": 32, "num_warps": 8, "num_stages": 2, **UNFUSED},
}


def linear_gumbel_softmax_embedding(
    hidden: Tensor,  # [N, D]
    lm_head: Tensor,  # [V, D]
    embedding: Tensor | None,  # [V, E]
    bias: Tensor | None,  # [V]
    softcap: float | None,
    tau: Tensor,  # [N] or [1]
    temperature: Tensor,  # [N] or [1]
    seed: Tensor,  # []
    row_keys: Tensor,  # [N]
    step: Tensor,  # [N] or [1]
    first_id: int,
    chunk_size: int,
    shard: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # [N, E], [N], [N], [N, E], [N, 8]
    """Mixtures ``z @ embedding``, ``sum z log pi``, log-densities, and what backward takes over.

    Without an embedding, the head is the table.
    """
    head = head_of(hidden, lm_head, embedding, bias, softcap)
    rows = len(hidden)
    draws = draws_of(rows, tau, temperature, seed, row_keys, step, first_id)
    check_values(draws)
    tiles = options(LINEAR_SCORES, head.dtype_class_with_table, rows, hidden.device)
    row_blocks = triton.cdiv(rows, tiles["ROWS"])

    def write_scores(chunk: Chunk, scores: Scores) -> None:
        linear_noisy_scores_kernel[(row_blocks * scores.tiles,)](
            *head.arguments(),
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

    width = chunk_width(rows, head.vocab, chunk_size * head.vocab)
    checked = None if shard else "logits of hidden"
    with device_of(hidden):
        return forward(draws, width, tiles["IDS"], write_scores, head.table, checked)


def linear_gumbel_softmax_embedding_backward(
    grad_embedding: Tensor,  # [N, E]
    grad_log_prob: Tensor,  # [N]
    grad_log_density: Tensor,  # [N]
    hidden: Tensor,  # [N, D]
    lm_head: Tensor,  # [V, D]
    embedding: Tensor | None,  # [V, E]
    bias: Tensor | None,  # [V]
    softcap: float | None,
    tau: Tensor,  # [N] or [1]
    temperature: Tensor,  # [N] or [1]
    seed: Tensor,  # []
    row_keys: Tensor,  # [N]
    step: Tensor,  # [N] or [1]
    first_id: int,
    chunk_size: int,
    mixed: Tensor,  # [N, E]
    deviation: Tensor,  # [N, E]
    statistics: Tensor,  # [N, 8]
    need_dhidden: bool,
    need_dlm_head: bool,
    need_dbias: bool,
    need_dembedding: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # [N, D], [V, D], [V], [V, E], or [0]
    """Gradients of states, head, bias and table; that of a tied head is the sum of both uses."""
    head = head_of(hidden, lm_head, embedding, bias, softcap)
    rows = len(hidden)
    draws = draws_of(rows, tau, temperature, seed, row_keys, step, first_id)
    dhidden = hidden.new_empty(hidden.shape if need_dhidden else (0,))
    dlm_head = lm_head.new_empty(lm_head.shape if need_dlm_head else (0,))
    dbias = lm_head.new_empty(head.vocab if need_dbias else 0)
    dembedding = head.table.new_empty(head.table.shape if need_dembedding else (0,))
    if rows == 0:
        return dhidden, dlm_head.zero_(), dbias.zero_(), dembedding.zero_()
    width = chunk_width(rows, head.vocab, chunk_size * head.vocab)
    buffers = Buffers(
        torch.empty(rows, width, dtype=hidden.dtype, device=hidden.device),
        torch.empty(rows, width, dtype=torch.float32, device=hidden.device),
    )
    with device_of(hidden):
        upstream = upstream_of(
            draws,
            grad_embedding,
            grad_log_prob,
            grad_log_density,
            mixed,
            deviation,
            statistics,
            head.table,
        )
        states = StatesGradient(head, upstream, width) if dhidden.numel() > 0 else None
        for chunk in chunks_of(head.vocab, width):
            logits_gradient(chunk, head, draws, upstream, buffers)
            if states is not None:
                states.add(chunk, buffers)
            if dlm_head.numel() > 0:
                head_gradient(chunk, head, upstream, buffers, dlm_head)
            if dbias.numel() > 0:
                bias_gradient(chunk, upstream, buffers, dbias)
            if dembedding.numel() > 0:
                table_gradient(chunk, buffers.weights, upstream, dembedding)
        if states is not None:
            states.finish(dhidden)
    return dhidden, dlm_head, dbias, dembedding
