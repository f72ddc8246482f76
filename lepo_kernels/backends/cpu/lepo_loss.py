"""CPU kernel of LEPO's loss with its gradients: torch's matrix products, csrc/cpu between them.

Contract: as `linear_log_probs`, but the logits of a block of rows over the whole vocabulary are
held in float32 (48 MiB, or those of 128 rows), and turned into their gradient in place once the
loss of the rows is known; so the head is multiplied three times, not four. The head's gradient is
summed in float32 over the blocks and rounded once; in bfloat16 and float16 that sum needs [V, D]
numbers. Rows that are left out are dropped first, and cost nothing. Loss and metrics are those of
`lepo_objective` on the selected logits. Deterministic.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from lepo_kernels.backends.checks import check_ids, check_positive, check_rows
from lepo_kernels.backends.cpu.linear_log_probs import (
    HeadPart,
    head_parts,
    new_state,
    statistics,
)
from lepo_kernels.backends.rows import per_row
from lepo_kernels.formulas.lepo_gradient import RowFacts, lepo_gradient
from lepo_kernels.formulas.lepo_objective import lepo_objective, used_rows

_BLOCK_BYTES = 48 << 20
# Fewer rows than that would slow the products down.
_LEAST_ROWS = 128
# Wider than where the logits are formed twice: products that write rows with gaps want it.
_COLUMNS = 8192


def lepo_loss(
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
    check_ids("ids", ids, lm_head.shape[0])
    check_positive("inv_temperature", inv_temperature)
    settings: dict[str, Any] = {
        "beta": beta,
        "epsilon": epsilon,
        "epsilon_high": epsilon_high,
        "delta": delta,
        "latent_kl": latent_kl,
    }
    facts = RowFacts(weights, latent, advantages, row_weights, old_log_prob, ref_log_probs)
    used = used_rows(advantages, row_weights, ref_log_probs).nonzero()[:, 0]
    head = _Head(lm_head, bias, softcap)
    rows = _Rows(
        _take(hidden, used).float(),
        _take(ids, used).long().contiguous(),
        per_row(inv_temperature, used).contiguous(),
        facts.at(used),
    )
    gradients = _Gradients(rows.hidden, lm_head, need_dhidden, need_dlm_head, need_dbias)
    if need_dhidden or need_dlm_head or need_dbias:
        selected, lse = _with_gradients(rows, head, settings, gradients)
    else:
        selected, lse = _without_gradients(rows, head)
    all_selected = torch.zeros(ids.shape, dtype=torch.float32).index_copy_(0, used, selected)
    all_lse = torch.zeros(len(ids), dtype=torch.float32).index_copy_(0, used, lse)
    check_rows("logits of hidden", all_lse)
    fields = lepo_objective(all_selected, all_lse, **facts._asdict(), **settings)
    dhidden = hidden.new_zeros(hidden.shape if need_dhidden else (0,))
    if need_dhidden:
        dhidden[used] = gradients.dhidden.to(hidden.dtype)
    return (
        *fields,
        dhidden,
        gradients.dlm_head.to(lm_head.dtype),
        gradients.dbias.to(lm_head.dtype),
    )


def lepo_loss_backward(
    grad_loss: Tensor,  # []
    dhidden: Tensor,  # [N, D] or [0]
    dlm_head: Tensor,  # [V, D] or [0]
    dbias: Tensor,  # [V] or [0]
    hidden: Tensor,  # [N, D]
    lm_head: Tensor,  # [V, D]
    bias: Tensor | None,  # [V]
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of the loss times its own."""
    return dhidden * grad_loss, dlm_head * grad_loss, dbias * grad_loss


class _Head(NamedTuple):
    lm_head: Tensor  # [V, D]
    bias: Tensor | None  # [V]
    softcap: float | None


class _Rows(NamedTuple):
    """The rows that are used."""

    hidden: Tensor  # [M, D] float32
    ids: Tensor  # [M, K] int64
    inv_temperature: Tensor  # [M] or [1]
    facts: RowFacts

    def block(self, rows: slice) -> "_Rows":
        return _Rows(
            self.hidden[rows],
            self.ids[rows],
            per_row(self.inv_temperature, rows),
            self.facts.at(rows),
        )


