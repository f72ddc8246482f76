"""The loss head on a GPU: torch's matrix products, and a backend's row kernels between them.

Contract: the logits are float32 products, whatever the dtype of the inputs; the row kernels
read them once. Work goes part of the vocabulary by part, each for up to 8192 rows at a time, and
never holds more logits than ``chunk_size`` rows have. So the head is read once for as many rows,
and its gradient, summed in float32, is rounded once (cuBLAS may round sums of a split product if
torch lets it: allow_bf16_reduced_precision_reduction): no float32 copy of the whole of it exists.
What every part is added to is the gradient of the hidden states, in float32.

The gradient of the logits is formed in float32 and rounded once, to the dtype of the inputs, in
which the two products of the backward pass are made; float32 gradients overwrite the logits. Beside
inputs and results, memory holds one chunk of logits (half as much again for gradients in bfloat16
or float16), 12 bytes for each 512 entries of up to 8192 rows in the forward pass, and a float32
[N, D] in the backward pass.

Rows whose upstream gradients are all zero are dropped from the backward pass. Their number must be
known on the host: the backward pass waits once for the GPU. While a CUDA graph is captured, where
it may not wait, they take part as zeros instead, and gradients agree up to the rounding of sums. A
row's statistics depend on its logits alone. Deterministic.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from lepo_kernels.backends.layout import dense_rows
from lepo_kernels.backends.reference.numerics import (
    check_ids,
    check_positive,
    check_rows,
    fill_empty_sums,
    has_coefficients,
    per_row,
)

# The row kernels' unit of summation: where the vocabulary may be cut.
UNIT = 512
# Numbers in the state of a unit; the second is 0 where all of the unit's logits are -inf.
STATE = 3
# More rows would not make the products faster, and leave narrower parts of the vocabulary.
MOST_ROWS = 8192


class RowKernels(NamedTuple):
    """What a backend does with a block [R, C] of logits, vocabulary entries ``first`` and on.

    ``summarise(logits, bias, softcap, inv_temperature, ids, first, states, selected)`` writes the
    states [R, units, 3] of its units, and the selected logits [R, K] whose ids are in it.

    ``statistics(states)`` gives log-sum-exp and entropy, both [R].

    ``gradient(logits, bias, softcap, inv_temperature, ids, first, grad_logits, grad_lse,
    grad_entropy, lse, entropy, da)`` writes the gradient of the logits, which may overwrite them.

    ``bias`` is [C] float32 or None, and ``softcap`` 0 for none. What they compute is in
    csrc/cuda/linear_log_probs.h.
    """

    summarise: Callable[..., None]
    statistics: Callable[[Tensor], tuple[Tensor, Tensor]]
    gradient: Callable[..., None]


class Blocks(NamedTuple):
    """How [N, V] logits are cut so that no block is too large."""

    rows: list[slice]
    columns: list[slice]


def blocks_of(rows: int, vocab: int, chunk_size: int) -> Blocks:
    """Cut into blocks of at most ``chunk_size * vocab`` logits, of like sizes."""
    entries = chunk_size * vocab
    height = max(1, min(rows, MOST_ROWS, entries // min(vocab, UNIT)))
    # In units; a vocabulary of less than one is not cut.
    width = max(1, entries // height // UNIT)
    return Blocks(
        even_slices(rows, height, 1),
        even_slices(vocab, width * UNIT, UNIT),
    )


def even_slices(count: int, most: int, unit: int) -> list[slice]:
    """Slices of at most ``most``, a multiple of ``unit``, cut at multiples of it."""
    pieces = -(-count // most)
    size = -(-count // (max(pieces, 1) * unit)) * unit
    return [slice(first, min(first + size, count)) for first in range(0, count, max(size, 1))]


class HeadPart(NamedTuple):
    """The part of a language-model head that belongs to ``columns`` of the vocabulary."""

    columns: slice
    weight: Tensor  # [C, D]
    bias: Tensor | None  # [C] float32
    softcap: float


def head_parts(
    columns: list[slice],
    lm_head: Tensor,  # [V, D]
    bias: Tensor | None,  # [V]
    softcap: float | None,
) -> Iterator[HeadPart]:
    """Cut a head at ``columns``."""
    wide = None if bias is None else bias.float().contiguous()
    for part in columns:
        part_bias = None if wide is None else wide[part]
        yield HeadPart(part, lm_head[part], part_bias, softcap or 0.0)


class Rows(NamedTuple):
    """What the kernels read of each row."""

    hidden: Tensor  # [M, D]
    ids: Tensor  # [M, K] int64
    inv_temperature: Tensor  # [M] or [1]

    def block(self, rows: slice) -> "Rows":
        """Some of them."""
        return Rows(self.hidden[rows], self.ids[rows], per_row(self.inv_temperature, rows))


class Upstream(NamedTuple):
    """The upstream gradients of each row, and its statistics."""

    grad_logits: Tensor  # [M, K]
    grad_lse: Tensor  # [M]
    grad_entropy: Tensor  # [M]
    lse: Tensor  # [M]
    entropy: Tensor  # [M]

    def block(self, rows: slice) -> "Upstream":
        """Of some of the rows."""
        return Upstream(*(x[rows] for x in self))


def wide_product(
    left: Tensor,  # [A, B]
    right: Tensor,  # [B, C]
    out: Tensor | None = None,  # [A, C] float32, written
) -> Tensor:  # [A, C] float32
    """The matrix product in float32."""
    if left.is_cuda and left.dtype != torch.float32:
        return torch.mm(left, right, out_dtype=torch.float32, out=out)
    # The simulated library's tensors: what the line above gives on a GPU.
    return torch.mm(left.float(), right.float(), out=out)


def add_product(
    total: Tensor,  # [A, C] float32, changed in place
    left: Tensor,  # [A, B]
    right: Tensor,  # [B, C]
) -> None:
    """``total += left @ right``, in the product's own pass over it."""
    if left.is_cuda and left.dtype != torch.float32:
        torch.addmm(total, left, right, out_dtype=torch.float32, out=total)
    else:
        total.addmm_(left.float(), right.float())


