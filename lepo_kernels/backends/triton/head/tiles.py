"""The loss head in tiles, on Triton: a product whose logits never leave the registers.

Contract: forward reads hidden states and head, and writes 12 bytes for each tile of a row: the
state of rows.py, here of as many entries as a tile has. Selected logits are picked
where their id is in a tile. Backward forms the logits of a part of the vocabulary once more, and
writes their gradient, formed in float32 and rounded once to the dtype of the inputs, for the two
products of products.py. Its size is that of the logits of ``chunk_size`` rows at most. The
gradient of the head is summed in float32 and rounded once; so is that of the hidden states.

Rows whose upstream gradients are all zero are sorted to the end, and left out: their number is read
by the kernels, and the host never waits for the device. Beside inputs and results, memory holds the
states of all rows in the forward pass; in the backward pass the part's gradient, a sorted copy of
the hidden states, and their gradient in float32 where the vocabulary has several parts.

Tiles depend on the device, the dtype and D: a row's statistics do not depend on other rows. The sum
of the bias' gradient goes over tiles of rows. No atomics; deterministic.
"""

from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from lepo_kernels.backends.checks import check_ids, check_positive, check_rows
from lepo_kernels.backends.gpu.blocks import HeadPart, Rows, blocks_of, head_parts
from lepo_kernels.backends.gpu.row_kernels import STATE
from lepo_kernels.backends.rows import dense_rows, fill_empty_sums, has_coefficients
from lepo_kernels.backends.triton.common import launching
from lepo_kernels.backends.triton.common.launching import (
    FUSED,
    device_of,
    dtype_class,
    precision_of,
    stride_of,
)
from lepo_kernels.backends.triton.head import products
from lepo_kernels.backends.triton.head.rows import statistics as statistics_of
from lepo_kernels.backends.triton.head.tile_kernels import (
    head_logit_gradient_kernel,
    head_states_kernel,
)
from lepo_kernels.structures import Head, HeadGradients, Needs, Selection, Statistics, Upstream

_HALF = {
    "ROWS": 128,
    "IDS": 256,
    "WIDTH": 64,
    "PIECES": 4,
    "num_warps": 8,
    "num_stages": 3,
    **FUSED,
}
_NARROW = {**_HALF, "IDS": 128}
_FLOAT = {**_NARROW, "ROWS": 64, "WIDTH": 32, "num_stages": 2}
# Tiles, warps and stages of loads; not measured on a GPU yet. What is done with the logits of a
# tile is done piece by piece: for all at once there are not enough registers.
_TILES: dict[str, dict[str, dict[str, Any]]] = {
    "sm_80": {"half": _NARROW, "float": _FLOAT},
    "sm_90": {"half": _HALF, "float": _FLOAT},
    "sm_100": {"half": _HALF, "float": _FLOAT},
    "rocm": {"half": {**_NARROW, "num_stages": 2}, "float": _FLOAT},
    "other": {"half": {**_NARROW, "num_stages": 2}, "float": _FLOAT},
}


