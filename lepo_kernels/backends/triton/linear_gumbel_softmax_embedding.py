"""Triton kernels of the dense Gumbel-softmax mixture from hidden states.

Contract: that of `gumbel_softmax_embedding`, with logits ``hidden @ lm_head^T`` that exist for a
chunk of the vocabulary, as scores, or as their gradient in the dtype of the states. Every kernel
that needs logits forms them anew, in float32, in the same order. Products of states and
head take both as they are; those of float32 are ``tf32x3``.

Forward reads the head once and the table once, which are two reads of a tied head. Backward reads
head and table once for the gradient of the logits, which is one read of a tied head, and the head
once more for that of the states. A tied head's gradient is one sum, and is written once.
"""

from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from lepo_kernels.backends.layout import dense_rows
from lepo_kernels.backends.triton.gumbel_softmax_backward import (
    Upstream,
    table_gradient,
    upstream_of,
)
from lepo_kernels.backends.triton.gumbel_softmax_forward import (
    Scores,
    forward,
)
from lepo_kernels.backends.triton.gumbel_softmax_launches import (
    COMBINE,
    Chunk,
    Draws,
    check_values,
    chunk_width,
    chunks_of,
    draws_of,
    ids_per_split,
    is_split,
    options,
    size_beside_floats,
)
from lepo_kernels.backends.triton.gumbel_softmax_statistics import linear_noisy_scores_kernel
from lepo_kernels.backends.triton.launching import UNFUSED, device_of, size_of
from lepo_kernels.backends.triton.linear_gumbel_softmax_gradients import (
    bias_gradient_kernel,
    combine_hidden_gradients_kernel,
    head_gradient_kernel,
    hidden_gradient_kernel,
    linear_logits_gradient_kernel,
    tied_gradient_kernel,
)
from lepo_kernels.validation import FLOAT_DTYPES, check_tensor

