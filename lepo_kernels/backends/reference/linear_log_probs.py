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
from lepo_kernels.structures import (
    Head,
    HeadGradients,
    Needs,
    Selection,
    Statistics,
    Upstream,
)


def linear_log_probs(
    head: Head, selection: Selection, chunk_size: int, shard: bool
) -> tuple[Tensor, Tensor, Tensor]:  # [N, K], [N], [N]
    """Selected logits, log-sum-exp and entropy of ``cap(hidden @ lm_head^T + bias) / T``."""
    ids, inv_temperature = selection.ids, selection.inv_temperature
    count = len(head.hidden)
    check_ids("ids", ids, len(head.lm_head))
    check_positive("inv_temperature", inv_temperature)
    outputs = _empty_outputs(head.hidden, ids)
    scale = inv_temperature.expand(count)
    for start in range(0, count, chunk_size):
        rows = slice(start, start + chunk_size)
        a = head_logits(head.at(rows)).mul_(scale[rows, None])
        _summarise(a, ids[rows], outputs, rows)
        if shard:
            _, lse, entropy = outputs
            fill_empty_sums(lse[rows], entropy[rows], a.amax(dim=-1) == -torch.inf)
    if not shard:
        check_rows("logits of hidden", outputs[1])
    return outputs


def linear_log_probs_backward(
    upstream: Upstream,
    head: Head,
    selection: Selection,
    statistics: Statistics,
    chunk_size: int,
    needs: Needs,
) -> HeadGradients:
    """Gradients of the hidden states, the head and the bias; those not needed are empty."""
    hidden, lm_head, softcap = head.hidden, head.lm_head, head.softcap
    acc = accumulation_dtype(hidden.dtype)
    # Not zeros_like: gradients are contiguous, whatever the layout of the inputs.
    dhidden = hidden.new_zeros(hidden.shape if needs.need_dhidden else (0,))
    head_shape = lm_head.shape if needs.need_dlm_head else (0,)
    dlm_head = torch.zeros(head_shape, dtype=acc, device=hidden.device)
    dbias = dlm_head.new_zeros(len(lm_head) if needs.need_dbias else 0)
    scale = selection.inv_temperature.expand(len(hidden))
    for rows in active_rows(*upstream).split(chunk_size):
        part = head.at(rows)
        capped = head_logits(part)
        a = capped * scale[rows, None]
        da = _logit_gradient(a, selection.ids[rows], upstream.at(rows), statistics.at(rows))
        da.mul_(scale[rows, None])
        if softcap is not None:
            da.mul_(1 - (capped / softcap).square_())
        if needs.need_dhidden:
            dhidden[rows] = product(da.to(hidden.dtype), lm_head).to(hidden.dtype)
        if needs.need_dlm_head:
            dlm_head.addmm_(da.T, part.hidden.to(acc))
        if needs.need_dbias:
            dbias += da.sum(dim=0)
    return HeadGradients(dhidden, dlm_head.to(lm_head.dtype), dbias.to(lm_head.dtype))


def gather_log_probs(
    logits: Tensor,  # [N, V]
    selection: Selection,
) -> tuple[Tensor, Tensor, Tensor]:  # [N, K], [N], [N]
    """Selected logits, log-sum-exp and entropy of ``logits / T``."""
    ids, inv_temperature = selection.ids, selection.inv_temperature
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
    upstream: Upstream,
    logits: Tensor,  # [N, V]
    selection: Selection,
    statistics: Statistics,
) -> Tensor:  # [N, V]
    """Gradient of the logits, in their dtype."""
    dlogits = torch.zeros(logits.shape, dtype=logits.dtype, device=logits.device)
    scale = selection.inv_temperature.expand(len(logits))
    chunk_size = rows_per_chunk(logits.shape[1])
    for rows in active_rows(*upstream).split(chunk_size):
        a = logits[rows].to(scale.dtype) * scale[rows, None]
        da = _logit_gradient(a, selection.ids[rows], upstream.at(rows), statistics.at(rows))
        dlogits[rows] = da.mul_(scale[rows, None]).to(logits.dtype)
    return dlogits


def head_logits(head: Head) -> Tensor:  # [C, V], float32 or float64
    """``cap(hidden @ lm_head^T + bias)``, cap(x) = softcap tanh(x / softcap)."""
    hidden, lm_head, bias, softcap = head.hidden, head.lm_head, head.bias, head.softcap
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
    upstream: Upstream,  # of C rows
    statistics: Statistics,  # of C rows
) -> Tensor:  # [C, V]
    """da_j = sum_k alpha_k [j = i_k] + gamma pi_j - eta pi_j (log pi_j + H)."""
    alpha, gamma, eta = upstream
    pi, log_pi = probabilities_of(a, statistics.lse)
    coefficient = log_pi.add_(statistics.entropy[:, None]).mul_(-eta[:, None]).add_(gamma[:, None])
    da = pi.mul_(coefficient)
    add_entries(da, ids, alpha.to(da.dtype))
    return da


def _empty_outputs(like: Tensor, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    acc = accumulation_dtype(like.dtype)
    selected = torch.empty(ids.shape, dtype=acc, device=like.device)
    return selected, selected.new_empty(len(ids)), selected.new_empty(len(ids))