def linear_log_probs(
    head: Head,
    selection: Selection,
    chunk_size: int,
    shard: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # [N, K], [N], [N]
    """Selected logits, log-sum-exp and entropy of ``cap(hidden @ lm_head^T + bias) / T``."""
    hidden, lm_head, bias, softcap = head.hidden, head.lm_head, head.bias, head.softcap
    ids, inv_temperature = selection.ids, selection.inv_temperature
    (rows, width), vocab = hidden.shape, len(lm_head)
    check_ids("ids", ids, vocab)
    check_positive("inv_temperature", inv_temperature)
    hidden, lm_head, ids = dense_rows(hidden), dense_rows(lm_head), _narrow_ids(ids, vocab)
    bias = None if bias is None else bias.float().contiguous()
    tiles = _tiles(hidden)
    blocks = triton.cdiv(vocab, tiles["IDS"])
    selected = torch.full(ids.shape, torch.nan, dtype=torch.float32, device=ids.device)
    states = selected.new_empty((rows, blocks, STATE))
    if rows > 0:
        with device_of(hidden):
            head_states_kernel[(triton.cdiv(rows, tiles["ROWS"]) * blocks,)](
                *_head_arguments(hidden, lm_head, bias, softcap, inv_temperature),
                ids,
                states,
                selected,
                rows,
                vocab,
                width,
                ids.shape[1],
                **_variant(bias, softcap),
                **tiles,
            )
    lse, entropy = statistics_of(states)
    if shard:
        fill_empty_sums(lse, entropy, (states[:, :, 1] == 0).all(dim=1))
    else:
        check_rows("logits of hidden", lse)
    return selected, lse, entropy


def linear_log_probs_backward(
    upstream: Upstream,
    head: Head,
    selection: Selection,
    statistics: Statistics,
    chunk_size: int,
    needs: Needs,
) -> HeadGradients:
    """Gradients of the hidden states, the head and the bias; those not needed are empty."""
    head = head._replace(lm_head=dense_rows(head.lm_head))
    vocab = len(head.lm_head)
    rows = Rows(head.hidden, _narrow_ids(selection.ids, vocab), selection.inv_temperature)
    gradients = _Gradients(_sorted(rows, upstream, statistics), head.lm_head, needs)
    blocks = blocks_of(len(head.hidden), vocab, chunk_size)
    with device_of(head.hidden):
        for part in head_parts(blocks.columns, head):
            for block in blocks.rows:
                gradients.add(block, part)
    return gradients.outputs()


@dataclass
class _Sorted:
    """Rows with gradients first."""

    rows: Rows  # of N
    upstream: Upstream  # of N
    statistics: Statistics  # of N
    order: Tensor  # [N], where they were
    count: Tensor  # [], how many have gradients


def _sorted(rows: Rows, upstream: Upstream, statistics: Statistics) -> _Sorted:
    idle = has_coefficients(*upstream).logical_not_().to(torch.int8)
    # Stable: a row's place depends on nothing but which rows have gradients.
    order, count = idle.argsort(stable=True), len(idle) - idle.sum()
    scale = rows.inv_temperature
    return _Sorted(
        Rows(
            rows.hidden[order].contiguous(),
            rows.ids[order].contiguous(),
            scale if len(scale) == 1 else scale[order],
        ),
        Upstream(*(x[order].contiguous() for x in upstream)),
        Statistics(*(x[order].contiguous() for x in statistics)),
        order,
        count,
    )


class _Gradients:
    """The gradients, block by block of the logits; empty where they are not wanted."""

    def __init__(
        self,
        everything: _Sorted,
        lm_head: Tensor,  # [V, D]
        needs: Needs,
    ) -> None:
        self._all, self._needs = everything, needs
        (self._count, self._width), self._vocab = everything.rows.hidden.shape, len(lm_head)
        # Idle rows are not written, and without rows no part of the head.
        like = everything.rows.hidden
        self._dhidden = like.new_zeros(like.shape if needs.need_dhidden else (0,))
        make = torch.empty if len(like) else torch.zeros
        shape = lm_head.shape if needs.need_dlm_head else (0,)
        self._dlm_head = make(shape, dtype=lm_head.dtype, device=lm_head.device)
        self._dbias = lm_head.new_zeros(
            len(lm_head) if needs.need_dbias else 0, dtype=torch.float32
        )
        # Sums that are not complete.
        self._row_sums = self._head_sums = self._dbias

    def add(self, rows: slice, part: HeadPart) -> None:
        """Add what the logits of some rows and a part of the vocabulary give."""
        da = self._logit_gradient(rows, part)
        if self._needs.need_dhidden:
            self._add_to_rows(rows, part, da)
        if self._needs.need_dlm_head:
            self._add_to_head(rows, part, da)

    def _add_to_rows(self, rows: slice, part: HeadPart, da: Tensor) -> None:
        is_first, is_last = part.columns.start == 0, part.columns.stop == self._vocab
        if is_first and rows.start == 0 and not is_last:
            self._row_sums = da.new_empty(self._dhidden.shape, dtype=torch.float32)
        products.add_rows_product(
            da,
            part.weight,
            self._row_sums[rows],
            self._dhidden,
            self._all.order[rows],
            self._all.count,
            rows.start,
            is_first,
            is_last,
        )

    def _add_to_head(self, rows: slice, part: HeadPart, da: Tensor) -> None:
        """Blocks of rows come in turn for each part of the vocabulary."""
        is_first, is_last = rows.start == 0, rows.stop == self._count
        if is_first and not is_last:
            shape = (da.shape[1], self._width)
            self._head_sums = da.new_empty(shape, dtype=torch.float32)
        products.add_head_product(
            da,
            self._all.rows.hidden[rows],
            self._head_sums,
            self._dlm_head[part.columns],
            self._all.count,
            rows.start,
            is_first,
            is_last,
        )

    def _logit_gradient(self, block: slice, part: HeadPart) -> Tensor:  # [R, C]
        rows = self._all.rows.block(block)
        hidden, tiles = rows.hidden, _tiles(rows.hidden)
        count, columns = len(hidden), len(part.weight)
        row_blocks = triton.cdiv(count, tiles["ROWS"])
        # Rows that begin at multiples of 16 entries are loaded in wide accesses.
        da = hidden.new_empty((count, triton.cdiv(columns, 16) * 16))[:, :columns]
        shape = (row_blocks, columns) if self._needs.need_dbias else (0, 0)
        dbias = self._dbias.new_zeros(shape)
        head_logit_gradient_kernel[(row_blocks * triton.cdiv(columns, tiles["IDS"]),)](
            *_head_arguments(hidden, part.weight, part.bias, part.softcap, rows.inv_temperature),
            rows.ids,
            part.columns.start,
            *self._all.upstream.at(block),
            *self._all.statistics.at(block),
            self._all.count,
            block.start,
            da,
            da.stride(0),
            dbias,
            count,
            columns,
            self._width,
            rows.ids.shape[1],
            DBIAS=self._needs.need_dbias,
            **_variant(part.bias, part.softcap),
            **tiles,
        )
        if self._needs.need_dbias:
            self._dbias[part.columns] += dbias.sum(dim=0)
        return da

    def outputs(self) -> HeadGradients:
        dbias = self._dbias.to(self._dlm_head.dtype)
        return HeadGradients(self._dhidden, self._dlm_head, dbias)


def _narrow_ids(
    ids: Tensor,  # [N, K]
    vocab: int,
) -> Tensor:  # [N, K] int32
    """Ids as the kernels take them; one that is out of range stays so."""
    return ids.clamp(-1, vocab).to(torch.int32).contiguous()


def _tiles(
    hidden: Tensor,  # [N, D]
) -> dict[str, Any]:
    """Tiles for this device, dtype and D."""
    options = dict(_TILES[launching.device_family(hidden.device)][dtype_class(hidden.dtype)])
    even = hidden.shape[1] % options["WIDTH"] == 0
    if not even:
        # Masks take registers, too.
        options["IDS"] = min(options["IDS"], _NARROW["IDS"])
    return {**options, "EVEN": even, "PRECISION": precision_of(hidden.dtype)}


def _head_arguments(
    hidden: Tensor,  # [R, D]
    lm_head: Tensor,  # [C, D]
    bias: Tensor | None,  # [C]
    softcap: float | None,
    inv_temperature: Tensor,  # [R] or [1]
) -> tuple[Any, ...]:
    """Arguments of a kernel, from the hidden states to the stride of the temperature."""
    scale = inv_temperature.contiguous()
    return (
        hidden,
        hidden.stride(0),
        lm_head,
        lm_head.stride(0),
        scale if bias is None else bias,
        softcap or 0.0,
        scale,
        stride_of(scale),
    )


def _variant(bias: Tensor | None, softcap: float | None) -> dict[str, bool]:
    return {"HAS_BIAS": bias is not None, "CAPPED": bool(softcap)}
