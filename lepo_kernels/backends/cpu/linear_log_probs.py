"""CPU kernels of selected log-probabilities: torch's matrix products, and csrc/cpu between them.

Contract: the logits are float32 products of float32 numbers, whatever the dtype of the inputs (a
head in bfloat16 or float16 is widened a part at a time: exact, and no slower here than products in
its own dtype). They are formed for a part of the vocabulary and a block of rows at a time, in one
buffer that stays in the cache, and read once while they are there; the backward pass forms them
again. No more logits are held at a time than ``chunk_size`` rows have. Sums over the vocabulary run
in its order, and do not depend on the number of rows. Gradients are summed in float32 and rounded
once. Rows whose upstream gradients are all zero are dropped from the backward pass. Deterministic.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from lepo_kernels.backends.checks import check_ids, check_positive, check_rows
from lepo_kernels.backends.rows import active_rows, fill_empty_sums, per_row

# The products of a part of the vocabulary run at full speed from here on.
_COLUMNS = 2048
# 8 MiB of logits.
_BUFFER_ENTRIES = 1 << 21


class HeadPart(NamedTuple):
    """The part of a language-model head that belongs to ``columns`` of the vocabulary."""

    columns: slice
    weight: Tensor  # [C, D] float32; valid until the next part is taken
    bias: Tensor | None  # [C] float32


def head_parts(
    lm_head: Tensor,  # [V, D]
    bias: Tensor | None,  # [V]
    size: int = _COLUMNS,
) -> Iterator[HeadPart]:
    """Cut a head into parts of ``size`` entries, a multiple of 1024 (csrc's unit of summation)."""
    wide = None if bias is None else bias.float().contiguous()
    buffer = None
    if lm_head.dtype != torch.float32:
        buffer = lm_head.new_empty((min(size, len(lm_head)), lm_head.shape[1]), dtype=torch.float32)
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

    def __init__(self, rows: int, vocab: int, chunk_size: int) -> None:
        width = min(vocab, _COLUMNS)
        size = max(1, min(rows, min(_BUFFER_ENTRIES, chunk_size * vocab) // width))
        self.blocks = [slice(r, min(r + size, rows)) for r in range(0, rows, size)]
        self.entries = size * width
        self._buffer = Buffer(self.entries)

    def logits(
        self,
        hidden: Tensor,  # [R, D]
        weight: Tensor,  # [C, D]
    ) -> Tensor:  # [R, C], valid until the next call
        """``hidden @ weight^T``."""
        return torch.mm(hidden, weight.T, out=self._buffer.matrix(len(hidden), len(weight)))


class HeadGradient:
    """A part at a time of a head's gradient, in float32: the result itself, or a buffer for it."""

    def __init__(
        self,
        result: Tensor,  # [V, D], written part by part; [0] if it is not wanted
    ) -> None:
        self._result = result
        self._buffer = None
        if result.dtype != torch.float32:
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
    return torch.tensor([-torch.inf, 0.0, 0.0], dtype=torch.float64).repeat(rows, 1)


def linear_log_probs(
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
    outputs = statistics(
        hidden.float(),
        lm_head,
        ids.long().contiguous(),
        bias,
        softcap,
        inv_temperature.contiguous(),
        chunk_size,
        shard=shard,
    )
    if not shard:
        check_rows("logits of hidden", outputs[1])
    return outputs


def statistics(
    hidden: Tensor,  # [N, D] float32
    lm_head: Tensor,  # [V, D]
    ids: Tensor,  # [N, K] int64
    bias: Tensor | None,  # [V]
    softcap: float | None,
    inv_temperature: Tensor,  # [N] or [1]
    chunk_size: int,
    shard: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:  # [N, K], [N], [N]
    """`linear_log_probs` without its checks."""
    selected = torch.zeros(ids.shape, dtype=torch.float32)
    state = new_state(len(hidden))
    work = RowBlocks(len(hidden), len(lm_head), chunk_size)
    for part in head_parts(lm_head, bias):
        for rows in work.blocks:
            torch.ops.lepo_kernels_cpu.summarise_logits(
                work.logits(hidden[rows], part.weight),
                part.bias,
                softcap or 0.0,
                per_row(inv_temperature, rows),
                ids[rows],
                part.columns.start,
                state[rows],
                selected[rows],
            )
    lse, entropy = torch.ops.lepo_kernels_cpu.statistics_of(state)
    if shard:
        fill_empty_sums(lse, entropy, state[:, 1] == 0)
    return selected, lse, entropy


def linear_log_probs_backward(
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
    active = active_rows(grad_logits, grad_lse, grad_entropy)
    dhidden = hidden.new_zeros(hidden.shape if need_dhidden else (0,))
    dlm_head = torch.empty(lm_head.shape if need_dlm_head else (0,), dtype=lm_head.dtype)
    dbias = torch.zeros(len(lm_head) if need_dbias else 0, dtype=torch.float32)
    if len(active) == 0:
        return dhidden, dlm_head.zero_(), dbias.to(lm_head.dtype)
    inv_temperature = per_row(inv_temperature, active).contiguous()
    per_row_inputs = (ids.long(), grad_logits, grad_lse, grad_entropy, lse, entropy)
    ids, alpha, gamma, eta, lse, entropy = (x[active] for x in per_row_inputs)
    inputs = (hidden if len(active) == len(hidden) else hidden[active]).float()
    dinputs = torch.zeros(inputs.shape if need_dhidden else (0,), dtype=torch.float32)
    work = RowBlocks(len(active), len(lm_head), chunk_size)
    gradients = HeadGradient(dlm_head)
    for part in head_parts(lm_head, bias):
        dweight = gradients.take(part.columns)
        for rows in work.blocks:
            da = work.logits(inputs[rows], part.weight)
            torch.ops.lepo_kernels_cpu.logit_gradient_(
                da,
                part.bias,
                softcap or 0.0,
                per_row(inv_temperature, rows),
                ids[rows],
                part.columns.start,
                alpha[rows],
                gamma[rows],
                eta[rows],
                lse[rows],
                entropy[rows],
            )
            if need_dhidden:
                dinputs[rows].addmm_(da, part.weight)
            if need_dlm_head:
                dweight.addmm_(da.T, inputs[rows], beta=float(rows.start > 0))
            if need_dbias:
                dbias[part.columns] += da.sum(dim=0)
        gradients.put(part.columns, dweight)
    if need_dhidden:
        dhidden[active] = dinputs.to(hidden.dtype)
    return dhidden, dlm_head, dbias.to(lm_head.dtype)


def gather_log_probs(
    logits: Tensor,  # [N, V]
    ids: Tensor,  # [N, K]
    inv_temperature: Tensor,  # [N] or [1]
) -> tuple[Tensor, Tensor, Tensor]:  # [N, K], [N], [N]
    """Selected logits, log-sum-exp and entropy of ``logits / T``."""
    check_ids("ids", ids, logits.shape[1])
    check_positive("inv_temperature", inv_temperature)
    outputs: tuple[Tensor, Tensor, Tensor] = torch.ops.lepo_kernels_cpu.gather_log_probs(
        _dense_rows(logits), ids.long().contiguous(), inv_temperature.contiguous()
    )
    check_rows("logits", outputs[1])
    return outputs


def gather_log_probs_backward(
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
    dlogits: Tensor = torch.ops.lepo_kernels_cpu.gather_log_probs_backward(
        grad_logits.contiguous(),
        grad_lse.contiguous(),
        grad_entropy.contiguous(),
        _dense_rows(logits),
        ids.long().contiguous(),
        inv_temperature.contiguous(),
        lse.contiguous(),
        entropy.contiguous(),
    )
    return dlogits


def _dense_rows(logits: Tensor) -> Tensor:  # [N, V], rows of any stride
    return logits if logits.stride(1) == 1 else logits.contiguous()
