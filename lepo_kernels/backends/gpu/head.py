"""The loss head on a GPU: torch's matrix products, and a backend's row kernels between them.

Contract: the logits are float32 products, whatever the dtype of the inputs; the row kernels
read them once. Work goes part of the vocabulary by part, each for up to 8192 rows at a time, and
never holds more logits than ``chunk_size`` rows have. Rows of logits, and of their gradients, begin
at multiples of 64 entries, with a gap behind each where the vocabulary asks for it: loads and
products are aligned. The head is read once for as many rows, and its gradient, summed in float32,
is rounded once (cuBLAS may round sums of a split product if torch lets it:
allow_bf16_reduced_precision_reduction): no float32 copy of the whole of it exists. What every part
is added to is the gradient of the hidden states, in float32.

The gradient of the logits is formed in float32 and rounded once, to the dtype of the inputs, in
which the two products of the backward pass are made; float32 gradients overwrite the logits. Beside
inputs and results, memory holds one chunk of logits (half as much again for gradients in bfloat16
or float16), 12 bytes for each 512 entries of up to 8192 rows in the forward pass, and a float32
[N, D] in the backward pass.

Rows whose upstream gradients are all zero are dropped from the backward pass. Their number must be
known on the host: the backward pass waits once for the GPU. While a CUDA graph is captured, where
it may not wait, they take part as zeros instead, and gradients agree up to the rounding of sums. A
row's statistics depend on its logits alone. Deterministic.
"""

import torch
from torch import Tensor

from lepo_kernels.backends.checks import check_ids, check_positive, check_rows
from lepo_kernels.backends.gpu.blocks import (
    HeadPart,
    Rows,
    aligned_matrix,
    blocks_of,
    head_parts,
    may_wait,
    rows_of,
    take_rows,
)
from lepo_kernels.backends.gpu.head_gradients import GradientSums
from lepo_kernels.backends.gpu.products import wide_product
from lepo_kernels.backends.gpu.row_kernels import RowKernels, States
from lepo_kernels.backends.rows import has_coefficients
from lepo_kernels.structures import Head, HeadGradients, Needs, Selection, Statistics, Upstream


def linear_log_probs(
    kernels: RowKernels,
    head: Head,
    selection: Selection,
    chunk_size: int,
    shard: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # [N, K], [N], [N]
    """Selected logits, log-sum-exp and entropy of ``cap(hidden @ lm_head^T + bias) / T``."""
    check_ids("ids", selection.ids, head.lm_head.shape[0])
    check_positive("inv_temperature", selection.inv_temperature)
    rows = rows_of(head.hidden, selection, None)
    outputs = statistics_of(kernels, rows, head, chunk_size, shard)
    if not shard:
        check_rows("logits of hidden", outputs[1])
    return outputs


def statistics_of(
    kernels: RowKernels,
    rows: Rows,
    head: Head,  # its hidden states are not read
    chunk_size: int,
    shard: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:  # [M, K], [M], [M]
    """`linear_log_probs` without its checks."""
    blocks = blocks_of(len(rows.hidden), len(head.lm_head), chunk_size)
    parts = list(head_parts(blocks.columns, head))
    pieces = [
        _statistics(kernels, rows.block(block), parts, shard)
        for block in blocks.rows or [slice(0, 0)]
    ]
    return (
        torch.cat([piece[0] for piece in pieces]),
        torch.cat([piece[1] for piece in pieces]),
        torch.cat([piece[2] for piece in pieces]),
    )


def _statistics(
    kernels: RowKernels,
    rows: Rows,  # R of them
    parts: list[HeadPart],
    shard: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # [R, K], [R], [R]
    """Selected logits, log-sum-exp and entropy."""
    states = States(kernels, rows.ids, parts[-1].columns.stop)
    for part in parts:
        logits = _logits(rows, part)
        states.add(logits, part.columns.start, rows, part.bias, part.softcap)
        # Before the next ones are allocated.
        del logits
    return states.outputs(shard)


def _logits(
    rows: Rows,  # R of them
    part: HeadPart,
) -> Tensor:  # [R, C] float32
    out = aligned_matrix(len(rows.hidden), len(part.weight), torch.float32, rows.hidden.device)
    return wide_product(rows.hidden, part.weight.T, out=out)


def linear_log_probs_backward(
    kernels: RowKernels,
    upstream: Upstream,
    head: Head,
    selection: Selection,
    statistics: Statistics,
    chunk_size: int,
    needs: Needs,
) -> HeadGradients:
    """Gradients of the hidden states, the head and the bias; those not needed are empty."""
    hidden = head.hidden
    active = has_coefficients(*upstream)
    taken = active.nonzero().squeeze(-1) if may_wait(hidden) else None
    if taken is None:
        # What a row that is left out holds may be NaN: 0 times it would spread.
        hidden = hidden.masked_fill(~active[:, None], 0)
    rows = rows_of(hidden, selection, taken)
    upstream = Upstream(*(take_rows(x, taken).contiguous() for x in upstream))
    statistics = Statistics(*(take_rows(x, taken).contiguous() for x in statistics))
    gradients = GradientSums(rows.hidden, head.lm_head, needs)
    blocks = blocks_of(len(rows.hidden), len(head.lm_head), chunk_size)
    for part in head_parts(blocks.columns, head):
        for block in blocks.rows:
            mine = rows.block(block)
            da = _logit_gradient(kernels, mine, part, upstream.at(block), statistics.at(block))
            gradients.add(block, mine.hidden, part, da)
            # Before the next ones are allocated.
            del da
    return gradients.outputs(len(hidden), taken)


def _logit_gradient(
    kernels: RowKernels,
    rows: Rows,  # R of them
    part: HeadPart,
    upstream: Upstream,
    statistics: Statistics,
) -> Tensor:  # [R, C], in the dtype of the hidden states
    logits = _logits(rows, part)
    da = logits
    if rows.hidden.dtype != torch.float32:
        da = aligned_matrix(len(logits), logits.shape[1], rows.hidden.dtype, logits.device)
    kernels.gradient(
        logits,
        part.bias,
        part.softcap,
        rows.inv_temperature,
        rows.ids,
        part.columns.start,
        *upstream,
        *statistics,
        da,
    )
    return da
