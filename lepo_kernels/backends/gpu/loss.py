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

from typing import Any

import torch
from torch import Tensor

from lepo_kernels.backends.checks import check_ids, check_positive, check_rows
from lepo_kernels.backends.gpu.blocks import Rows, head_parts, may_wait, take_rows
from lepo_kernels.backends.gpu.head import statistics
from lepo_kernels.backends.gpu.loss_blocks import UsedRows, add_gradients
from lepo_kernels.backends.gpu.loss_gradients import LossGradients, Needs
from lepo_kernels.backends.gpu.row_kernels import RowKernels
from lepo_kernels.formulas.lepo_gradient import RowFacts
from lepo_kernels.formulas.lepo_objective import lepo_objective, used_rows

# Without gradients, chunks of the default size of `linear_log_probs`.
_CHUNK_BYTES = 256 << 20


def lepo_loss(
    kernels: RowKernels,
    hidden: Tensor,  # [N, D]
    lm_head: Tensor,  # [V, D]
    ids: Tensor,  # [N, K]
    weights: Tensor,  # [N, K]
    latent: Tensor,  # [N]
    advantages: Tensor,  # [N]
    row_weights: Tensor,  # [N]
    old_log_prob: Tensor | None,  # [N]
    ref_log_probs: Tensor | None,  # [N, K]
    bias: Tensor | None,  # [V]
    softcap: float | None,
    inv_temperature: Tensor,  # [N] or [1]
    beta: float,
    epsilon: float,
    epsilon_high: float,
    delta: float | None,
    latent_kl: str,
    need_dhidden: bool,
    need_dlm_head: bool,
    need_dbias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The fields of `LepoLoss`, then the gradients of hidden, lm_head and bias, or empty ones."""
    vocab = lm_head.shape[0]
    check_ids("ids", ids, vocab)
    check_positive("inv_temperature", inv_temperature)
    settings: dict[str, Any] = {
        "beta": beta,
        "epsilon": epsilon,
        "epsilon_high": epsilon_high,
        "delta": delta,
        "latent_kl": latent_kl,
    }
    facts = RowFacts(weights, latent, advantages, row_weights, old_log_prob, ref_log_probs)
    count = len(hidden)
    is_used = used_rows(advantages, row_weights, ref_log_probs)
    taken = is_used.nonzero()[:, 0] if may_wait(hidden) else None
    if taken is None:
        # What a row that is left out holds may be NaN: 0 times it would spread.
        hidden = hidden.masked_fill(~is_used[:, None], 0)
    used = UsedRows(
        Rows(
            take_rows(hidden, taken),
            take_rows(ids, taken).long().contiguous(),
            inv_temperature.contiguous()
            if len(inv_temperature) == 1
            else take_rows(inv_temperature, taken).contiguous(),
        ),
        facts if taken is None or len(taken) == count else facts.at(taken),
    )
    needs = Needs(need_dhidden, need_dlm_head, need_dbias)
    gradients = LossGradients(used.rows.hidden, lm_head, needs)
    if any(needs):
        part = next(head_parts([slice(0, vocab)], lm_head, bias, softcap))
        selected, lse = add_gradients(kernels, used, part, settings, gradients)
    else:
        chunk_size = max(1, _CHUNK_BYTES // (4 * vocab))
        selected, lse, _ = statistics(kernels, used.rows, lm_head, bias, softcap, chunk_size)
    selected, lse = (_put_rows(x, taken, count) for x in (selected, lse))
    check_rows("logits of hidden", lse)
    fields = lepo_objective(selected, lse, **facts._asdict(), **settings)
    dhidden = gradients.dhidden
    if need_dhidden:
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
    dhidden: Tensor,  # [N, D] or [0]
    dlm_head: Tensor,  # [V, D] or [0]
    dbias: Tensor,  # [V] or [0]
    hidden: Tensor,  # [N, D]
    lm_head: Tensor,  # [V, D]
    bias: Tensor | None,  # [V]
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of the loss times its own.

    Always multiplied, since to look whether its own gradient is 1 would be to wait for the GPU; and
    never in place, since a graph that is retained would be multiplied once more.
    """
    return _times(dhidden, grad_loss), _times(dlm_head, grad_loss), _times(dbias, grad_loss)


def _times(
    x: Tensor,  # [...]
    factor: Tensor,  # []
) -> Tensor:  # [...]
    # A tensor without dimensions would be rounded to the dtype of x first. One with a dimension
    # makes torch multiply in float32, and round what it stores.
    return torch.mul(x, factor.float().reshape(1), out=torch.empty_like(x))