def linear_log_probs(
    kernels: RowKernels,
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
    rows = Rows(hidden, ids.long().contiguous(), inv_temperature.contiguous())
    outputs = statistics(kernels, rows, lm_head, bias, softcap, chunk_size, shard)
    if not shard:
        check_rows("logits of hidden", outputs[1])
    return outputs


def statistics(
    kernels: RowKernels,
    rows: Rows,
    lm_head: Tensor,  # [V, D]
    bias: Tensor | None,  # [V]
    softcap: float | None,
    chunk_size: int,
    shard: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:  # [M, K], [M], [M]
    """`linear_log_probs` without its checks."""
    blocks = blocks_of(len(rows.hidden), len(lm_head), chunk_size)
    parts = list(head_parts(blocks.columns, lm_head, bias, softcap))
    pieces = [
        _statistics(kernels, rows.block(block), parts, shard)
        for block in blocks.rows or [slice(0, 0)]
    ]
    return (
        torch.cat([piece[0] for piece in pieces]),
        torch.cat([piece[1] for piece in pieces]),
        torch.cat([piece[2] for piece in pieces]),
    )


def linear_log_probs_backward(
    kernels: RowKernels,
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
    active = has_coefficients(grad_logits, grad_lse, grad_entropy)
    taken = active.nonzero().squeeze(-1) if may_wait(hidden) else None
    if taken is None:
        # What a row that is left out holds may be NaN: 0 times it would spread.
        hidden = hidden.masked_fill(~active[:, None], 0)
    rows = Rows(
        take_rows(hidden, taken),
        take_rows(ids, taken).long().contiguous(),
        inv_temperature.contiguous()
        if len(inv_temperature) == 1
        else take_rows(inv_temperature, taken).contiguous(),
    )
    saved = (grad_logits, grad_lse, grad_entropy, lse, entropy)
    upstream = Upstream(*(take_rows(x, taken).contiguous() for x in saved))
    gradients = _Gradients(rows.hidden, lm_head, need_dhidden, need_dlm_head, need_dbias)
    blocks = blocks_of(len(rows.hidden), len(lm_head), chunk_size)
    for part in head_parts(blocks.columns, lm_head, bias, softcap):
        for block in blocks.rows:
            mine = rows.block(block)
            gradients.add(
                block,
                mine.hidden,
                part,
                _logit_gradient(kernels, mine, part, upstream.block(block)),
            )
    return gradients.outputs(len(hidden), taken)


def gather_log_probs(
    kernels: RowKernels,
    logits: Tensor,  # [N, V]
    ids: Tensor,  # [N, K]
    inv_temperature: Tensor,  # [N] or [1]
) -> tuple[Tensor, Tensor, Tensor]:  # [N, K], [N], [N]
    """Selected logits, log-sum-exp and entropy of ``logits / T``."""
    check_ids("ids", ids, logits.shape[1])
    check_positive("inv_temperature", inv_temperature)
    rows = Rows(logits, ids.long().contiguous(), inv_temperature.contiguous())
    states = States(kernels, rows.ids, logits.shape[1])
    states.add(dense_rows(logits), 0, rows, None, 0.0)
    outputs = states.outputs()
    check_rows("logits", outputs[1])
    return outputs


def gather_log_probs_backward(
    kernels: RowKernels,
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
    dlogits = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
    saved = (grad_logits, grad_lse, grad_entropy, lse, entropy)
    kernels.gradient(
        dense_rows(logits),
        None,
        0.0,
        inv_temperature.contiguous(),
        ids.long().contiguous(),
        0,
        *(x.contiguous() for x in saved),
        dlogits,
    )
    return dlogits


def _statistics(
    kernels: RowKernels,
    rows: Rows,  # R of them
    parts: list[HeadPart],
    shard: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # [R, K], [R], [R]
    """Selected logits, log-sum-exp and entropy."""
    states = States(kernels, rows.ids, parts[-1].columns.stop)
    for part in parts:
        logits = wide_product(rows.hidden, part.weight.T)
        states.add(logits, part.columns.start, rows, part.bias, part.softcap)
        # Before the next ones are allocated.
        del logits
    return states.outputs(shard)


class States:
    """What is known of rows after some parts of the vocabulary."""

    def __init__(
        self,
        kernels: RowKernels,
        ids: Tensor,  # [R, K]
        vocab: int,
    ) -> None:
        self._kernels = kernels
        # An id that is out of range, which the caller checks for, is in no part.
        self._selected = torch.full(ids.shape, torch.nan, dtype=torch.float32, device=ids.device)
        self._states = self._selected.new_empty((len(ids), -(-vocab // UNIT), STATE))

    def add(
        self,
        logits: Tensor,  # [R, C]
        first: int,
        rows: Rows,
        bias: Tensor | None,  # [C]
        softcap: float,
    ) -> None:
        """Add the logits from vocabulary entry ``first`` on."""
        self._kernels.summarise(
            logits,
            bias,
            softcap,
            rows.inv_temperature,
            rows.ids,
            first,
            self._states,
            self._selected,
        )

    def outputs(self, shard: bool = False) -> tuple[Tensor, Tensor, Tensor]:  # [R, K], [R], [R]
        """Selected logits, log-sum-exp and entropy."""
        lse, entropy = self._kernels.statistics(self._states)
        if shard:
            fill_empty_sums(lse, entropy, (self._states[:, :, 1] == 0).all(dim=1))
        return self._selected, lse, entropy


class _Gradients:
    """Sums of gradients over the blocks of the logits; empty where they are not wanted."""

    def __init__(
        self,
        hidden: Tensor,  # [M, D], the rows that are used
        lm_head: Tensor,  # [V, D]
        need_dhidden: bool,
        need_dlm_head: bool,
        need_dbias: bool,
    ) -> None:
        self._needs = (need_dhidden, need_dlm_head, need_dbias)
        device = hidden.device
        self._hidden = hidden
        shape = hidden.shape if need_dhidden else (0,)
        self._dhidden = torch.zeros(shape, dtype=torch.float32, device=device)
        # Without rows no part is written.
        make = torch.empty if len(hidden) else torch.zeros
        shape = lm_head.shape if need_dlm_head else (0,)
        self._dlm_head = make(shape, dtype=lm_head.dtype, device=device)
        self._dweight = torch.empty(0, device=device)
        count = len(lm_head) if need_dbias else 0
        self._dbias = torch.zeros(count, dtype=torch.float32, device=device)

    def add(
        self,
        block: slice,
        hidden: Tensor,  # [R, D]
        part: HeadPart,
        da: Tensor,  # [R, C]
    ) -> None:
        need_dhidden, need_dlm_head, need_dbias = self._needs
        if need_dhidden:
            add_product(self._dhidden[block], da, part.weight)
        if need_dlm_head:
            self._add_to_head(block, hidden, part.columns, da)
        if need_dbias:
            self._dbias[part.columns] += da.sum(dim=0, dtype=torch.float32)

    def _add_to_head(
        self,
        block: slice,
        hidden: Tensor,  # [R, D]
        columns: slice,
        da: Tensor,  # [R, C]
    ) -> None:
        """Blocks of rows come in turn for each part of the vocabulary."""
        is_first, is_last = block.start == 0, block.stop == len(self._hidden)
        if is_first and is_last:
            torch.mm(da.T, hidden, out=self._dlm_head[columns])
            return
        if is_first:
            self._dweight = wide_product(da.T, hidden)
        else:
            add_product(self._dweight, da.T, hidden)
        if is_last:
            self._dlm_head[columns] = self._dweight

    def outputs(
        self,
        count: int,
        taken: Tensor | None,  # [M]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The gradients of ``count`` rows, of which those in ``taken`` were used, or all."""
        dhidden = self._dhidden.to(self._hidden.dtype)
        if self._needs[0] and taken is not None and len(taken) < count:
            all_rows = dhidden.new_zeros((count, *dhidden.shape[1:]))
            dhidden = all_rows.index_copy_(0, taken, dhidden)
        return dhidden, self._dlm_head, self._dbias.to(self._dlm_head.dtype)


def _logit_gradient(
    kernels: RowKernels,
    rows: Rows,  # R of them
    part: HeadPart,
    upstream: Upstream,
) -> Tensor:  # [R, C], in the dtype of the hidden states
    logits = wide_product(rows.hidden, part.weight.T)
    da = logits
    if rows.hidden.dtype != torch.float32:
        da = torch.empty_like(logits, dtype=rows.hidden.dtype)
    kernels.gradient(
        logits,
        part.bias,
        part.softcap,
        rows.inv_temperature,
        rows.ids,
        part.columns.start,
        *upstream,
        da,
    )
    return da


def may_wait(like: Tensor) -> bool:
    """Whether the host may wait for the GPU."""
    return not (like.is_cuda and torch.cuda.is_current_stream_capturing())


def take_rows(
    x: Tensor,  # [N, ...]
    rows: Tensor | None,  # [M]
) -> Tensor:  # [M, ...] or [N, ...]
    """Some of the rows; None stands for all."""
    return x if rows is None or len(rows) == len(x) else x[rows]
