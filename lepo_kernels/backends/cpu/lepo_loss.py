"""CPU kernel of LEPO's loss with its gradients: matrix products, and csrc/cpu between them.

Contract: as `linear_log_probs`, but the logits of a block of rows over the whole vocabulary are
held in float32 (48 MiB, or those of 128 rows), and turned into their gradient in place once the
loss of the rows is known; so the head is multiplied three times, not four. The head's gradient is
summed in float32 over the blocks and rounded once; in bfloat16 and float16 that sum needs [V, D]
numbers, but where one block of bfloat16 products (products.py) writes it rounded. Rows that are
left out are dropped first, and cost nothing. Loss and metrics are those of `lepo_objective` on the
selected logits. Deterministic.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from lepo_kernels.backends.checks import check_ids, check_positive, check_rows
from lepo_kernels.backends.cpu.linear_log_probs import (
    Buffer,
    FactorsOfRows,
    HeadPart,
    head_parts,
    new_state,
    statistics_of,
    summarise,
    turn_into_gradient,
)
from lepo_kernels.backends.cpu.memory import fresh
from lepo_kernels.backends.cpu.products import Factor, Products, products_for
from lepo_kernels.formulas.lepo_gradient import lepo_gradient
from lepo_kernels.formulas.lepo_objective import objective_of
from lepo_kernels.formulas.loss_rows import LossSettings, RowFacts
from lepo_kernels.structures import (
    Head,
    HeadGradients,
    Needs,
    Selection,
    Statistics,
    Upstream,
    per_row,
)

_BLOCK_BYTES = 48 << 20
# Fewer rows than that would slow the products down.
_LEAST_ROWS = 128
# Wider than where the logits are formed twice: torch's products that write rows with gaps want it.
_COLUMNS = {torch.float32: 8192, torch.bfloat16: 2048}


def lepo_loss(
    head: Head, selection: Selection, facts: RowFacts, settings: LossSettings, needs: Needs
) -> tuple[Tensor, ...]:
    """The fields of `LepoLoss`, then the gradients of hidden, lm_head and bias, or empty ones."""
    hidden, lm_head = head.hidden, head.lm_head
    ids, inv_temperature = selection.ids, selection.inv_temperature
    check_ids("ids", ids, lm_head.shape[0])
    check_positive("inv_temperature", inv_temperature)
    used = facts.used().nonzero()[:, 0]
    products = products_for(hidden, lm_head)
    rows = _Rows(
        head._replace(hidden=_take(hidden, used).to(products.dtype)),
        Selection(
            _take(ids, used).long().contiguous(), per_row(inv_temperature, used).contiguous()
        ),
        facts.at(used),
    )
    gradients = _Gradients(rows.head, needs, products)
    if any(needs):
        selected, lse = _with_gradients(rows, settings, gradients)
    else:
        chunk_size = max(1, _BLOCK_BYTES // (4 * len(lm_head)))
        selected, lse, _ = statistics_of(rows.head, rows.selection, chunk_size, products)
    all_selected = torch.zeros(ids.shape, dtype=torch.float32).index_copy_(0, used, selected)
    all_lse = torch.zeros(len(ids), dtype=torch.float32).index_copy_(0, used, lse)
    check_rows("logits of hidden", all_lse)
    fields = objective_of(all_selected, all_lse, facts, settings)
    dhidden = hidden.new_zeros(hidden.shape if needs.need_dhidden else (0,))
    if needs.need_dhidden:
        dhidden[used] = gradients.dhidden.to(hidden.dtype)
    return (
        *fields,
        dhidden,
        gradients.dlm_head.to(lm_head.dtype),
        gradients.dbias.to(lm_head.dtype),
    )


def lepo_loss_backward(
    grad_loss: Tensor,  # []
    gradients: HeadGradients,
    head: Head,
) -> HeadGradients:
    """The gradients of the loss times its own."""
    return HeadGradients(*(x * grad_loss for x in gradients))


class _Rows(NamedTuple):
    """The rows that are used, M of them."""

    head: Head  # hidden: in the products' dtype
    selection: Selection  # ids: int64
    facts: RowFacts

    def block(self, rows: slice) -> "_Rows":
        return _Rows(self.head.at(rows), self.selection.at(rows), self.facts.at(rows))


class _Gradients:
    """Sums over blocks of rows, in float32; empty where they are not wanted."""

    def __init__(self, head: Head, needs: Needs, products: Products) -> None:
        self.needs, self.products = needs, products
        hidden, lm_head = head.hidden, head.lm_head
        need_dhidden, need_dlm_head, need_dbias = needs
        count, vocab = len(hidden), len(lm_head)
        most = max(_LEAST_ROWS, _BLOCK_BYTES // (4 * vocab))
        # Blocks of like size: a short last one would waste the products' speed.
        self.block = max(1, -(-count // max(1, -(-count // most))))
        self.dhidden = torch.zeros(hidden.shape if need_dhidden else (0,), dtype=torch.float32)
        # The first block writes it: no need to touch so much memory before. One block alone is one
        # product, which rounds its sums itself.
        dtype = products.dtype if count <= self.block else torch.float32
        self.dlm_head = self.memory(lm_head.shape if need_dlm_head else (0,), dtype)
        if not count:
            self.dlm_head.zero_()
        self.dbias = torch.zeros(len(lm_head) if need_dbias else 0, dtype=torch.float32)

    def memory(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Uninitialised; on huge pages beside products for which faults would take too long."""
        half = self.products.dtype == torch.bfloat16
        return fresh(shape, dtype) if half else torch.empty(shape, dtype=dtype)

    def add(
        self,
        rows: slice,
        block: FactorsOfRows,
        part: HeadPart,
        da: Tensor,  # [R, C]
    ) -> None:
        need_dhidden, _, need_dbias = self.needs
        products = self.products
        if need_dhidden:
            columns = products.right(part.weight.T)
            products.multiply(products.left(da), columns, self.dhidden[rows], add=True)
        if block.columns is not None:
            dweight, add = self.dlm_head[part.columns], rows.start > 0
            products.multiply(products.left(da.T), block.columns, dweight, add)
        if need_dbias:
            self.dbias[part.columns] += da.sum(dim=0)


