"""Reference kernels of the dense Gumbel-softmax mixture: a loop over chunks of rows, plain torch.

Contract: computes in float32 (float64 for float64), the table included; noise and probabilities
exist for one chunk of rows at a time, and the backward pass draws the same noise again from its
counter. Rows whose upstream gradients are all zero are dropped from the backward pass.
Deterministic.
"""

import torch
from torch import Tensor

from lepo_kernels.backends.reference.numerics import (
    accumulation_dtype,
    check_positive,
    check_rows,
    drop_specks,
    flush_tiny,
    probabilities_of,
    rows_per_chunk,
)
from lepo_kernels.backends.reference.philox import dense_philox_words, gumbel_from_words


def gumbel_softmax_embedding(
    logits: Tensor,  # [N, V]
    embedding: Tensor,  # [V, D]
    tau: Tensor,  # [N] or [1]
    temperature: Tensor,  # [N] or [1]
    seed: Tensor,  # []
    row_keys: Tensor,  # [N]
    step: Tensor,  # [N] or [1]
) -> tuple[Tensor, Tensor]:  # [N, D], [N]
    """Mixtures ``z @ embedding`` and log-probabilities ``sum z log pi``."""
    check_positive("tau", tau, zero_included=True)
    check_positive("temperature", temperature)
    acc = accumulation_dtype(embedding.dtype)
    table = embedding.to(acc)
    mixed = torch.empty(len(logits), embedding.shape[1], dtype=acc, device=logits.device)
    log_prob = mixed.new_empty(len(logits), dtype=accumulation_dtype(logits.dtype))
    for rows in torch.arange(len(logits), device=logits.device).split(rows_per_chunk(len(table))):
        z, a = _weights(logits, tau, temperature, seed, row_keys, step, rows)
        mixed[rows] = z.to(acc) @ table
        # Not by log_softmax: where z is 0, a may be -inf.
        log_prob[rows] = (z * a.masked_fill(z == 0, 0)).sum(dim=-1) - a.logsumexp(dim=-1)
    check_rows("logits", log_prob)
    return mixed.to(embedding.dtype), log_prob


def gumbel_softmax_embedding_backward(
    grad_embedding: Tensor,  # [N, D]
    grad_log_prob: Tensor,  # [N]
    logits: Tensor,  # [N, V]
    embedding: Tensor,  # [V, D]
    tau: Tensor,  # [N] or [1]
    temperature: Tensor,  # [N] or [1]
    seed: Tensor,  # []
    row_keys: Tensor,  # [N]
    step: Tensor,  # [N] or [1]
    need_dlogits: bool,
    need_dembedding: bool,
) -> tuple[Tensor, Tensor]:  # [N, V] or [0], [V, D] or [0]
    """da_j = z_j (E_j . de - e . de) / tau + dlogp (z_j - pi_j) and dE_j += z_j de."""
    acc = accumulation_dtype(embedding.dtype)
    table = embedding.to(acc)
    # Not zeros_like: gradients are contiguous, whatever the layout of the inputs.
    dlogits = logits.new_zeros(logits.shape if need_dlogits else (0,))
    shape = embedding.shape if need_dembedding else (0,)
    dembedding = torch.zeros(shape, dtype=acc, device=embedding.device)
    active = ((grad_embedding != 0).any(dim=-1) | (grad_log_prob != 0)).nonzero().squeeze(-1)
    for rows in active.split(rows_per_chunk(len(table))):
        z, a = _weights(logits, tau, temperature, seed, row_keys, step, rows)
        grad = grad_embedding[rows].to(acc)
        if need_dlogits:
            # At tau = 0 the mixture is piecewise constant in the logits.
            flushed = flush_tiny(_column(tau, rows, len(logits), z))
            inv_tau = torch.where(flushed == 0, 0, 1 / flushed)
            pull = (grad @ table.T).to(z.dtype)
            pull -= (z * pull).sum(dim=-1, keepdim=True)
            da = z * pull * inv_tau
            pi, _ = probabilities_of(a, a.logsumexp(dim=-1))
            da += grad_log_prob[rows, None] * (z - pi)
            dlogits[rows] = (da / _column(temperature, rows, len(logits), da)).to(logits.dtype)
        if need_dembedding:
            dembedding.addmm_(z.to(acc).T, grad)
    return dlogits, dembedding.to(embedding.dtype)


def _weights(
    logits: Tensor,  # [N, V]
    tau: Tensor,  # [N] or [1]
    temperature: Tensor,  # [N] or [1]
    seed: Tensor,  # []
    row_keys: Tensor,  # [N]
    step: Tensor,  # [N] or [1]
    rows: Tensor,  # [C]
) -> tuple[Tensor, Tensor]:  # [C, V], [C, V]
    """Weights ``z`` and tempered logits ``a`` of the chosen rows."""
    total, vocab = logits.shape
    dtype = accumulation_dtype(logits.dtype)
    a = logits[rows].to(dtype)
    a = a * _column(temperature, rows, total, a).reciprocal()
    words = dense_philox_words(seed, row_keys[rows], step.expand(total)[rows], vocab)
    q = a + gumbel_from_words(words, dtype)
    tau = flush_tiny(_column(tau, rows, total, a))
    gaps = q - q.amax(dim=-1, keepdim=True)
    soft = drop_specks((gaps / torch.where(tau == 0, 1, tau)).softmax(dim=-1))
    first = torch.zeros_like(soft).scatter_(1, q.argmax(dim=-1, keepdim=True), 1)
    return torch.where(tau == 0, first, soft), a


def _column(per_row: Tensor, rows: Tensor, total: int, like: Tensor) -> Tensor:  # [C, 1]
    return per_row.expand(total)[rows, None].to(like.dtype)