# Tiles, warps and stages of loads; not measured on a GPU yet. IDS are multiples of 4. The first two
# have the same COLUMNS: so logits are summed up in the same order. Mixed is half precision where
# products with the table are of float32: these have no registers for longer pieces.
LINEAR_SCORES = {
    "half": {"IDS": 128, "COLUMNS": 64, "num_warps": 8, "num_stages": 3, **UNFUSED},
    "mixed": {"IDS": 128, "COLUMNS": 32, "num_warps": 8, "num_stages": 4, **UNFUSED},
    "float": {"IDS": 32, "COLUMNS": 32, "num_warps": 8, "num_stages": 2, **UNFUSED},
    "rocm": {"IDS": 64, "COLUMNS": 32, "num_warps": 8, "num_stages": 2, **UNFUSED},
}
LINEAR_LOGITS_GRADIENT = {
    # Ampere has no registers for 128 ids, Hopper would have them.
    "half": {"IDS": 64, "COLUMNS": 64, "num_warps": 8, "num_stages": 3, **UNFUSED},
    "mixed": {"IDS": 32, "COLUMNS": 32, "num_warps": 8, "num_stages": 3, **UNFUSED},
    "float": {"IDS": 32, "COLUMNS": 32, "num_warps": 8, "num_stages": 2, **UNFUSED},
    "rocm": {"IDS": 64, "COLUMNS": 32, "num_warps": 8, "num_stages": 2, **UNFUSED},
}
HIDDEN_GRADIENT = {
    "half": {"IDS": 64, "COLUMNS": 256, "num_warps": 8, "num_stages": 3, **UNFUSED},
    "float": {"IDS": 32, "COLUMNS": 128, "num_warps": 8, "num_stages": 2, **UNFUSED},
    "rocm": {"IDS": 32, "COLUMNS": 128, "num_warps": 8, "num_stages": 2, **UNFUSED},
}
HEAD_GRADIENT: dict[str, dict[str, Any]] = {
    size: {"ROWS": 32, "IDS": ids, "COLUMNS": columns, "num_warps": 8, "num_stages": 1, **UNFUSED}
    for size, ids, columns in (("half", 128, 128), ("float", 64, 64), ("rocm", 64, 64))
}
BIAS_GRADIENT = {"ROWS": 16, "IDS": 512, "num_warps": 4, **UNFUSED}


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
    head = _head_of(hidden, lm_head, embedding, bias, softcap)
    rows = len(hidden)
    draws = draws_of(rows, tau, temperature, seed, row_keys, step, first_id)
    check_values(draws)
    tiles = options(LINEAR_SCORES, head.size_with_table, rows, hidden.device)
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
    head = _head_of(hidden, lm_head, embedding, bias, softcap)
    rows = len(hidden)
    draws = draws_of(rows, tau, temperature, seed, row_keys, step, first_id)
    dhidden = hidden.new_empty(hidden.shape if need_dhidden else (0,))
    dlm_head = lm_head.new_empty(lm_head.shape if need_dlm_head else (0,))
    dbias = lm_head.new_empty(head.vocab if need_dbias else 0)
    dembedding = head.table.new_empty(head.table.shape if need_dembedding else (0,))
    if rows == 0:
        return dhidden, dlm_head.zero_(), dbias.zero_(), dembedding.zero_()
    width = chunk_width(rows, head.vocab, chunk_size * head.vocab)
    buffers = _Buffers(
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
        states = _StatesGradient(head, upstream, width) if dhidden.numel() > 0 else None
        for chunk in chunks_of(head.vocab, width):
            _logits_gradient(chunk, head, draws, upstream, buffers)
            if states is not None:
                states.add(chunk, buffers)
            if dlm_head.numel() > 0:
                _head_gradient(chunk, head, upstream, buffers, dlm_head)
            if dbias.numel() > 0:
                _bias_gradient(chunk, upstream, buffers, dbias)
            if dembedding.numel() > 0:
                table_gradient(chunk, buffers.weights, upstream, dembedding)
        if states is not None:
            states.finish(dhidden)
    return dhidden, dlm_head, dbias, dembedding


@dataclass
class _Head:
    """What the logits are made of, and the table."""

    hidden: Tensor  # [N, D]
    lm_head: Tensor  # [V, D]
    bias: Tensor | None  # [V]
    softcap: float | None
    table: Tensor  # [V, E]
    tied: bool

    @property
    def vocab(self) -> int:
        return self.lm_head.shape[0]

    @property
    def width(self) -> int:
        return self.lm_head.shape[1]

    @property
    def size(self) -> str:
        """Of states and head in a table of tiles: products take them as they are."""
        return size_of(self.lm_head.dtype)

    @property
    def size_with_table(self) -> str:
        """Where logits and the table meet in a kernel."""
        is_mixed = self.size == "half" and size_beside_floats(self.table) == "float"
        return "mixed" if is_mixed else self.size

    def arguments(self) -> tuple[Any, ...]:
        """Arguments of a kernel, from the states to the cap."""
        return (
            self.hidden,
            self.hidden.stride(0),
            self.lm_head,
            self.lm_head.stride(0),
            self.width,
            self.bias,
            self.softcap,
        )


def _head_of(
    hidden: Tensor,  # [N, D]
    lm_head: Tensor,  # [V, D]
    embedding: Tensor | None,  # [V, E]
    bias: Tensor | None,  # [V]
    softcap: float | None,
) -> _Head:
    """All tensors agree on N, V and D."""
    check_tensor("hidden", hidden, ("N", "D"), FLOAT_DTYPES)
    width, device = hidden.shape[1], hidden.device
    check_tensor("lm_head", lm_head, ("V", width), (hidden.dtype,), device)
    vocab = lm_head.shape[0]
    if bias is not None:
        check_tensor("bias", bias, (vocab,), (hidden.dtype,), device)
        bias = bias.contiguous()
    hidden, lm_head = dense_rows(hidden), dense_rows(lm_head)
    if embedding is None:
        return _Head(hidden, lm_head, bias, softcap, lm_head, tied=True)
    check_tensor("embedding", embedding, (vocab, "E"), FLOAT_DTYPES, device)
    return _Head(hidden, lm_head, bias, softcap, dense_rows(embedding), tied=False)


@dataclass
class _Buffers:
    """What the products of the backward pass take of a chunk."""

    dlogits: Tensor  # [N, chunk], in the dtype of the states
    weights: Tensor  # [N, chunk] float32


def _logits_gradient(
    chunk: Chunk,
    head: _Head,
    draws: Draws,
    upstream: Upstream,
    buffers: _Buffers,  # written
) -> None:
    rows = len(head.hidden)
    tiles = options(LINEAR_LOGITS_GRADIENT, head.size_with_table, rows, head.hidden.device)
    row_blocks = triton.cdiv(rows, tiles["ROWS"])
    linear_logits_gradient_kernel[(row_blocks * triton.cdiv(chunk.ids, tiles["IDS"]),)](
        *head.arguments(),
        *draws.tau_arguments(),
        *draws.noise_arguments(),
        upstream.statistics,
        head.table,
        head.table.stride(0),
        upstream.high,
        upstream.low,
        upstream.upstream,
        upstream.order,
        upstream.count,
        buffers.dlogits,
        buffers.weights,
        rows,
        chunk.width,
        chunk.first,
        chunk.past,
        head.table.shape[1],
        row_blocks,
        TIED=head.tied,
        SPLIT=is_split(head.table),
        **tiles,
    )


class _StatesGradient:
    """Sums of the gradient of the states, which grow by a chunk at a time."""

    def __init__(self, head: _Head, upstream: Upstream, chunk_ids: int) -> None:
        self.head, self.upstream = head, upstream
        self.rows, device = len(head.hidden), head.hidden.device
        self.options = options(HIDDEN_GRADIENT, head.size, self.rows, device, COLUMNS=head.width)
        self.row_blocks = triton.cdiv(self.rows, self.options["ROWS"])
        self.column_blocks = triton.cdiv(head.width, self.options["COLUMNS"])
        blocks = max(1, self.row_blocks * self.column_blocks)
        self.ids_per_split = ids_per_split(chunk_ids, self.options["IDS"], blocks, device)
        self.splits = triton.cdiv(chunk_ids, self.ids_per_split)
        shape = (self.splits, self.rows, head.width)
        self.sums = torch.empty(shape, dtype=torch.float32, device=device)

    def add(self, chunk: Chunk, buffers: _Buffers) -> None:
        hidden_gradient_kernel[(self.row_blocks * self.column_blocks * self.splits,)](
            buffers.dlogits,
            chunk.width,
            self.head.lm_head,
            self.head.lm_head.stride(0),
            self.upstream.count,
            self.sums,
            self.rows,
            chunk.first,
            chunk.past,
            self.head.width,
            self.row_blocks,
            self.column_blocks,
            self.ids_per_split,
            **self.options,
        )

    def finish(
        self,
        dhidden: Tensor,  # [N, D], written
    ) -> None:
        grid = (self.rows, triton.cdiv(self.head.width, COMBINE["COLUMNS"]))
        combine_hidden_gradients_kernel[grid](
            self.sums,
            self.upstream.order,
            self.upstream.count,
            dhidden,
            self.rows,
            self.head.width,
            self.splits,
            **COMBINE,
        )


def _head_gradient(
    chunk: Chunk,
    head: _Head,
    upstream: Upstream,
    buffers: _Buffers,
    dlm_head: Tensor,  # [V, D], written
) -> None:
    size = size_beside_floats(head.table) if head.tied else head.size
    rows, device = len(head.hidden), head.hidden.device
    tiles = options(HEAD_GRADIENT, size, rows, device, COLUMNS=head.width)
    column_blocks = triton.cdiv(head.width, tiles["COLUMNS"])
    grid = (column_blocks * triton.cdiv(chunk.ids, tiles["IDS"]),)
    states = (head.hidden, head.hidden.stride(0))
    order = (upstream.order, upstream.count)
    ids = (chunk.first, chunk.past, head.width, column_blocks)
    if head.tied:
        tied_gradient_kernel[grid](
            buffers.dlogits,
            buffers.weights,
            chunk.width,
            *states,
            upstream.high,
            upstream.low,
            *order,
            dlm_head,
            *ids,
            SPLIT=is_split(head.table),
            **tiles,
        )
        return
    head_gradient_kernel[grid](
        buffers.dlogits, chunk.width, *states, *order, dlm_head, *ids, **tiles
    )


def _bias_gradient(
    chunk: Chunk,
    upstream: Upstream,
    buffers: _Buffers,
    dbias: Tensor,  # [V], written
) -> None:
    bias_gradient_kernel[(triton.cdiv(chunk.ids, BIAS_GRADIENT["IDS"]),)](
        buffers.dlogits,
        chunk.width,
        upstream.count,
        dbias,
        chunk.first,
        chunk.past,
        **BIAS_GRADIENT,
    )
