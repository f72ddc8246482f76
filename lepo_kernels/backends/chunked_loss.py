"""LEPO's loss with its gradients on a GPU: the head is multiplied three times, not four.

Contract: as `lepo_kernels.backends.chunked_head`, but logits are formed once, for a block of rows
over the whole vocabulary, and turned into their gradient as soon as the rows' statistics, and so
their part of the loss, are known. Without gradients to form it is chunked_head's forward pass. Loss
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

from typing import Any, NamedTuple

import torch
from torch import Tensor

from lepo_kernels.backends.chunked_head import (
    MOST_ROWS,
    HeadPart,
    RowKernels,
    Rows,
    States,
    add_product,
    even_slices,
    head_parts,
    may_wait,
    statistics,
    take_rows,
    wide_product,
)
from lepo_kernels.backends.reference.numerics import check_ids, check_positive, check_rows
from lepo_kernels.formulas.lepo_gradient import RowFacts, lepo_gradient
from lepo_kernels.formulas.lepo_objective import lepo_objective, used_rows

# Enough rows for the products to read the head at a fraction of the memory's rate, and for their
# time to hide what the host does for a block.
_BLOCK_BYTES = 512 << 20
_LEAST_ROWS = 1024
_MOST_BYTES = 3 << 30
# Without gradients, chunks of the default size of `linear_log_probs`.
_CHUNK_BYTES = 256 << 20
# Rows of a matrix begin at multiples of so many entries: products want aligned ones.
_ALIGNMENT = 64


class _Needs(NamedTuple):
    """Which gradients are wanted."""

    dhidden: bool
    dlm_head: bool
    dbias: bool


class _Used(NamedTuple):
    """The rows that take part."""

    rows: Rows
    facts: RowFacts

    def block(self, rows: slice) -> "_Used":
        return _Used(self.rows.block(rows), self.facts.at(rows))


class Sizes(NamedTuple):
    """Rows of which the logits, and of which the logits' gradients, are held at a time."""

    block: int
    kept: int


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
    used = _Used(
        Rows(
            take_rows(hidden, taken),
            take_rows(ids, taken).long().contiguous(),
            inv_temperature.contiguous()
            if len(inv_temperature) == 1
            else take_rows(inv_temperature, taken).contiguous(),
        ),
        facts if taken is None or len(taken) == count else facts.at(taken),
    )
    needs = _Needs(need_dhidden, need_dlm_head, need_dbias)
    gradients = _Gradients(used.rows.hidden, lm_head, needs)
    if any(needs):
        part = next(head_parts([slice(0, vocab)], lm_head, bias, softcap))
        selected, lse = _with_gradients(kernels, used, part, settings, gradients)
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


class _Gradients:
    """The gradients of hidden states, head and bias; empty where they are not wanted."""

    def __init__(
        self,
        hidden: Tensor,  # [M, D], the rows that are used
        lm_head: Tensor,  # [V, D]
        needs: _Needs,
    ) -> None:
        self.needs = needs
        self._hidden = hidden
        self._lm_head = lm_head
        # The head's, or their float32 sum; made when there is something to write.
        self._sum: Tensor | None = None
        self.dhidden = hidden.new_empty(hidden.shape if needs.dhidden else (0,))
        count = len(lm_head) if needs.dbias else 0
        self.dbias = hidden.new_zeros(count, dtype=torch.float32)

    def add(
        self,
        rows: slice,
        da: Tensor,  # [R, V], in the dtype of the hidden states
    ) -> None:
        """Add those of some of the rows."""
        if self.needs.dhidden:
            # Not straight to its dtype: a sum this long may be split, and its parts rounded.
            self.dhidden[rows] = wide_product(da, self._lm_head)
        if self.needs.dlm_head:
            self._add_to_head(rows, da)
        if self.needs.dbias:
            self.dbias += da.sum(dim=0, dtype=torch.float32)

    def _add_to_head(
        self,
        rows: slice,
        da: Tensor,  # [R, V]
    ) -> None:
        hidden = self._hidden[rows]
        if self._sum is not None:
            add_product(self._sum, da.T, hidden)
        elif len(hidden) == len(self._hidden):
            self._sum = torch.mm(da.T, hidden)
        else:
            self._sum = wide_product(da.T, hidden)

    def dlm_head(self) -> Tensor:  # [V, D] or [0]
        """The head's, rounded."""
        if not self.needs.dlm_head:
            return self._lm_head.new_empty(0)
        if self._sum is None:
            return self._lm_head.new_zeros(self._lm_head.shape)
        return self._sum.to(self._lm_head.dtype)


def _with_gradients(
    kernels: RowKernels,
    used: _Used,  # M rows
    head: HeadPart,  # the whole of it
    settings: dict[str, Any],
    gradients: _Gradients,
) -> tuple[Tensor, Tensor]:  # [M, K], [M]
    """Selected logits and log-sum-exp; adds the gradients of the loss."""
    hidden, ids, _ = used.rows
    selected = torch.zeros(ids.shape, dtype=torch.float32, device=ids.device)
    lse = selected.new_zeros(len(ids))
    (count, width), vocab = hidden.shape, len(head.weight)
    held = sizes(count, vocab, width, hidden.dtype, gradients.needs.dlm_head)
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
    used: _Used,  # M rows
    head: HeadPart,  # the whole of it
    settings: dict[str, Any],
    most: int,
    selected: Tensor,  # [M, K], written
    lse: Tensor,  # [M], written
) -> Tensor:  # [M, V], in the dtype of the hidden states
    """The gradients of the logits, of at most ``most`` rows at a time."""
    count, dtype = len(lse), used.rows.hidden.dtype
    blocks = even_slices(count, most, 1)
    logits = _matrix(blocks[0].stop, len(head.weight), torch.float32, lse.device)
    if dtype == torch.float32:
        assert len(blocks) == 1, "float32 gradients overwrite the logits"
        da = logits
    else:
        da = _matrix(count, len(head.weight), dtype, lse.device)
    for block in blocks:
        mine = used.block(block)
        x = logits[: len(mine.rows.ids)]
        selected[block], lse[block] = _form_logits(kernels, mine.rows, head, x)
        alpha, gamma = lepo_gradient(
            selected[block], lse[block], **mine.facts._asdict(), **settings
        )
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


def _matrix(
    rows: int,
    columns: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:  # [rows, columns], rows aligned
    stride = -(-columns // _ALIGNMENT) * _ALIGNMENT
    return torch.empty((rows, stride), dtype=dtype, device=device)[:, :columns]


def _put_rows(
    x: Tensor,  # [M, ...]
    rows: Tensor | None,  # [M]
    count: int,
) -> Tensor:  # [count, ...]
    """Zeros where no row was taken; None stands for all."""
    if rows is None or len(rows) == count:
        return x
    return x.new_zeros((count, *x.shape[1:])).index_copy_(0, rows, x)
