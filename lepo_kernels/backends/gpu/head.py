"""The loss head on a GPU: torch's matrix products, and a backend's row kernels between them.

Contract: the logits are float32 products, whatever the dtype of the inputs; the row kernels
read them once. Work goes part of the vocabulary by part, each for up to 8192 rows at a time, and
never holds more logits than ``chunk_size`` rows have. So the head is read once for as many rows,
and its gradient, summed in float32, is rounded once (cuBLAS may round sums of a split product if
torch lets it: allow_bf16_reduced_precision_reduction): no float32 copy of the whole of it exists.
What every part is added to is the gradient of the hidden states, in float32.

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
    Upstream,
    blocks_of,
    head_parts,
    may_wait,
    take_rows,
)
from lepo_kernels.backends.gpu.head_gradients import HeadGradients
from lepo_kernels.backends.gpu.products import wide_product
from lepo_kernels.backends.gpu.row_kernels import RowKernels, States
from lepo_kernels.backends.rows import has_coefficients


def linear_log_probs(
    kernels: RowKernels,
    hidden: Tensor,  # [N, D]
    lm_head: Tensor,  # [V, D]
    ids: Tensor,  # [N, K]
    bias: Tensor | None,  # [V]
    softcap: float | None,
    inv_temperature: Tensor,  # [N] or [1]
    chunk_size: int,
    shard: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # [N, K], [N], [N]
    """Selected logits, log-sum-exp and entropy of ``cap(hidden @ lm_head^T + bias) / T``."""
    check_ids("ids", ids, lm_head.shape[0])
    check_positive("inv_temperature", inv_temperature)
    rows = Rows(hidden, ids.long().contiguous(), inv_temperature.contiguous())
    outputs = statistics(kernels, rows, lm_head, bias, softcap, chunk_size, shard)
    if not shard:
        check_rows("logits of hidden", outputs[1])
    return outputs


def statistics(
    kernels: RowKernels,
    rows: Rows,
    lm_head: Tensor,  # [V, D]
    bias: Tensor | None,  # [V]
    softcap: float | None,
    chunk_size: int,
    shard: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:  # [M, K], [M], [M]
    """`linear_log_probs` without its checks."""
    blocks = blocks_of(len(rows.hidden), len(lm_head), chunk_size)
    parts = list(head_parts(blocks.columns, lm_head, bias, softcap))
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
        logits = wide_product(rows.hidden, part.weight.T)
        states.add(logits, part.columns.start, rows, part.bias, part.softcap)
        # Before the next ones are allocated.
        del logits
    return states.outputs(shard)


def linear_log_probs_backward(
    kernels: RowKernels,
    grad_logits: Tensor,  # [N, K]
    grad_lse: Tensor,  # [N]
    grad_entropy: Tensor,  # [N]
    hidden: Tensor,  # [N, D]
    lm_head: Tensor,  # [V, D]
    ids: Tensor,  # [N, K]
    bias: Tensor | None,  # [V]
    softcap: float | None,
    inv_temperature: Tensor,  # [N] or [1]
    lse: Tensor,  # [N]
    entropy: Tensor,  # [N]
    chunk_size: int,
    need_dhidden: bool,
    need_dlm_head: bool,
    need_dbias: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # [N, D] or [0], [V, D] or [0], [V] or [0]
    """Gradients of the hidden states, the head and the bias; those not needed are empty."""
    active = has_coefficients(grad_logits, grad_lse, grad_entropy)
    taken = active.nonzero().squeeze(-1) if may_wait(hidden) else None
    if taken is None:
        # What a row that is left out holds may be NaN: 0 times it would spread.
        hidden = hidden.masked_fill(~active[:, None], 0)
    rows = Rows(
        take_rows(hidden, taken),
        take_rows(ids, taken).long().contiguous(),
        inv_temperature.contiguous()
        if len(inv_temperature) == 1
        else take_rows(inv_temperature, taken).contiguous(),
    )
    saved = (grad_logits, grad_lse, grad_entropy, lse, entropy)
    upstream = Upstream(*(take_rows(x, taken).contiguous() for x in saved))
    gradients = HeadGradients(rows.hidden, lm_head, need_dhidden, need_dlm_head, need_dbias)
    blocks = blocks_of(len(rows.hidden), len(lm_head), chunk_size)
    for part in head_parts(blocks.columns, lm_head, bias, softcap):
        for block in blocks.rows:
            mine = rows.block(block)
            gradients.add(
                block,
                mine.hidden,
                part,
                _logit_gradient(kernels, mine, part, upstream.block(block)),
            )
    return gradients.outputs(len(hidden), taken)


def _logit_gradient(
    kernels: RowKernels,
    rows: Rows,  # R of them
    part: HeadPart,
    upstream: Upstream,
) -> Tensor:  # [R, C], in the dtype of the hidden states
    logits = wide_product(rows.hidden, part.weight.T)
    da = logits
    if rows.hidden.dtype != torch.float32:
        da = torch.empty_like(logits, dtype=rows.hidden.dtype)
    kernels.gradient(
        logits,
        part.bias,
        part.softcap,
        rows.inv_temperature,
        rows.ids,
        part.columns.start,
        *upstream,
        da,
    )
    return da