def _take(x: Tensor, rows: Tensor) -> Tensor:
    return x if len(rows) == len(x) else x[rows]


def _with_gradients(
    rows: _Rows, settings: LossSettings, gradients: _Gradients
) -> tuple[Tensor, Tensor]:  # [M, K], [M]
    """Selected logits and log-sum-exp; adds the gradients of the loss."""
    _, lm_head, bias, softcap = rows.head
    products, size = gradients.products, gradients.block
    count, vocab = len(rows.head.hidden), len(lm_head)
    selected, lse = (
        torch.zeros(rows.selection.ids.shape, dtype=torch.float32),
        torch.zeros(count, dtype=torch.float32),
    )
    buffer = gradients.memory((min(size, count) * vocab,), torch.float32)
    slopes = None
    if products.dtype == torch.bfloat16:
        # Where parts are narrow, their gradients stay in the cache; written over the logits they
        # would all go to memory.
        slopes = Buffer(min(size, count) * _COLUMNS[products.dtype])
    for first in range(0, count, size):
        span = slice(first, min(first + size, count))
        block = rows.block(span)
        logits = buffer[: len(block.head.hidden) * vocab].view(-1, vocab)
        factors = FactorsOfRows(products, block.head.hidden, gradients.needs.need_dlm_head)
        lse[span] = _fill(logits, block, products, factors.rows, selected[span])
        alpha, gamma = lepo_gradient(selected[span], lse[span], block.facts, settings)
        zero = torch.zeros_like(gamma)
        upstream, statistics = Upstream(alpha, gamma, zero), Statistics(lse[span], zero)
        for part in head_parts(lm_head, bias, products.dtype, _COLUMNS[products.dtype]):
            raw = logits[:, part.columns]
            out = None if slopes is None else slopes.matrix(*raw.shape)
            turn_into_gradient(raw, part, softcap, block.selection, upstream, statistics, out)
            gradients.add(span, factors, part, raw if out is None else out)
    return selected, lse


def _fill(
    logits: Tensor,  # [R, V], written
    block: _Rows,
    products: Products,
    hidden: Factor,  # [R, D]
    selected: Tensor,  # [R, K], written
) -> Tensor:  # [R]
    """The raw logits of a block, and their log-sum-exp."""
    _, lm_head, bias, softcap = block.head
    state = new_state(len(logits))
    for part in head_parts(lm_head, bias, products.dtype, _COLUMNS[products.dtype]):
        raw = products.multiply(hidden, products.right(part.weight), logits[:, part.columns])
        summarise(raw, part, softcap, block.selection, state, selected)
    lse: Tensor = torch.ops.lepo_kernels_cpu.statistics_of(state)[0]
    return lse
