"""Reference kernels of selected log-probabilities: a loop over chunks of rows, plain torch.

Contract: holds the logits of one chunk of rows at a time, recomputed in the backward pass; the
matrix product of the logits is in the input dtype (accumulated and kept in float32 where the
device offers that), everything after it in float32 (float64 for float64); the gradient of the
logits is formed before any rounding, and that of the head is summed in float32. Rows whose
upstream gradients are all zero are dropped from the backward pass. Deterministic.
"""

import torch
from torch import Tensor

from lepo_kernels.backends.checks import check_ids, check_positive, check_rows
from lepo_kernels.backends.reference.numerics import (
    add_entries,
    probabilities_of,
    row_statistics,
    rows_per_chunk,
)
from lepo_kernels.backends.rows import active_rows, fill_empty_sums
from lepo_kernels.dtypes import accumulation_dtype


def linear_log_probs(
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
    outputs = _empty_outputs(hidden, ids)
    scale = inv_temperature.expand(len(hidden))
    for start in range(0, len(hidden), chunk_size):
        rows = slice(start, start + chunk_size)
        a = head_logits(hidden[rows], lm_head, bias, softcap).mul_(scale[rows, None])
        _summarise(a, ids[rows], outputs, rows)
        if shard:
            _, lse, entropy = outputs
            fill_empty_sums(lse[rows], entropy[rows], a.amax(dim=-1) == -torch.inf)
    if not shard:
        check_rows("logits of hidden", outputs[1])
    return outputs


def linear_log_probs_backward(
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
    acc = accumulation_dtype(hidden.dtype)
    # Not zeros_like: gradients are contiguous, whatever the layout of the inputs.
    dhidden = hidden.new_zeros(hidden.shape if need_dhidden else (0,))
    head_shape = lm_head.shape if need_dlm_head else (0,)
    dlm_head = torch.zeros(head_shape, dtype=acc, device=hidden.device)
    dbias = torch.zeros(len(lm_head) if need_dbias else 0, dtype=acc, device=hidden.device)
    scale = inv_temperature.expand(len(hidden))
    for rows in active_rows(grad_logits, grad_lse, grad_entropy).split(chunk_size):
        inputs = hidden[rows]
        capped = head_logits(inputs, lm_head, bias, softcap)
        a = capped * scale[rows, None]
        da = _logit_gradient(
            a, ids[rows], grad_logits[rows], grad_lse[rows], grad_entropy[rows], lse[rows],
            entropy[rows],
        )  # fmt: skip
        da.mul_(scale[rows, None])
        if softcap is not None:
            da.mul_(1 - (capped / softcap).square_())
        if need_dhidden:
            dhidden[rows] = product(da.to(hidden.dtype), lm_head).to(hidden.dtype)
        if need_dlm_head:
            dlm_head.addmm_(da.T, inputs.to(acc))
        if need_dbias:
            dbias += da.sum(dim=0)
    return (
        dhidden,
        dlm_head.to(lm_head.dtype),
        dbias.to(hidden.dtype if bias is None else bias.dtype),
    )


def gather_log_probs(
    logits: Tensor,  # [N, V]
    ids: Tensor,  # [N, K]
    inv_temperature: Tensor,  # [N] or [1]
) -> tuple[Tensor, Tensor, Tensor]:  # [N, K], [N], [N]
    """Selected logits, log-sum-exp and entropy of ``logits / T``."""
    check_ids("ids", ids, logits.shape[1])
    check_positive("inv_temperature", inv_temperature)
    outputs = _empty_outputs(logits, ids)
    scale = inv_temperature.expand(len(logits))
    chunk_size = rows_per_chunk(logits.shape[1])
    for start in range(0, len(logits), chunk_size):
        rows = slice(start, start + chunk_size)
        a = logits[rows].to(scale.dtype) * scale[rows, None]
        _summarise(a, ids[rows], outputs, rows)
    check_rows("logits", outputs[1])
    return outputs


def gather_log_probs_backward(
    grad_logits: Tensor,  # [N, K]
    grad_lse: Tensor,  # [N]
    grad_entropy: Tensor,  # [N]
    logits: Tensor,  # [N, V]
    ids: Tensor,  # [N, K]
    inv_temperature: Tensor,  # [N] or [1]
    lse: Tensor,  # [N]
    entropy: Tensor,  # [N]
) -> Tensor:  # [N, V]
    """Gradient of the logits, in their dtype."""
    dlogits = torch.zeros(logits.shape, dtype=logits.dtype, device=logits.device)
    scale = inv_temperature.expand(len(logits))
    chunk_size = rows_per_chunk(logits.shape[1])
    for rows in active_rows(grad_logits, grad_lse, grad_entropy).split(chunk_size):
        a = logits[rows].to(scale.dtype) * scale[rows, None]
        da = _logit_gradient(
            a, ids[rows], grad_logits[rows], grad_lse[rows], grad_entropy[rows], lse[rows],
            entropy[rows],
        )  # fmt: skip
        dlogits[rows] = da.mul_(scale[rows, None]).to(logits.dtype)
    return dlogits


def head_logits(
    hidden: Tensor,  # [C, D]
    lm_head: Tensor,  # [V, D]
    bias: Tensor | None,  # [V]
    softcap: float | None,
) -> Tensor:  # [C, V], float32 or float64
    """``cap(hidden @ lm_head^T + bias)``, cap(x) = softcap tanh(x / softcap)."""
    raw = product(hidden, lm_head.T)
    if bias is not None:
        raw = raw + bias
    return raw if softcap is None else raw.div_(softcap).tanh_().mul_(softcap)


def product(left: Tensor, right: Tensor) -> Tensor:
    """A matrix product whose result is float32 (float64 for float64)."""
    acc = accumulation_dtype(left.dtype)
    if left.device.type == "cuda" and left.dtype != acc:
        return torch.mm(left, right, out_dtype=acc)
    return torch.mm(left, right).to(acc)


def _summarise(
    a: Tensor,  # [C, V]
    ids: Tensor,  # [C, K]
    outputs: tuple[Tensor, Tensor, Tensor],  # [N, K], [N], [N], written in place
    rows: slice,
) -> None:
    """Write the outputs of a chunk of rows."""
    values = (a.gather(1, ids.long()), *row_statistics(a))
    for output, value in zip(outputs, values, strict=True):
        output[rows] = value


def _logit_gradient(
    a: Tensor,  # [C, V]
    ids: Tensor,  # [C, K]
    grad_logits: Tensor,  # [C, K]
    grad_lse: Tensor,  # [C]
    grad_entropy: Tensor,  # [C]
    lse: Tensor,  # [C]
    entropy: Tensor,  # [C]
) -> Tensor:  # [C, V]
    """da_j = sum_k alpha_k [j = i_k] + gamma pi_j - eta pi_j (log pi_j + H)."""
    pi, log_pi = probabilities_of(a, lse)
    coefficient = log_pi.add_(entropy[:, None]).mul_(-grad_entropy[:, None]).add_(grad_lse[:, None])
    da = pi.mul_(coefficient)
    add_entries(da, ids, grad_logits.to(da.dtype))
    return da


def _empty_outputs(like: Tensor, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    acc = accumulation_dtype(like.dtype)
    selected = torch.empty(ids.shape, dtype=acc, device=like.device)
    return selected, selected.new_empty(len(ids)), selected.new_empty(len(ids))
