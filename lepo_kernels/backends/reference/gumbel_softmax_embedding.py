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
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # [N, D], [N], [N, D], [N, 5]
    """Mixtures ``z @ embedding``, log-probabilities ``sum z log pi``, and what backward takes over.

    The latter are the deviations ``e - E_peak`` and the statistics of the rows, see the op.
    """
    check_positive("tau", tau, zero_included=True)
    check_positive("temperature", temperature)
    acc = accumulation_dtype(embedding.dtype)
    table = embedding.to(acc)
    mixed = torch.empty(len(logits), embedding.shape[1], dtype=acc, device=logits.device)
    log_prob = mixed.new_empty(len(logits), dtype=accumulation_dtype(logits.dtype))
    statistics = mixed.new_empty(len(logits), 5, dtype=torch.float64)
    for rows in torch.arange(len(logits), device=logits.device).split(rows_per_chunk(len(table))):
        a, q, tau_of_rows = _perturbed(logits, tau, temperature, seed, row_keys, step, rows)
        statistics[rows], mass = _statistics(a, q, tau_of_rows)
        z = _weights(q, tau_of_rows, statistics[rows])
        mixed[rows] = z.to(acc) @ table
        # Not by log_softmax: where z is 0, a may be -inf.
        below = (a - a.amax(dim=-1, keepdim=True)).masked_fill_(z == 0, 0)
        log_prob[rows] = (z * below).sum(dim=-1) - mass.log()
    check_rows("logits", log_prob)
    return mixed, log_prob, mixed - table[statistics[:, 4].long()], statistics


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
    deviation: Tensor,  # [N, D]
    statistics: Tensor,  # [N, 5]
    need_dlogits: bool,
    need_dembedding: bool,
) -> tuple[Tensor, Tensor]:  # [N, V] or [0], [V, D] or [0]
    """da_j = z_j (E_j . de - e . de) / tau + dlogp (z_j - pi_j) and dE_j += z_j de.

    The deviation is not needed: with whole rows, ``e . de`` is the sum of ``z_j E_j . de``.
    """
    acc = accumulation_dtype(embedding.dtype)
    table = embedding.to(acc)
    # Not zeros_like: gradients are contiguous, whatever the layout of the inputs.
    dlogits = logits.new_zeros(logits.shape if need_dlogits else (0,))
    shape = embedding.shape if need_dembedding else (0,)
    dembedding = torch.zeros(shape, dtype=acc, device=embedding.device)
    active = ((grad_embedding != 0).any(dim=-1) | (grad_log_prob != 0)).nonzero().squeeze(-1)
    for rows in active.split(rows_per_chunk(len(table))):
        a, q, tau_of_rows = _perturbed(logits, tau, temperature, seed, row_keys, step, rows)
        z = _weights(q, tau_of_rows, statistics[rows])
        grad = grad_embedding[rows].to(acc)
        if need_dlogits:
            # At tau = 0 the mixture is piecewise constant in the logits.
            inv_tau = torch.where(tau_of_rows == 0, 0, 1 / tau_of_rows)
            pull = (grad @ table.T).to(z.dtype)
            pull -= (z * pull).sum(dim=-1, keepdim=True)
            da = z * pull * inv_tau
            _, _, a_max, pi_scale, _ = statistics[rows, :, None].to(a.dtype).unbind(dim=1)
            pi = drop_specks((a - a_max).exp() * pi_scale)
            da += grad_log_prob[rows, None] * (z - pi)
            dlogits[rows] = (da / _column(temperature, rows, len(logits), da)).to(logits.dtype)
        if need_dembedding:
            dembedding.addmm_(z.to(acc).T, grad)
    return dlogits, dembedding.to(embedding.dtype)


def _perturbed(
    logits: Tensor,  # [N, V]
    tau: Tensor,  # [N] or [1]
    temperature: Tensor,  # [N] or [1]
    seed: Tensor,  # []
    row_keys: Tensor,  # [N]
    step: Tensor,  # [N] or [1]
    rows: Tensor,  # [C]
) -> tuple[Tensor, Tensor, Tensor]:  # [C, V], [C, V], [C, 1]
    """Tempered logits ``a``, their noisy twins ``q`` and the ``tau`` of the chosen rows."""
    total, vocab = logits.shape
    dtype = accumulation_dtype(logits.dtype)
    a = logits[rows].to(dtype)
    a = a * _column(temperature, rows, total, a).reciprocal()
    words = dense_philox_words(seed, row_keys[rows], step.expand(total)[rows], vocab)
    return a, a + gumbel_from_words(words, dtype), flush_tiny(_column(tau, rows, total, a))


def _statistics(
    a: Tensor,  # [C, V]
    q: Tensor,  # [C, V]
    tau: Tensor,  # [C, 1]
) -> tuple[Tensor, Tensor]:  # [C, 5], [C]
    """The statistics of rows, and their sums of ``exp(a - largest a)``."""
    q_max, a_max = q.amax(dim=-1), a.amax(dim=-1)
    weight = _soft(q, q_max[:, None], tau).sum(dim=-1).masked_fill(tau[:, 0] == 0, 1)
    mass = (a - a_max[:, None]).exp().sum(dim=-1)
    columns = (q_max, 1 / weight, a_max, 1 / mass, q.argmax(dim=-1))
    return torch.stack([column.double() for column in columns], dim=-1), mass


def _weights(
    q: Tensor,  # [C, V]
    tau: Tensor,  # [C, 1]
    statistics: Tensor,  # [C, 5]
) -> Tensor:  # [C, V]
    q_max, scale, _, _, _ = statistics[..., None].to(q.dtype).unbind(dim=1)
    soft = drop_specks(_soft(q, q_max, tau) * scale)
    first = torch.zeros_like(soft).scatter_(1, statistics[:, 4:].long(), 1)
    return torch.where(tau == 0, first, soft)


def _soft(q: Tensor, q_max: Tensor, tau: Tensor) -> Tensor:  # [C, V]
    """Weights relative to the largest."""
    return ((q - q_max) / torch.where(tau == 0, 1, tau)).exp_()


def _column(per_row: Tensor, rows: Tensor, total: int, like: Tensor) -> Tensor:  # [C, 1]
    return per_row.expand(total)[rows, None].to(like.dtype)
