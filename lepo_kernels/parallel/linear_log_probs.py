"""`linear_log_probs` over a head of which each rank holds a part of the vocabulary.

Design note: each rank computes the selected logits, log-sum-exp and entropy of its part, and one
all-reduce of ``2 R + K`` numbers a row lets all ranks join them. With R ranks' ``lse_r``, ``H_r``:

    lse = log sum_r exp(lse_r),    p_r = exp(lse_r - lse),    H = sum_r p_r (H_r + lse - lse_r)

The gradient of a part's logits takes nothing of the other parts but the whole's ``lse`` and ``H``
(`lepo_kernels.ops.linear_log_probs`). So the gradients of the head stay where its rows are, and
those of the hidden states, which every rank has a part of, are all-reduced once.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lepo_kernels import dispatch
from lepo_kernels.backends.checks import check_ids, check_positive, check_rows
from lepo_kernels.ops._library import save, saved, torch_op
from lepo_kernels.ops.linear_log_probs import (
    LinearLogProbs,
    linear_log_probs_backward,
    prepare_head,
    prepare_selection,
    rows_at_a_time,
)
from lepo_kernels.parallel.collectives import exchange, sum_over_ranks
from lepo_kernels.parallel.shards import Ranks
from lepo_kernels.structures import Head, Needs, Selection, Statistics, Upstream


def vocab_parallel_linear_log_probs(
    hidden: Tensor,  # [N, D]
    lm_head: Tensor,  # [V_r, D]
    ids: Tensor,  # [N, K]
    *,
    group: "dist.ProcessGroup | None" = None,
    first_id: int | None = None,
    vocab_size: int | None = None,
    bias: Tensor | None = None,  # [V_r]
    softcap: float | None = None,
    inv_temperature: float | Tensor = 1.0,
    chunk_size: int | None = None,
    backend: str | None = None,
) -> LinearLogProbs:
    """`lepo_kernels.linear_log_probs` over a head whose rows are spread over a process group.

    Each rank passes the rows that it holds, in the order of the ranks, and all ranks pass the same
    ``hidden``, ``ids`` and options. All of them get the same results, those of the whole head. The
    gradients of ``lm_head`` and ``bias`` are those of the rank's rows; that of ``hidden`` is the
    whole one, on all ranks alike, if all ranks compute the same loss: it is not to be summed again.

    All ranks must call this, and the backward pass, in the same order, with the same inputs to be
    differentiated. Where ``first_id`` or ``vocab_size`` is None, the ranks talk to each other
    first, which waits for the device: a call that is wrong on one rank then raises on all. Where
    both are given, the others wait for it until the group's timeout.

    Args:
        hidden: [N, D] as `lepo_kernels.linear_log_probs` takes it; the same on all ranks.
        lm_head: [V_r, D] the rank's rows; V_r may differ between ranks, and may be 0.
        ids: [N, K] ids of the whole vocabulary; the same on all ranks.
        group: the ranks; None takes the default group.
        first_id: the vocabulary id of the rank's first row; all ranks give theirs, or none does.
            Needed in a compiled graph.
        vocab_size: how large the vocabulary is: rows from there on are padding, and have gradients
            of 0. None takes all rows. Needed in a compiled graph.
        bias: [V_r] the rank's entries.
        softcap, inv_temperature, chunk_size, backend: as there; the same on all ranks.

    Returns:
        A `LinearLogProbs`, the same on all ranks.

    Raises:
        TypeError, ValueError: an argument has the wrong dtype, shape, device or range, here or on
            another rank; there is no process group.
        ValueError, IndexError: a row's logits or an id are bad; see `linear_log_probs`.
        RuntimeError: a second or forward-mode derivative is asked for.
    """
    ranks = Ranks(group, first_id, vocab_size)

    def check() -> tuple[Head, Selection, int, str]:
        head = prepare_head(hidden, lm_head, bias, softcap, least_rows=0)
        selection = prepare_selection(head, ids, inv_temperature)
        chosen = dispatch.resolve("linear_log_probs", hidden.device, backend, head.hidden.dtype)
        return head, selection, rows_at_a_time(chunk_size, head), chosen

    head, selection, chunk, chosen = ranks.prepare(check)
    shard = ranks.locate(
        lm_head.shape[0],
        {
            "hidden.shape": tuple(hidden.shape),
            "hidden.dtype": head.hidden.dtype,
            "hidden takes a gradient": head.hidden.requires_grad and torch.is_grad_enabled(),
            "ids.shape": tuple(ids.shape),
            "softcap": head.softcap,
        },
    )
    return _linear_log_probs(
        head.columns(shard.rows),
        selection,
        chunk,
        shard.first_id,
        shard.vocab_size,
        shard.group,
        chosen,
    )


def _computed(
    head: Head,
    selection: Selection,
    chunk_size: int,
    first_id: int,
    vocab_size: int,
    group: str,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    # What the ranks have in common is checked before they wait for each other: it raises on all.
    ids, inv_temperature = selection.ids, selection.inv_temperature
    check_ids("ids", ids, vocab_size)
    check_positive("inv_temperature", inv_temperature)
    own, elsewhere = _own_ids(ids, first_id, head.lm_head.shape[0])
    if head.lm_head.shape[0] == 0:
        selected = inv_temperature.new_zeros(ids.shape)
        lse, entropy = selected.new_full((2, ids.shape[0]), -torch.inf)
        entropy.zero_()
    else:
        selected, lse, entropy = dispatch.load("linear_log_probs", backend)(
            head, Selection(own, inv_temperature), chunk_size, True
        )
        selected.masked_fill_(elsewhere, 0)
    of_ranks, logits = exchange(torch.stack((lse, entropy)), selected.T, group)
    lse, entropy = (x.to(selected.dtype) for x in _joined(*of_ranks.double().unbind(dim=1)))
    check_rows("logits of hidden", lse)
    return logits.T.contiguous(), lse, entropy


@torch_op("vocab_parallel_linear_log_probs", _computed)
def _linear_log_probs(
    head: Head,
    selection: Selection,
    chunk_size: int,
    first_id: int,
    vocab_size: int,
    group: str,
    backend: str,
) -> LinearLogProbs:
    selected = selection.inv_temperature.new_empty(selection.ids.shape)
    lse, entropy = (selected.new_empty(selected.shape[0]) for _ in range(2))
    return LinearLogProbs(selected, lse, entropy)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: LinearLogProbs) -> None:
    head, selection, chunk_size, first_id, _, group, backend = inputs
    save(ctx, head, selection, Statistics(*output[1:]), chunk_size, first_id, group, backend)


def _backward(ctx: Any, *grads: Tensor) -> dict[str, Tensor]:
    head, selection, statistics, chunk_size, first_id, group, backend = saved(ctx)
    needs = Needs(*_linear_log_probs.needs(ctx, "hidden", "lm_head", "bias"))
    own, elsewhere = _own_ids(selection.ids, first_id, head.lm_head.shape[0])
    gradients: tuple[Tensor, ...]
    if head.lm_head.shape[0] == 0:
        gradients = tuple(map(torch.zeros_like, (head.hidden, head.lm_head, head.lm_head[:, 0])))
    else:
        grad_logits, grad_lse, grad_entropy = grads
        upstream = Upstream(grad_logits.masked_fill(elsewhere, 0), grad_lse, grad_entropy)
        selection = selection._replace(ids=own)
        gradients = linear_log_probs_backward(
            upstream, head, selection, statistics, chunk_size, needs, backend
        )
    dhidden, dlm_head, dbias = gradients
    if needs.need_dhidden:
        dhidden = sum_over_ranks(dhidden, group)
    return {"hidden": dhidden, "lm_head": dlm_head, "bias": dbias}


_linear_log_probs.register_autograd(_backward, _setup)


def _own_ids(
    ids: Tensor,  # [N, K], of the whole vocabulary
    first_id: int,
    rows: int,
) -> tuple[Tensor, Tensor]:  # [N, K], [N, K] bool
    """The rows of this rank that are selected, 0 in place of another rank's, and which are so."""
    own = ids.long() - first_id
    elsewhere = (own < 0) | (own >= rows)
    return own.masked_fill_(elsewhere, 0), elsewhere


def _joined(
    lses: Tensor,  # [R, N] float64, of each rank's part
    entropies: Tensor,  # [R, N] float64
) -> tuple[Tensor, Tensor]:  # [N], [N]
    """Log-sum-exp and entropy of the whole; NaN in a row that is all -inf, or has a bad part."""
    lse = lses.logsumexp(dim=0)
    share = (lses - lse).exp()
    surprise = (lse - lses).masked_fill(share == 0, 0)
    entropy = (share * (entropies + surprise)).sum(dim=0)
    return lse.masked_fill(lse == -torch.inf, torch.nan), entropy
