"""`linear_gumbel_softmax_embedding` over head and table, of which each rank has a part of the ids.

Design note: as `lepo_kernels.parallel.gumbel_softmax_embedding`, whose collectives these are, but
each rank forms the logits of its part from hidden states that all ranks have. So the backward pass
all-reduces the gradient of those, once.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lepo_kernels import dispatch
from lepo_kernels.ops._library import torch_op
from lepo_kernels.ops.gumbel_softmax_embedding import GumbelSoftmaxEmbedding
from lepo_kernels.ops.linear_log_probs import Head, prepare_head, rows_at_a_time
from lepo_kernels.parallel.mixtures import (
    NOISE_UNIT,
    Noise,
    check_values,
    fake_joined,
    join,
    outputs_of_nothing,
    prepare_noise,
)
from lepo_kernels.parallel.shards import Ranks
from lepo_kernels.validation import FLOAT_DTYPES, MAX_IDS, check_integer, check_tensor


def vocab_parallel_linear_gumbel_softmax_embedding(
    hidden: Tensor,  # [N, Dh]
    lm_head: Tensor,  # [V_r, Dh]
    embedding: Tensor | None,  # [V_r, D]
    tau: float | Tensor,
    *,
    group: "dist.ProcessGroup | None" = None,
    first_id: int | None = None,
    vocab_size: int | None = None,
    bias: Tensor | None = None,  # [V_r]
    softcap: float | None = None,
    temperature: float | Tensor = 1.0,
    seed: int | Tensor = 0,
    row_keys: Tensor | None = None,  # [N]
    step: int | Tensor = 0,
    chunk_size: int | None = None,
    backend: str | None = None,
) -> GumbelSoftmaxEmbedding:
    """`lepo_kernels.linear_gumbel_softmax_embedding` over a vocabulary spread over a process group.

    Each rank passes its rows of head and table, in the order of the ranks; ``hidden`` and the
    options are the same on all ranks, and so are the results, those of the whole vocabulary. The
    gradients of ``lm_head``, ``bias`` and ``embedding`` are those of the rank's rows; that of
    ``hidden`` is the whole one, on all ranks alike, if all ranks compute the same loss. What
    `vocab_parallel_linear_log_probs` says of calls that differ between ranks holds here, too.

    Args:
        hidden: [N, Dh] as `lepo_kernels.linear_gumbel_softmax_embedding` takes it.
        lm_head: [V_r, Dh] the rank's rows; V_r may differ between ranks, and may be 0. Every rank
            but the last that holds any has a multiple of 4.
        embedding: [V_r, D] the rank's rows; None takes ``lm_head``.
        bias: [V_r] the rank's entries.
        tau, softcap, temperature, seed, row_keys, step, chunk_size, backend: as there; the same on
            all ranks.
        group, first_id, vocab_size: see `vocab_parallel_linear_log_probs`; ``first_id`` is a
            multiple of 4.

    Returns:
        A `GumbelSoftmaxEmbedding`, the same on all ranks.

    Raises:
        TypeError, ValueError: an argument has the wrong dtype, shape, device or range, here or on
            another rank; there is no process group.
        ValueError: a row's logits are bad; see `lepo_kernels.linear_gumbel_softmax_embedding`.
        RuntimeError: a second or forward-mode derivative is asked for.
    """
    ranks = Ranks(group, first_id, vocab_size, unit=NOISE_UNIT)

    def check() -> tuple[Head, Noise, int, str]:
        head = prepare_head(hidden, lm_head, bias, softcap, least_rows=0)
        if embedding is not None:
            check_tensor(
                "embedding", embedding, (lm_head.shape[0], "D"), FLOAT_DTYPES, hidden.device
            )
        noise = prepare_noise(head.hidden, tau, temperature, seed, row_keys, step)
        table = head.lm_head if embedding is None else embedding
        chosen = dispatch.resolve(
            "linear_gumbel_softmax_embedding",
            hidden.device,
            backend,
            head.hidden.dtype,
            table.dtype,
        )
        return head, noise, rows_at_a_time(chunk_size, head), chosen

    head, noise, chunk, chosen = ranks.prepare(check)
    table = head.lm_head if embedding is None else embedding
    inputs = (head.hidden, head.lm_head, head.bias)
    need_deviation = torch.is_grad_enabled() and any(
        x is not None and x.requires_grad for x in inputs
    )
    shard = ranks.locate(
        lm_head.shape[0],
        {
            "hidden.shape": tuple(hidden.shape),
            "hidden.dtype": head.hidden.dtype,
            "hidden takes a gradient": torch.is_grad_enabled() and head.hidden.requires_grad,
            "logits take a gradient": need_deviation,
            "embedding.shape[1]": table.shape[1],
            "embedding.dtype": table.dtype,
            "softcap": head.softcap,
        },
    )
    check_integer("vocab_size", shard.vocab_size, 1, MAX_IDS)
    mixed, log_prob, log_density, _, _ = (
        torch.ops.lepo_kernels.vocab_parallel_linear_gumbel_softmax_embedding(
            head.hidden,
            head.lm_head[: shard.rows],
            None if embedding is None else embedding[: shard.rows],
            None if head.bias is None else head.bias[: shard.rows],
            head.softcap,
            *noise,
            shard.first_id,
            chunk,
            shard.group,
            need_deviation,
            chosen,
        )
    )
    return GumbelSoftmaxEmbedding(mixed.to(table.dtype), log_prob, log_density)


@torch_op("vocab_parallel_linear_gumbel_softmax_embedding")
def _linear_gumbel_softmax_embedding(
    hidden: Tensor,  # [N, Dh]
    lm_head: Tensor,  # [V_r, Dh]
    embedding: Tensor | None,  # [V_r, D]; None: lm_head
    bias: Tensor | None,  # [V_r]
    softcap: float | None,
    tau: Tensor,  # [N] or [1]
    temperature: Tensor,  # [N] or [1]
    seed: Tensor,  # []
    row_keys: Tensor,  # [N]
    step: Tensor,  # [N] or [1]
    first_id: int,
    chunk_size: int,
    group: str,
    need_deviation: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As ``torch.ops.lepo_kernels.vocab_parallel_gumbel_softmax_embedding`` of the logits."""
    check_values(tau, temperature, step)
    if lm_head.shape[0] == 0:
        part = outputs_of_nothing(hidden, lm_head if embedding is None else embedding)
    else:
        part = dispatch.load("linear_gumbel_softmax_embedding", backend)(
            hidden,
            lm_head,
            embedding,
            bias,
            softcap,
            tau,
            temperature,
            seed,
            row_keys,
            step,
            first_id,
            chunk_size,
            True,
        )
    return join("logits of hidden", part, tau, group, need_deviation)


