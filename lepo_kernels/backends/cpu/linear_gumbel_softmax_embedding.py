"""CPU kernels of the Gumbel-softmax mixture from hidden states: products, csrc/cpu between them.

Contract: float32, bfloat16 and float16; products are as products.py has them, by the dtypes of the
hidden states and of the head or the table, and all between them is in float32. Forward holds the
logits of ``chunk_size`` rows, and makes of them what gumbel_softmax_embedding does: each chunk
reads head and table. Backward goes over the vocabulary in parts, and over blocks of rows within:
logits, pulls, weights and gradients of one block's part lie in three buffers, and those of head,
bias and table are summed in float32 and rounded once. Rows whose upstream gradients are all zero
are dropped from the backward pass. Deterministic.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from lepo_kernels.backends.checks import check_rows
from lepo_kernels.backends.cpu.gumbel_softmax_embedding import (
    active_upstream,
    mixtures_of,
)
from lepo_kernels.backends.cpu.linear_log_probs import (
    Buffer,
    FactorsOfRows,
    HeadGradient,
    HeadPart,
    RowBlocks,
    head_parts,
)
from lepo_kernels.backends.cpu.memory import fresh
from lepo_kernels.backends.cpu.products import Factor, products_for
from lepo_kernels.structures import Head, Mixtures, MixtureUpstream, Needs, Noise


def linear_gumbel_softmax_embedding(
    head: Head,
    embedding: Tensor | None,  # [V, D]; None: the head
    noise: Noise,
    chunk_size: int,
    shard: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # [N, D], [N], [N], [N, D], [N, 8]
    """`gumbel_softmax_embedding` of the logits ``cap(hidden @ lm_head^T + bias)``."""
    lm_head, table = head.lm_head, head.lm_head if embedding is None else embedding
    products = products_for(head.hidden, lm_head)
    of_table = products_for(head.hidden, table)
    hidden = head.hidden.to(products.dtype)
    buffer = fresh((min(len(hidden), chunk_size), len(lm_head)), torch.float32)
    parts = []
    # Once, too, where there are no rows.
    for start in range(0, max(1, len(hidden)), chunk_size):
        rows = slice(start, start + chunk_size)
        inputs = products.left(hidden[rows])
        logits = buffer[: inputs.outer]
        for part in head_parts(lm_head, head.bias, products.dtype):
            raw = logits[:, part.columns]
            _finish(products.multiply(inputs, products.right(part.weight), raw), part, head.softcap)
        parts.append(mixtures_of(logits, table, noise.at(rows), True, of_table))
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
    products, of_table = products_for(hidden, lm_head), products_for(hidden, table)
    known, inputs = mixtures.statistics[active.rows], hidden[active.rows].to(products.dtype)
    dinputs = torch.zeros(inputs.shape if need_dhidden else (0,), dtype=torch.float32)
    need_da = any(needs)
    need_pull = has_pull and need_da
    # What the mixture's weights add to: the table's gradient, that of a tied head among them.
    need_dtable = has_pull and (need_dlm_head if embedding is None else need_dembedding)
    work = RowBlocks(len(active.rows), len(lm_head), chunk_size, products)
    blocks = [
        _Block(
            rows,
            FactorsOfRows(products, inputs[rows], need_dlm_head),
            of_table.left(grad[rows]) if need_pull else None,
            of_table.right(grad[rows].T) if need_dtable else None,
        )
        for rows in work.blocks
    ]
    pulls, slopes = Buffer(work.entries), Buffer(work.entries if need_da else 0)
    # A tied head's gradient is the sum of two products.
    at_once = len(blocks) == 1 and embedding is not None
    head_gradient = HeadGradient(dlm_head, at_once and products.dtype == dlm_head.dtype)
    table_gradient = HeadGradient(dembedding, at_once and of_table.dtype == dembedding.dtype)
    tables = head_parts(table, None, of_table.dtype) if embedding is not None else None
    for part in head_parts(lm_head, bias, products.dtype):
        weight = products.right(part.weight)
        columns = products.right(part.weight.T) if need_dhidden else None
        # A tied head was widened, or packed, already.
        of_pull = weight if tables is None else of_table.right(next(tables).weight)
        dweight, dtable = head_gradient.take(part.columns), table_gradient.take(part.columns)
        local = known.clone()
        local[:, 4] -= part.columns.start
        for rows, block, pull, share in blocks:
            logits = _finish(work.logits(block.rows, weight), part, softcap)
            z, da = (
                pulls.matrix(*logits.shape),
                slopes.matrix(*(logits.shape if need_da else (0, 0))),
            )
            # What pulls at the logits; the native kernel puts the weights in its place.
            if pull is not None:
                of_table.multiply(pull, of_pull, z)
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
            later = rows.start > 0
            if columns is not None:
                products.multiply(products.left(da), columns, dinputs[rows], add=True)
            if block.columns is not None:
                products.multiply(products.left(da.T), block.columns, dweight, later)
            if share is not None and embedding is None:
                products.multiply(products.left(z.T), share, dweight, add=True)
            if need_dbias:
                dbias[part.columns] += da.sum(dim=0)
            if share is not None and embedding is not None:
                of_table.multiply(of_table.left(z.T), share, dtable, later)
        if need_dlm_head:
            head_gradient.put(part.columns, dweight)
        if need_dembedding and has_pull:
            table_gradient.put(part.columns, dtable)
    if need_dhidden:
        dhidden[active.rows] = dinputs.to(hidden.dtype)
    return dhidden, dlm_head, dbias.to(lm_head.dtype), dembedding


class _Block(NamedTuple):
    """A block of rows, and what of it is multiplied with each part of head and table."""

    rows: slice
    hidden: FactorsOfRows
    pull: Factor | None  # [R, D]
    share: Factor | None  # [D, R]


def _finish(
    logits: Tensor,  # [R, C], changed in place
    part: HeadPart,
    softcap: float | None,
) -> Tensor:  # [R, C]
    """``cap(logits + bias)``."""
    if part.bias is not None:
        logits += part.bias
    return logits if softcap is None else logits.div_(softcap).tanh_().mul_(softcap)