class _Gradients:
    """Sums over blocks of rows, in float32; empty where they are not wanted."""

    def __init__(
        self,
        hidden: Tensor,  # [M, D]
        lm_head: Tensor,  # [V, D]
        need_dhidden: bool,
        need_dlm_head: bool,
        need_dbias: bool,
    ) -> None:
        self.needs = (need_dhidden, need_dlm_head, need_dbias)
        self.dhidden = torch.zeros(hidden.shape if need_dhidden else (0,), dtype=torch.float32)
        # The first block writes it: no need to touch so much memory before.
        make = torch.empty if len(hidden) else torch.zeros
        self.dlm_head = make(lm_head.shape if need_dlm_head else (0,), dtype=torch.float32)
        self.dbias = torch.zeros(len(lm_head) if need_dbias else 0, dtype=torch.float32)

    def add(
        self,
        rows: slice,
        hidden: Tensor,  # [R, D]
        part: HeadPart,
        da: Tensor,  # [R, C]
    ) -> None:
        need_dhidden, need_dlm_head, need_dbias = self.needs
        if need_dhidden:
            self.dhidden[rows].addmm_(da, part.weight)
        if need_dlm_head:
            self.dlm_head[part.columns].addmm_(da.T, hidden, beta=float(rows.start > 0))
        if need_dbias:
            self.dbias[part.columns] += da.sum(dim=0)


def _take(x: Tensor, rows: Tensor) -> Tensor:
    return x if len(rows) == len(x) else x[rows]


def _without_gradients(rows: _Rows, head: _Head) -> tuple[Tensor, Tensor]:  # [M, K], [M]
    """Selected logits and log-sum-exp, as in `linear_log_probs`."""
    chunk_size = max(1, _BLOCK_BYTES // (4 * len(head.lm_head)))
    selected, lse, _ = statistics(
        rows.hidden,
        head.lm_head,
        rows.ids,
        head.bias,
        head.softcap,
        rows.inv_temperature,
        chunk_size,
    )
    return selected, lse


def _with_gradients(
    rows: _Rows, head: _Head, settings: dict[str, Any], gradients: _Gradients
) -> tuple[Tensor, Tensor]:  # [M, K], [M]
    """The same, and adds the gradients of the loss."""
    count, vocab = len(rows.hidden), len(head.lm_head)
    selected, lse = (
        torch.zeros(rows.ids.shape, dtype=torch.float32),
        torch.zeros(count, dtype=torch.float32),
    )
    most = max(_LEAST_ROWS, _BLOCK_BYTES // (4 * vocab))
    # Blocks of like size: a short last one would waste the products' speed.
    size = -(-count // max(1, -(-count // most)))
    buffer = torch.empty(size * vocab, dtype=torch.float32)
    for first in range(0, count, max(1, size)):
        span = slice(first, min(first + size, count))
        block = rows.block(span)
        logits = buffer[: len(block.hidden) * vocab].view(-1, vocab)
        lse[span] = _fill(logits, block, head, selected[span])
        alpha, gamma = lepo_gradient(selected[span], lse[span], **block.facts._asdict(), **settings)
        zero = torch.zeros_like(gamma)
        for part in head_parts(head.lm_head, head.bias, _COLUMNS):
            da = logits[:, part.columns]
            torch.ops.lepo_kernels_cpu.logit_gradient_(
                da,
                part.bias,
                head.softcap or 0.0,
                block.inv_temperature,
                block.ids,
                part.columns.start,
                alpha,
                gamma,
                zero,
                lse[span],
                zero,
            )
            gradients.add(span, block.hidden, part, da)
    return selected, lse


def _fill(
    logits: Tensor,  # [R, V], written
    block: _Rows,
    head: _Head,
    selected: Tensor,  # [R, K], written
) -> Tensor:  # [R]
    """The raw logits of a block, and their log-sum-exp."""
    state = new_state(len(logits))
    for part in head_parts(head.lm_head, head.bias, _COLUMNS):
        torch.ops.lepo_kernels_cpu.summarise_logits(
            torch.mm(block.hidden, part.weight.T, out=logits[:, part.columns]),
            part.bias,
            head.softcap or 0.0,
            block.inv_temperature,
            block.ids,
            part.columns.start,
            state,
            selected,
        )
    lse: Tensor = torch.ops.lepo_kernels_cpu.statistics_of(state)[0]
    return lse
