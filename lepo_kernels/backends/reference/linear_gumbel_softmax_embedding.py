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
    has_upstream,
    with_density,
)
from lepo_kernels.backends.reference.linear_log_probs import head_logits, product
from lepo_kernels.dtypes import accumulation_dtype
from lepo_kernels.structures import Head, Mixtures, MixtureUpstream, Needs, Noise


def linear_gumbel_softmax_embedding(
    head: Head,
    embedding: Tensor | None,  # [V, D]; None: the head
    noise: Noise,
    chunk_size: int,
    shard: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # [N, D], [N], [N], [N, D], [N, 8]
    """`gumbel_softmax_embedding` of the logits ``cap(hidden @ lm_head^T + bias)``."""
    table = head.lm_head if embedding is None else embedding
    parts = []
    # Once, too, where there are no rows.
    for start in range(0, max(1, len(head.hidden)), chunk_size):
        rows = slice(start, start + chunk_size)
        logits = head_logits(head.at(rows))
        parts.append(gumbel_softmax_embedding(logits, table, noise.at(rows), True))
    mixed, log_prob, log_density, deviation, statistics = map(torch.cat, zip(*parts, strict=True))
    if not shard:
        check_rows("logits of hidden", log_prob)
    return mixed, log_prob, log_density, deviation, statistics


def linear_gumbel_softmax_embedding_backward(
    upstream: MixtureUpstream,
    head: Head,
    embedding: Tensor | None,  # [V, D]; None: the head
    noise: Noise,
    chunk_size: int,
    mixtures: Mixtures,
    needs: Needs,
    need_dembedding: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # [N, Dh], [V, Dh], [V], [V, D], or [0]
    """Gradients of hidden states, head, bias and table; those not needed are empty."""
    hidden, lm_head, softcap = head.hidden, head.lm_head, head.softcap
    acc = accumulation_dtype(hidden.dtype)
    adds_table = needs.need_dlm_head and embedding is None
    need_dlogits = any(needs)
    table = lm_head if embedding is None else embedding
    wide_table = table.to(accumulation_dtype(table.dtype))
    dhidden = hidden.new_zeros(hidden.shape if needs.need_dhidden else (0,))
    head_shape = lm_head.shape if needs.need_dlm_head else (0,)
    dlm_head = torch.zeros(head_shape, dtype=acc, device=hidden.device)
    dbias = dlm_head.new_zeros(len(lm_head) if needs.need_dbias else 0)
    dembedding = wide_table.new_zeros(table.shape if need_dembedding else (0,))
    upstream = with_density(upstream, mixtures.statistics, noise.tau, acc)
    for rows in has_upstream(upstream).nonzero().squeeze(-1).split(chunk_size):
        part = head.at(rows)
        capped = head_logits(part)
        dlogits, dtable = gumbel_softmax_embedding_backward(
            upstream.at(rows), capped, wide_table, noise.at(rows), mixtures.at(rows),
            need_dlogits, need_dembedding or adds_table,
        )  # fmt: skip
        if softcap is not None and need_dlogits:
            dlogits.mul_(1 - (capped / softcap).square_())
        if needs.need_dhidden:
            dhidden[rows] = product(dlogits.to(hidden.dtype), lm_head).to(hidden.dtype)
        if needs.need_dlm_head:
            dlm_head.addmm_(dlogits.T, part.hidden.to(acc))
        if adds_table:
            dlm_head += dtable
        if needs.need_dbias:
            dbias += dlogits.sum(dim=0)
        if need_dembedding:
            dembedding += dtable
    return (
        dhidden,
        dlm_head.to(lm_head.dtype),
        dbias.to(lm_head.dtype),
        dembedding.to(table.dtype),
    )
