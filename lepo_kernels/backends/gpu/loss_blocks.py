"""Logits of the loss, block by block of rows, and their gradients in their place."""

from typing import NamedTuple

import torch
from torch import Tensor

from lepo_kernels.backends.gpu.blocks import MOST_ROWS, HeadPart, Rows, aligned_matrix, even_slices
from lepo_kernels.backends.gpu.loss_gradients import LossGradients
from lepo_kernels.backends.gpu.products import wide_product
from lepo_kernels.backends.gpu.row_kernels import RowKernels, States
from lepo_kernels.formulas.lepo_gradient import lepo_gradient
from lepo_kernels.formulas.loss_rows import LossSettings, RowFacts

# Enough rows for the products to read the head at a fraction of the memory's rate, and for their
# time to hide what the host does for a block.
_BLOCK_BYTES = 512 << 20
_LEAST_ROWS = 1024
_MOST_BYTES = 3 << 30


class UsedRows(NamedTuple):
    """The rows that take part."""

    rows: Rows
    facts: RowFacts

    def block(self, rows: slice) -> "UsedRows":
        """Some of them."""
        return UsedRows(self.rows.block(rows), self.facts.at(rows))


class Sizes(NamedTuple):
    """Rows of which the logits, and of which the logits' gradients, are held at a time."""

    block: int
    kept: int


def sizes(
    rows: int,
    vocab: int,
    width: int,
    dtype: torch.dtype,
    need_dlm_head: bool,
) -> Sizes:
    """How many rows are held; see the contract."""
    block = max(_LEAST_ROWS, min(MOST_ROWS, _BLOCK_BYTES // (4 * vocab)))
    if dtype == torch.float32 or not need_dlm_head:
        return Sizes(block, block)
    logits, head, row = 4 * block * vocab, 4 * width * vocab, 2 * vocab
    summed = max(_MOST_BYTES, logits + head + row * 2 * block)
    if logits + row * rows <= summed:
        return Sizes(block, max(block, rows))
    return Sizes(block, (summed - logits - head) // row)


def add_gradients(
    kernels: RowKernels,
    used: UsedRows,  # M rows
    head: HeadPart,  # the whole of it
    settings: LossSettings,
    gradients: LossGradients,
) -> tuple[Tensor, Tensor]:  # [M, K], [M]
    """Selected logits and log-sum-exp; adds the gradients of the loss."""
    hidden, ids, _ = used.rows
    selected = torch.zeros(ids.shape, dtype=torch.float32, device=ids.device)
    lse = selected.new_zeros(len(ids))
    (count, width), vocab = hidden.shape, len(head.weight)
    held = sizes(count, vocab, width, hidden.dtype, gradients.needs.need_dlm_head)
    for group in even_slices(count, held.kept, 1):
        da = _logit_gradients(
            kernels, used.block(group), head, settings, held.block, selected[group], lse[group]
        )
        gradients.add(group, da)
        # Before the next ones are allocated.
        del da
    return selected, lse


def _logit_gradients(
    kernels: RowKernels,
    used: UsedRows,  # M rows
    head: HeadPart,  # the whole of it
    settings: LossSettings,
    most: int,
    selected: Tensor,  # [M, K], written
    lse: Tensor,  # [M], written
) -> Tensor:  # [M, V], in the dtype of the hidden states
    """The gradients of the logits, of at most ``most`` rows at a time."""
    count, dtype = len(lse), used.rows.hidden.dtype
    blocks = even_slices(count, most, 1)
    logits = aligned_matrix(blocks[0].stop, len(head.weight), torch.float32, lse.device)
    if dtype == torch.float32:
        assert len(blocks) == 1, "float32 gradients overwrite the logits"
        da = logits
    else:
        da = aligned_matrix(count, len(head.weight), dtype, lse.device)
    for block in blocks:
        mine = used.block(block)
        x = logits[: len(mine.rows.ids)]
        selected[block], lse[block] = _form_logits(kernels, mine.rows, head, x)
        alpha, gamma = lepo_gradient(selected[block], lse[block], mine.facts, settings)
        zero = torch.zeros_like(gamma)
        kernels.gradient(
            x,
            head.bias,
            head.softcap,
            mine.rows.inv_temperature,
            mine.rows.ids,
            0,
            alpha,
            gamma,
            zero,
            lse[block],
            zero,
            da[block],
        )
    return da


def _form_logits(
    kernels: RowKernels,
    rows: Rows,  # R of them
    head: HeadPart,  # the whole of it
    logits: Tensor,  # [R, V] float32, written
) -> tuple[Tensor, Tensor]:  # [R, K], [R]
    """Writes the raw logits; their selected ones, as the head has them, and log-sum-exp."""
    wide_product(rows.hidden, head.weight.T, out=logits)
    states = States(kernels, rows.ids, logits.shape[1])
    states.add(logits, 0, rows, head.bias, head.softcap)
    selected, lse, _ = states.outputs()
    return selected, lse
