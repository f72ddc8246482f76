"""CPU kernels of the Gumbel-softmax mixture from hidden states: torch's products, csrc/cpu between.

Contract: float32, bfloat16 and float16; products and all after them in float32 (a head or a table
of half precision is widened a part at a time). Forward holds the logits of ``chunk_size`` rows, and
makes of them what gumbel_softmax_embedding does: each chunk reads head and table. Backward goes
over the vocabulary in parts, and over blocks of rows within: logits, pulls, weights and gradients
of one block's part lie in three buffers, and those of head, bias and table are summed in float32
and rounded once. Rows whose upstream gradients are all zero are dropped from the backward pass.
Deterministic.
"""

import torch
from torch import Tensor

from lepo_kernels.backends.checks import check_rows
from lepo_kernels.backends.cpu.gumbel_softmax_embedding import (
    active_upstream,
    gumbel_softmax_embedding,
)
from lepo_kernels.backends.cpu.linear_log_probs import (
    Buffer,
    HeadGradient,
    HeadPart,
    RowBlocks,
    head_parts,
)
from lepo_kernels.backends.cpu.memory import fresh
from lepo_kernels.structures import Head, Mixtures, MixtureUpstream, Needs, Noise


def linear_gumbel_softmax_embedding(
    head: Head,
    embedding: Tensor | None,  # [V, D]; None: the head
    noise: Noise,
    chunk_size: int,
    shard: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # [N, D], [N], [N], [N, D], [N, 8]
    """`gumbel_softmax_embedding` of the logits ``cap(hidden @ lm_head^T + bias)``."""
    lm_head, hidden = head.lm_head, head.hidden.float()
    table = lm_head if embedding is None else embedding
    buffer = fresh((min(len(hidden), chunk_size), len(lm_head)), torch.float32)
    parts = []
    # Once, too, where there are no rows.
    for start in range(0, max(1, len(hidden)), chunk_size):
        rows = slice(start, start + chunk_size)
        inputs = hidden[rows]
        logits = buffer[: len(inputs)]
        for part in head_parts(lm_head, head.bias):
            torch.mm(inputs, part.weight.T, out=logits[:, part.columns])
            _finish(logits[:, part.columns], part, head.softcap)
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
    hidden, lm_head, bias, softcap = head.hidden, head.lm_head, head.bias, head.softcap
    need_dhidden, need_dlm_head, need_dbias = needs
    table = lm_head if embedding is None else embedding
    dhidden = hidden.new_zeros(hidden.shape if need_dhidden else (0,))
    dlm_head = fresh(lm_head.shape if need_dlm_head else (0,), lm_head.dtype)
    dbias = torch.zeros(len(lm_head) if need_dbias else 0, dtype=torch.float32)
    dembedding = fresh(table.shape if need_dembedding else (0,), table.dtype)
    active = active_upstream(upstream, noise.tau, mixtures)
    grad, has_pull = active.grad_embedding, active.has_pull
    if not has_pull:
        dembedding.zero_()
    if len(active.rows) == 0 or not (any(needs) or has_pull):
        return dhidden, dlm_head.zero_(), dbias.to(lm_head.dtype), dembedding
    # Of the same rows, what each of the native kernel's calls takes a block of.
    noise = noise.at(active.rows).contiguous()
    known, inputs = mixtures.statistics[active.rows], hidden[active.rows].float()
    dinputs = torch.zeros(inputs.shape if need_dhidden else (0,), dtype=torch.float32)
    need_da = any(needs)
    work = RowBlocks(len(active.rows), len(lm_head), chunk_size)
    pulls, slopes = Buffer(work.entries), Buffer(work.entries if need_da else 0)
    head_gradient, table_gradient = HeadGradient(dlm_head), HeadGradient(dembedding)
    tables = head_parts(table, None) if embedding is not None else None
    for part in head_parts(lm_head, bias):
        # A tied head was widened already.
        weights = part.weight if tables is None else next(tables).weight
        dweight, dtable = head_gradient.take(part.columns), table_gradient.take(part.columns)
        local = known.clone()
        local[:, 4] -= part.columns.start
        for rows in work.blocks:
            logits = _finish(work.logits(inputs[rows], part.weight), part, softcap)
            z, da = (
                pulls.matrix(*logits.shape),
                slopes.matrix(*(logits.shape if need_da else (0, 0))),
            )
            # What pulls at the logits; the native kernel puts the weights in its place.
            if has_pull and need_da:
                torch.mm(grad[rows], weights.T, out=z)
            else:
                z.zero_()
            torch.ops.lepo_kernels_cpu.gumbel_softmax_gradients(
                z,
                da,
                logits,
                *noise.at(rows)[:-1],
                noise.first_id + part.columns.start,
                local[rows],
                torch.arange(len(logits)),
                0,
                active.per_row[rows],
            )
            if need_da and softcap is not None:
                da.mul_(1 - logits.div_(softcap).square_())
            first = float(rows.start > 0)
            if need_dhidden:
                dinputs[rows].addmm_(da, part.weight)
            if need_dlm_head:
                dweight.addmm_(da.T, inputs[rows], beta=first)
            if need_dlm_head and embedding is None and has_pull:
                dweight.addmm_(z.T, grad[rows])
            if need_dbias:
                dbias[part.columns] += da.sum(dim=0)
            if need_dembedding and has_pull:
                dtable.addmm_(z.T, grad[rows], beta=first)
        if need_dlm_head:
            head_gradient.put(part.columns, dweight)
        if need_dembedding and has_pull:
            table_gradient.put(part.columns, dtable)
    if need_dhidden:
        dhidden[active.rows] = dinputs.to(hidden.dtype)
    return dhidden, dlm_head, dbias.to(lm_head.dtype), dembedding


def _finish(
    logits: Tensor,  # [R, C], changed in place
    part: HeadPart,
    softcap: float | None,
) -> Tensor:  # [R, C]
    """``cap(logits + bias)``."""
    if part.bias is not None:
        logits += part.bias
    return logits if softcap is None else logits.div_(softcap).tanh_().mul_(softcap)
