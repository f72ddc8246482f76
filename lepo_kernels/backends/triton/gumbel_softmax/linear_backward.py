"""Launches of the backward pass of the dense Gumbel-softmax mixture from hidden states."""

from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from lepo_kernels.backends.triton.common.launching import UNFUSED
from lepo_kernels.backends.triton.gumbel_softmax.backward import Upstream
from lepo_kernels.backends.triton.gumbel_softmax.launching import (
    COMBINE,
    Chunk,
    Draws,
    dtype_class_beside_floats,
    ids_per_split,
    is_split,
    options,
)
from lepo_kernels.backends.triton.gumbel_softmax.linear_gradient_kernels import (
    bias_gradient_kernel,
    combine_hidden_gradients_kernel,
    head_gradient_kernel,
    hidden_gradient_kernel,
    linear_logits_gradient_kernel,
    tied_gradient_kernel,
)
from lepo_kernels.backends.triton.gumbel_softmax.linear_head import HeadAndTable

# Tiles, warps and stages of loads; not measured on a GPU yet. IDS are multiples of 4. The first
# have the COLUMNS of LINEAR_SCORES: so logits are summed up in the same order. Mixed is half
# precision where products with the table are of float32: these have no registers for longer pieces.
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


@dataclass
class Buffers:
    """What the products of the backward pass take of a chunk."""

    dlogits: Tensor  # [N, chunk], in the dtype of the states
    weights: Tensor  # [N, chunk] float32


def logits_gradient(
    chunk: Chunk,
    head: HeadAndTable,
    draws: Draws,
    upstream: Upstream,
    buffers: Buffers,  # written
) -> None:
    """Gradient of the logits and weights of a chunk."""
    rows = len(head.hidden)
    tiles = options(LINEAR_LOGITS_GRADIENT, head.dtype_class_with_table, rows, head.hidden.device)
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


class StatesGradient:
    """Sums of the gradient of the states, which grow by a chunk at a time."""

    def __init__(self, head: HeadAndTable, upstream: Upstream, chunk_ids: int) -> None:
        self.head, self.upstream = head, upstream
        self.rows, device = len(head.hidden), head.hidden.device
        self.options = options(
            HIDDEN_GRADIENT, head.dtype_class, self.rows, device, COLUMNS=head.width
        )
        self.row_blocks = triton.cdiv(self.rows, self.options["ROWS"])
        self.column_blocks = triton.cdiv(head.width, self.options["COLUMNS"])
        blocks = max(1, self.row_blocks * self.column_blocks)
        self.ids_per_split = ids_per_split(chunk_ids, self.options["IDS"], blocks, device)
        self.splits = triton.cdiv(chunk_ids, self.ids_per_split)
        shape = (self.splits, self.rows, head.width)
        self.sums = torch.empty(shape, dtype=torch.float32, device=device)

    def add(self, chunk: Chunk, buffers: Buffers) -> None:
        """Add what a chunk gives."""
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
        """Round the sums, and put rows where they were."""
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


def head_gradient(
    chunk: Chunk,
    head: HeadAndTable,
    upstream: Upstream,
    buffers: Buffers,
    dlm_head: Tensor,  # [V, D], written
) -> None:
    """A chunk's rows of the gradient of the head; of a tied one, of both its uses."""
    size = dtype_class_beside_floats(head.table) if head.tied else head.dtype_class
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


def bias_gradient(
    chunk: Chunk,
    upstream: Upstream,
    buffers: Buffers,
    dbias: Tensor,  # [V], written
) -> None:
    """A chunk's entries of the gradient of the bias."""
    bias_gradient_kernel[(triton.cdiv(chunk.ids, BIAS_GRADIENT["IDS"]),)](
        buffers.dlogits,
        chunk.width,
        upstream.count,
        dbias,
        chunk.first,
        chunk.past,
        **BIAS_GRADIENT,
    )
