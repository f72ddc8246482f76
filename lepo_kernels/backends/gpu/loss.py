"""LEPO's loss with its gradients on a GPU: the head is multiplied three times, not four.

Contract: as head.py, but logits are formed once, for a block of rows
over the whole vocabulary, and turned into their gradient as soon as the rows' statistics, and so
their part of the loss, are known. Without gradients to form it is head.py's forward pass. Loss
and metrics are those of `lepo_objective` on the selected logits.

Each gradient is summed in float32 and rounded once. In bfloat16 the gradients of the logits of all
rows are held, two bytes each, until one product makes the head's gradient of them; or, where that
is less memory, those of some rows, and the products are summed in a float32 copy of the head. In
float32 a block's gradients overwrite its logits, and the products are summed in the result.

Beside inputs, results and a copy of the hidden states, memory holds the float32 logits of a block,
512 MiB or 1024 rows, and what is held for a head that is trained: together no more than 3 GiB, or,
where that is not enough, than a float32 copy of the head, a block and the gradients of two. Such a
copy is read and written once for each group of rows whose gradients are held.

Rows that are left out are dropped first. Their number must be known on the host: the forward pass
waits once for the GPU. While a CUDA graph is captured they take part with gradients of 0 instead.
Deterministic.
"""

import torch
from torch import Tensor

from lepo_kernels.backends.checks import check_ids, check_positive, check_rows
from lepo_kernels.backends.gpu.blocks import head_parts, may_wait, rows_of
from lepo_kernels.backends.gpu.head import statistics_of
from lepo_kernels.backends.gpu.loss_blocks import UsedRows, add_gradients
from lepo_kernels.backends.gpu.loss_gradients import LossGradients
from lepo_kernels.backends.gpu.row_kernels import RowKernels
from lepo_kernels.formulas.lepo_objective import objective_of
from lepo_kernels.formulas.loss_rows import LossSettings, RowFacts
from lepo_kernels.structures import Head, HeadGradients, Needs, Selection

# Without gradients, chunks of the default size of `linear_log_probs`.
_CHUNK_BYTES = 256 << 20


def lepo_loss(
    kernels: RowKernels,
    head: Head,
    selection: Selection,
    facts: RowFacts,
    settings: LossSettings,
    needs: Needs,
) -> tuple[Tensor, ...]:
    """The fields of `LepoLoss`, then the gradients of hidden, lm_head and bias, or empty ones."""
    hidden, lm_head = head.hidden, head.lm_head
    vocab, count = len(lm_head), len(hidden)
    check_ids("ids", selection.ids, vocab)
    check_positive("inv_temperature", selection.inv_temperature)
    is_used = facts.used()
    taken = is_used.nonzero()[:, 0] if may_wait(hidden) else None
    if taken is None:
        # What a row that is left out holds may be NaN: 0 times it would spread.
        hidden = hidden.masked_fill(~is_used[:, None], 0)
    used = UsedRows(
        rows_of(hidden, selection, taken),
        facts if taken is None or len(taken) == count else facts.at(taken),
    )
    gradients = LossGradients(used.rows.hidden, lm_head, needs)
    if any(needs):
        part = next(head_parts([slice(0, vocab)], head))
        selected, lse = add_gradients(kernels, used, part, settings, gradients)
    else:
        chunk_size = max(1, _CHUNK_BYTES // (4 * vocab))
        selected, lse, _ = statistics_of(kernels, used.rows, head, chunk_size)
    selected, lse = (_put_rows(x, taken, count) for x in (selected, lse))
    check_rows("logits of hidden", lse)
    fields = objective_of(selected, lse, facts, settings)
    dhidden = gradients.dhidden
    if needs.need_dhidden:
        dhidden = _put_rows(dhidden, taken, count)
    return *fields, dhidden, gradients.dlm_head(), gradients.dbias.to(lm_head.dtype)


def _put_rows(
    x: Tensor,  # [M, ...]
    rows: Tensor | None,  # [M]
    count: int,
) -> Tensor:  # [count, ...]
    """Zeros where no row was taken; None stands for all."""
    if rows is None or len(rows) == count:
        return x
    return x.new_zeros((count, *x.shape[1:])).index_copy_(0, rows, x)


def lepo_loss_backward(
    grad_loss: Tensor,  # []
    gradients: HeadGradients,
    head: Head,
) -> HeadGradients:
    """The gradients of the loss times its own.

    Always multiplied, since to look whether its own gradient is 1 would be to wait for the GPU; and
    never in place, since a graph that is retained would be multiplied once more.
    """
    return HeadGradients(*(_times(x, grad_loss) for x in gradients))


def _times(
    x: Tensor,  # [...]
    factor: Tensor,  # []
) -> Tensor:  # [...]
    # A tensor without dimensions would be rounded to the dtype of x first. One with a dimension
    # makes torch multiply in float32, and round what it stores.
    return torch.mul(x, factor.float().reshape(1), out=torch.empty_like(x))