@_linear_gumbel_softmax_embedding.register_fake
def _(
    hidden: Tensor,
    lm_head: Tensor,
    embedding: Tensor | None,
    bias: Tensor | None,
    softcap: float | None,
    tau: Tensor,
    temperature: Tensor,
    seed: Tensor,
    row_keys: Tensor,
    step: Tensor,
    first_id: int,
    chunk_size: int,
    group: str,
    need_deviation: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return fake_joined(hidden, lm_head if embedding is None else embedding, need_deviation)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    hidden, lm_head, embedding, bias, ctx.softcap, *noise = inputs[:10]
    ctx.first_id, ctx.chunk_size, ctx.group, ctx.need_deviation, ctx.backend = inputs[10:]
    mixed, _, _, deviation, statistics = output
    ctx.mark_non_differentiable(deviation, statistics)
    ctx.save_for_backward(hidden, lm_head, embedding, bias, *noise, mixed, deviation, statistics)


def _backward(
    ctx: Any, grad_embedding: Tensor, grad_log_prob: Tensor, grad_log_density: Tensor, *_: Tensor
) -> tuple[Tensor | None, ...]:
    hidden, lm_head, embedding, bias, *noise, mixed, deviation, statistics = ctx.saved_tensors
    need_dhidden, need_dlm_head, need_dembedding, need_dbias = ctx.needs_input_grad[:4]
    if lm_head.shape[0] == 0:
        table = lm_head if embedding is None else embedding
        dhidden, dlm_head, dbias, dembedding = (
            torch.zeros_like(x) for x in (hidden, lm_head, lm_head[:, 0], table)
        )
    else:
        dhidden, dlm_head, dbias, dembedding = (
            torch.ops.lepo_kernels.linear_gumbel_softmax_embedding_backward(
                grad_embedding,
                grad_log_prob,
                grad_log_density,
                hidden,
                lm_head,
                embedding,
                bias,
                ctx.softcap,
                *noise,
                ctx.first_id,
                ctx.chunk_size,
                mixed,
                # Read for the gradient of the logits alone.
                deviation if ctx.need_deviation else mixed,
                statistics,
                need_dhidden,
                need_dlm_head,
                need_dbias,
                need_dembedding,
                ctx.backend,
            )
        )
    if need_dhidden:
        dhidden = torch.ops.lepo_kernels.sum_over_ranks(dhidden, ctx.group)
    return (
        dhidden if need_dhidden else None,
        dlm_head if need_dlm_head else None,
        dembedding if need_dembedding else None,
        dbias if need_dbias else None,
        *(None,) * 11,
    )


_linear_gumbel_softmax_embedding.register_autograd(_backward, setup_context=_setup)
