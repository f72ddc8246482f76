"""CPU kernels of selected log-probabilities: matrix products, and csrc/cpu between them.

Contract: the logits are float32 sums of exact products, whatever the dtype of the inputs: a head in
bfloat16 or float16 is widened a part at a time, unless the machine has fast products of bfloat16
(products.py, which says what the gradients' products then round). They are formed for a part of the
vocabulary and a block of rows at a time, in one buffer that stays in the cache, and read once while
they are there; the backward pass forms them again. No more logits are held at a time than
``chunk_size`` rows have. Sums over the vocabulary run in its order, and do not depend on the number
of rows. Gradients are summed in float32 and rounded once. Rows whose upstream gradients are all
zero are dropped from the backward pass. Deterministic.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from lepo_kernels.backends.checks import check_ids, check_positive, check_rows
from lepo_kernels.backends.cpu.products import Factor, Products, products_for
from lepo_kernels.backends.rows import active_rows, fill_empty_sums
from lepo_kernels.structures import (
    Head,
    HeadGradients,
    Needs,
    Selection,
    Statistics,
    Upstream,
    empty_gradient,
)

# The products of a part of the vocabulary run at full speed from here on.
_COLUMNS = 2048
# 8 MiB of logits.
_BUFFER_ENTRIES = 1 << 21


class HeadPart(NamedTuple):
    """The part of a language-model head that belongs to ``columns`` of the vocabulary."""

    columns: slice
    weight: Tensor  # [C, D] in the products' dtype; valid until the next part is taken
    bias: Tensor | None  # [C] float32


def head_parts(
    lm_head: Tensor,  # [V, D]
    bias: Tensor | None,  # [V]
    dtype: torch.dtype,
    size: int = _COLUMNS,
) -> Iterator[HeadPart]:
    """Cut a head into parts of ``size`` entries, a multiple of 1024 (csrc's unit of summation)."""
    wide = None if bias is None else bias.float().contiguous()
    buffer = None
    if lm_head.dtype != dtype:
        buffer = lm_head.new_empty((min(size, len(lm_head)), lm_head.shape[1]), dtype=dtype)
    for first in range(0, len(lm_head), size):
        columns = slice(first, min(first + size, len(lm_head)))
        weight = lm_head[columns]
        if buffer is not None:
            weight = buffer[: len(weight)].copy_(weight)
        yield HeadPart(columns, weight, None if wide is None else wide[columns])


class Buffer:
    """Memory in which matrices of up to ``entries`` entries take turns."""

    def __init__(self, entries: int) -> None:
        self._memory = torch.empty(entries, dtype=torch.float32)

    def matrix(self, rows: int, columns: int) -> Tensor:  # [rows, columns]
        """A matrix of any values, until the next one is taken."""
        return self._memory[: rows * columns].view(rows, columns)


class RowBlocks:
    """Blocks of rows, and a buffer for the logits of one of them."""

    def __init__(self, rows: int, vocab: int, chunk_size: int, products: Products) -> None:
        width = min(vocab, _COLUMNS)
        size = max(1, min(rows, min(_BUFFER_ENTRIES, chunk_size * vocab) // width))
        self.blocks = [slice(r, min(r + size, rows)) for r in range(0, rows, size)]
        self.entries = size * width
        self._buffer = Buffer(self.entries)
        self._products = products

    def logits(
        self,
        hidden: Factor,  # [R, D]
        weight: Factor,  # [C, D]
    ) -> Tensor:  # [R, C], valid until the next call
        """``hidden @ weight^T``."""
        out = self._buffer.matrix(hidden.outer, weight.outer)
        return self._products.multiply(hidden, weight, out)


class FactorsOfRows:
    """A block of hidden states as a factor of its logits, and of a head's gradient if wanted."""

    def __init__(
        self,
        products: Products,
        hidden: Tensor,  # [R, D]
        need_columns: bool,
    ) -> None:
        self.rows = products.left(hidden)
        self.columns = products.right(hidden.T) if need_columns else None


class HeadGradient:
    """A part at a time of a head's gradient, in float32: the result itself, or a buffer for it."""

    def __init__(
        self,
        result: Tensor,  # [V, D], written part by part; [0] if it is not wanted
        written_at_once: bool = False,  # by one product, which rounds its sums itself
    ) -> None:
        self._result = result
        self._buffer = None
        if result.dtype != torch.float32 and not written_at_once:
            self._buffer = torch.empty(
                (min(_COLUMNS, len(result)), *result.shape[1:]), dtype=torch.float32
            )

    def take(self, columns: slice) -> Tensor:  # [C, D]
        """A part to write to."""
        part = self._result[columns]
        return part if self._buffer is None else self._buffer[: len(part)]

    def put(self, columns: slice, part: Tensor) -> None:
        """Round the part that was taken, if it has to be."""
        if self._buffer is not None:
            self._result[columns] = part


def new_state(rows: int) -> Tensor:  # [rows, 3]
    """The sums of rows of which nothing was seen yet: maximum, and two sums."""
    state = torch.zeros(rows, 3, dtype=torch.float64)
    state[:, 0] = -torch.inf
    return state


def linear_log_probs(
    head: Head, selection: Selection, chunk_size: int, shard: bool
) -> tuple[Tensor, Tensor, Tensor]:  # [N, K], [N], [N]
    """Selected logits, log-sum-exp and entropy of ``cap(hidden @ lm_head^T + bias) / T``."""
    check_ids("ids", selection.ids, len(head.lm_head))
    check_positive("inv_temperature", selection.inv_temperature)
    products = products_for(head.hidden, head.lm_head)
    head = Head(head.hidden.to(products.dtype), *head[1:])
    outputs = statistics_of(head, _as_read(selection), chunk_size, products, shard=shard)
    if not shard:
        check_rows("logits of hidden", outputs[1])
    return outputs


def statistics_of(
    head: Head,  # hidden: in the products' dtype
    selection: Selection,  # ids: int64
    chunk_size: int,
    products: Products,
    shard: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:  # [N, K], [N], [N]
    """`linear_log_probs` without its checks."""
    hidden, lm_head, bias, softcap = head.hidden, head.lm_head, head.bias, head.softcap
    selected = torch.zeros(selection.ids.shape, dtype=torch.float32)
    state = new_state(len(hidden))
    work = RowBlocks(len(hidden), len(lm_head), chunk_size, products)
    inputs = [products.left(hidden[rows]) for rows in work.blocks]
    for part in head_parts(lm_head, bias, products.dtype):
        weight = products.right(part.weight)
        for rows, block in zip(work.blocks, inputs, strict=True):
            summarise(
                work.logits(block, weight),
                part,
                softcap,
                selection.at(rows),
                state[rows],
                selected[rows],
            )
    lse, entropy = torch.ops.lepo_kernels_cpu.statistics_of(state)
    if shard:
        fill_empty_sums(lse, entropy, state[:, 1] == 0)
    return selected, lse, entropy


def summarise(
    logits: Tensor,  # [R, C]
    part: HeadPart,
    softcap: float | None,
    selection: Selection,  # of R rows
    state: Tensor,  # [R, 3], changed in place
    selected: Tensor,  # [R, K], changed in place
) -> None:
    """Add raw logits of a part of the vocabulary to the sums of their rows."""
    torch.ops.lepo_kernels_cpu.summarise_logits(
        logits,
        part.bias,
        softcap or 0.0,
        selection.inv_temperature,
        selection.ids,
        part.columns.start,
        state,
        selected,
    )


def turn_into_gradient(
    logits: Tensor,  # [R, C], changed in place
    part: HeadPart,
    softcap: float | None,
    selection: Selection,  # of R rows
    upstream: Upstream,  # of R rows
    statistics: Statistics,  # of R rows
    out: Tensor | None = None,  # [R, C]
) -> None:
    """Put the gradient of raw logits in their place, or into ``out``."""
    torch.ops.lepo_kernels_cpu.logit_gradient_(
        logits,
        part.bias,
        softcap or 0.0,
        selection.inv_temperature,
        selection.ids,
        part.columns.start,
        *upstream,
        *statistics,
        out,
    )


def linear_log_probs_backward(
    upstream: Upstream,
    head: Head,
    selection: Selection,
    statistics: Statistics,
    chunk_size: int,
    needs: Needs,
) -> HeadGradients:
    """Gradients of the hidden states, the head and the bias; those not needed are empty."""
    hidden, lm_head, bias, softcap = head.hidden, head.lm_head, head.bias, head.softcap
    active = active_rows(*upstream)
    dhidden = hidden.new_zeros(hidden.shape if needs.need_dhidden else (0,))
    dlm_head = empty_gradient(lm_head, needs.need_dlm_head)
    dbias = torch.zeros(len(lm_head) if needs.need_dbias else 0, dtype=torch.float32)
    if len(active) == 0:
        return HeadGradients(dhidden, dlm_head.zero_(), dbias.to(lm_head.dtype))
    selection = _as_read(selection.at(active))
    upstream, statistics = upstream.at(active), statistics.at(active)
    products = products_for(hidden, lm_head)
    inputs = (hidden if len(active) == len(hidden) else hidden[active]).to(products.dtype)
    dinputs = torch.zeros(inputs.shape if needs.need_dhidden else (0,), dtype=torch.float32)
    work = RowBlocks(len(active), len(lm_head), chunk_size, products)
    blocks = [FactorsOfRows(products, inputs[rows], needs.need_dlm_head) for rows in work.blocks]
    gradients = HeadGradient(dlm_head, len(blocks) == 1 and products.dtype == dlm_head.dtype)
    for part in head_parts(lm_head, bias, products.dtype):
        dweight = gradients.take(part.columns)
        weight = products.right(part.weight)
        columns = products.right(part.weight.T) if needs.need_dhidden else None
        for rows, block in zip(work.blocks, blocks, strict=True):
            da = work.logits(block.rows, weight)
            of_rows = selection.at(rows), upstream.at(rows), statistics.at(rows)
            turn_into_gradient(da, part, softcap, *of_rows)
            if columns is not None:
                products.multiply(products.left(da), columns, dinputs[rows], add=True)
            if block.columns is not None:
                add = rows.start > 0
                products.multiply(products.left(da.T), block.columns, dweight, add)
            if needs.need_dbias:
                dbias[part.columns] += da.sum(dim=0)
        gradients.put(part.columns, dweight)
    if needs.need_dhidden:
        dhidden[active] = dinputs.to(hidden.dtype)
    return HeadGradients(dhidden, dlm_head, dbias.to(lm_head.dtype))


def gather_log_probs(
    logits: Tensor,  # [N, V]
    selection: Selection,
) -> tuple[Tensor, Tensor, Tensor]:  # [N, K], [N], [N]
    """Selected logits, log-sum-exp and entropy of ``logits / T``."""
    check_ids("ids", selection.ids, logits.shape[1])
    check_positive("inv_temperature", selection.inv_temperature)
    outputs: tuple[Tensor, Tensor, Tensor] = torch.ops.lepo_kernels_cpu.gather_log_probs(
        _dense_rows(logits), *_as_read(selection)
    )
    check_rows("logits", outputs[1])
    return outputs


def gather_log_probs_backward(
    upstream: Upstream,
    logits: Tensor,  # [N, V]
    selection: Selection,
    statistics: Statistics,
) -> Tensor:  # [N, V]
    """Gradient of the logits, in their dtype."""
    dlogits: Tensor = torch.ops.lepo_kernels_cpu.gather_log_probs_backward(
        *(x.contiguous() for x in upstream),
        _dense_rows(logits),
        *_as_read(selection),
        *(x.contiguous() for x in statistics),
    )
    return dlogits


def _as_read(selection: Selection) -> Selection:
    """In the layout and with the dtype of ids that the native kernels read."""
    ids, inv_temperature = selection.ids, selection.inv_temperature
    return Selection(ids.long().contiguous(), inv_temperature.contiguous())


def _dense_rows(logits: Tensor) -> Tensor:  # [N, V], rows of any stride
    return logits if logits.stride(1) == 1 else logits.contiguous()
