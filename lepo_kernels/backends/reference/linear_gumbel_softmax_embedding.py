"""Reference kernels of the Gumbel-softmax mixture from hidden states: a loop over chunks of rows.

Contract: holds the logits of one chunk of rows at a time, recomputed in the backward pass, as the
reference of linear_log_probs forms them; what comes after is the reference of
gumbel_softmax_embedding. Gradients of head, bias and table are summed in float32. Rows whose
upstream gradients are all zero are dropped from the backward pass. Deterministic.
"""

import torch
from torch import Tensor

from lepo_kernels.backends.checks import check_rows
from lepo_kernels.backends.reference.gumbel_softmax_embedding import (
    gumbel_softmax_embedding,
    gumbel_softmax_embedding_backward,
    has_density,
    has_upstream,
)
from lepo_kernels.backends.reference.linear_log_probs import head_logits, product
from lepo_kernels.backends.rows import per_row
from lepo_kernels.dtypes import accumulation_dtype


def linear_gumbel_softmax_embedding(
    hidden: Tensor,  # [N, Dh]
    lm_head: Tensor,  # [V, Dh]
    embedding: Tensor | None,  # [V, D]; None: lm_head
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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # [N, D], [N], [N], [N, D], [N, 8]
    """`gumbel_softmax_embedding` of the logits ``cap(hidden @ lm_head^T + bias)``."""
    table = lm_head if embedding is None else embedding
    parts = []
    # Once, too, where there are no rows.
    for start in range(0, max(1, len(hidden)), chunk_size):
        rows = slice(start, start + chunk_size)
        logits = head_logits(hidden[rows], lm_head, bias, softcap)
        noise_key = (seed, row_keys[rows], per_row(step, rows))
        parts.append(
            gumbel_softmax_embedding(
                logits, table, per_row(tau, rows), per_row(temperature, rows), *noise_key,
                first_id, True,
            )
        )  # fmt: skip
    mixed, log_prob, log_density, deviation, statistics = map(torch.cat, zip(*parts, strict=True))
    if not shard:
        check_rows("logits of hidden", log_prob)
    return mixed, log_prob, log_density, deviation, statistics


def linear_gumbel_softmax_embedding_backward(
    grad_embedding: Tensor,  # [N, D]
    grad_log_prob: Tensor,  # [N]
    grad_log_density: Tensor,  # [N]
    hidden: Tensor,  # [N, Dh]
    lm_head: Tensor,  # [V, Dh]
    embedding: Tensor | None,  # [V, D]; None: lm_head
    bias: Tensor | None,  # [V]
    softcap: float | None,
    tau: Tensor,  # [N] or [1]
    temperature: Tensor,  # [N] or [1]
    seed: Tensor,  # []
    row_keys: Tensor,  # [N]
    step: Tensor,  # [N] or [1]
    first_id: int,
    chunk_size: int,
    mixed: Tensor,  # [N, D]
    deviation: Tensor,  # [N, D]
    statistics: Tensor,  # [N, 8]
    need_dhidden: bool,
    need_dlm_head: bool,
    need_dbias: bool,
    need_dembedding: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # [N, Dh], [V, Dh], [V], [V, D], or [0]
    """Gradients of hidden states, head, bias and table; those not needed are empty."""
    acc = accumulation_dtype(hidden.dtype)
    adds_table = need_dlm_head and embedding is None
    need_dlogits = need_dhidden or need_dlm_head or need_dbias
    table = lm_head if embedding is None else embedding
    wide_table = table.to(accumulation_dtype(table.dtype))
    dhidden = hidden.new_zeros(hidden.shape if need_dhidden else (0,))
    dlm_head = torch.zeros(
        lm_head.shape if need_dlm_head else (0,), dtype=acc, device=hidden.device
    )
    dbias = dlm_head.new_zeros(len(lm_head) if need_dbias else 0)
    dembedding = wide_table.new_zeros(table.shape if need_dembedding else (0,))
    grad_log_density = grad_log_density.where(has_density(statistics, tau, acc), 0)
    active = has_upstream(grad_embedding, grad_log_prob, grad_log_density).nonzero().squeeze(-1)
    for rows in active.split(chunk_size):
        inputs = hidden[rows]
        capped = head_logits(inputs, lm_head, bias, softcap)
        dlogits, dtable = gumbel_softmax_embedding_backward(
            grad_embedding[rows], grad_log_prob[rows], grad_log_density[rows], capped, wide_table,
            per_row(tau, rows), per_row(temperature, rows), seed, row_keys[rows],
            per_row(step, rows), first_id, mixed[rows], deviation[rows], statistics[rows],
            need_dlogits, need_dembedding or adds_table,
        )  # fmt: skip
        if softcap is not None and need_dlogits:
            dlogits.mul_(1 - (capped / softcap).square_())
        if need_dhidden:
            dhidden[rows] = product(dlogits.to(hidden.dtype), lm_head).to(hidden.dtype)
        if need_dlm_head:
            dlm_head.addmm_(dlogits.T, inputs.to(acc))
        if adds_table:
            dlm_head += dtable
        if need_dbias:
            dbias += dlogits.sum(dim=0)
        if need_dembedding:
            dembedding += dtable
    return (
        dhidden,
        dlm_head.to(lm_head.dtype),
        dbias.to(lm_head.dtype),
        dembedding.to(table.dtype),
    )
