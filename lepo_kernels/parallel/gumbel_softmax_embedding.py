"""`gumbel_softmax_embedding` over a vocabulary of which each rank has a part of logits and table.

Design note: noise goes by vocabulary id, so the ranks draw that of the whole. Each mixes its part;
one all-reduce of ``9 R`` float64 numbers a row tells all ranks how much each part weighs, as the op
in `lepo_kernels.ops.gumbel_softmax_embedding` has it, and one more adds up the mixtures: [N, D], or
twice that where the logits take a gradient. The rank that holds a row's peak then knows what the
others mix without it, which is lost in the sum where the peak weighs nearly all.

The backward pass needs no collective: upstream gradients, mixtures and statistics of the whole are
on all ranks, and the gradients of logits and table are wanted where those are.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lepo_kernels import dispatch
from lepo_kernels.ops._library import torch_op
from lepo_kernels.ops.gumbel_softmax_embedding import GumbelSoftmaxEmbedding
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


def vocab_parallel_gumbel_softmax_embedding(
    logits: Tensor,  # [N, V_r]
    embedding: Tensor,  # [V_r, D]
    tau: float | Tensor,
    *,
    group: "dist.ProcessGroup | None" = None,
    first_id: int | None = None,
    vocab_size: int | None = None,
    temperature: float | Tensor = 1.0,
    seed: int | Tensor = 0,
    row_keys: Tensor | None = None,  # [N]
    step: int | Tensor = 0,
    backend: str | None = None,
) -> GumbelSoftmaxEmbedding:
    """`lepo_kernels.gumbel_softmax_embedding` over a vocabulary spread over a process group.

    Each rank passes its columns of the logits and its rows of the table, in the order of the ranks;
    the options are the same on all ranks, and so are the results, those of the whole vocabulary.
    The gradients are those of the rank's part, if all ranks compute the same loss. What
    `vocab_parallel_linear_log_probs` says of calls that differ between ranks holds here, too.

    Args:
        logits: [N, V_r] as `lepo_kernels.gumbel_softmax_embedding` takes them; V_r may differ
            between ranks, and may be 0. Every rank but the last that holds any has a multiple of 4.
        embedding: [V_r, D] the rank's rows.
        tau, temperature, seed, row_keys, step, backend: as there; the same on all ranks.
        group, first_id, vocab_size: see `vocab_parallel_linear_log_probs`; ``first_id`` is a
            multiple of 4.

    Returns:
        A `GumbelSoftmaxEmbedding`, the same on all ranks.

    Raises:
        TypeError, ValueError: an argument has the wrong dtype, shape, device or range, here or on
            another rank; there is no process group.
        ValueError: a row of logits is bad; see `lepo_kernels.gumbel_softmax_embedding`.
        RuntimeError: a second or forward-mode derivative is asked for.
    """
    ranks = Ranks(group, first_id, vocab_size, unit=NOISE_UNIT)

    def check() -> tuple[Noise, str]:
        check_tensor("logits", logits, ("N", "V"), FLOAT_DTYPES)
        width, device = logits.shape[1], logits.device
        check_tensor("embedding", embedding, (width, "D"), FLOAT_DTYPES, device)
        noise = prepare_noise(logits, tau, temperature, seed, row_keys, step)
        op, dtypes = "gumbel_softmax_embedding", (logits.dtype, embedding.dtype)
        return noise, dispatch.resolve(op, device, backend, *dtypes)

    noise, chosen = ranks.prepare(check)
    need_deviation = logits.requires_grad and torch.is_grad_enabled()
    shard = ranks.locate(
        logits.shape[1],
        {
            "logits.shape[0]": logits.shape[0],
            "logits.dtype": logits.dtype,
            "logits take a gradient": need_deviation,
            "embedding.shape[1]": embedding.shape[1],
            "embedding.dtype": embedding.dtype,
        },
    )
    check_integer("vocab_size", shard.vocab_size, 1, MAX_IDS)
    mixed, log_prob, log_density, _, _ = (
        torch.ops.lepo_kernels.vocab_parallel_gumbel_softmax_embedding(
            logits[:, : shard.rows],
            embedding[: shard.rows],
            *noise,
            shard.first_id,
            shard.group,
            need_deviation,
            chosen,
        )
    )
    return GumbelSoftmaxEmbedding(mixed.to(embedding.dtype), log_prob, log_density)


@torch_op("vocab_parallel_gumbel_softmax_embedding")
def _gumbel_softmax_embedding(
    logits: Tensor,  # [N, V_r]
    embedding: Tensor,  # [V_r, D]
    tau: Tensor,  # [N] or [1]
    temperature: Tensor,  # [N] or [1]
    seed: Tensor,  # []
    row_keys: Tensor,  # [N]
    step: Tensor,  # [N] or [1]
    first_id: int,
    group: str,
    need_deviation: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As ``torch.ops.lepo_kernels.gumbel_softmax_embedding``, but see `join`."""
    check_values(tau, temperature, step)
    if logits.shape[1] == 0:
        part = outputs_of_nothing(logits, embedding)
    else:
        part = dispatch.load("gumbel_softmax_embedding", backend)(
            logits, embedding, tau, temperature, seed, row_keys, step, first_id, True
        )
    return join("logits", part, tau, group, need_deviation)


@_gumbel_softmax_embedding.register_fake
def _(
    logits: Tensor,
    embedding: Tensor,
    tau: Tensor,
    temperature: Tensor,
    seed: Tensor,
    row_keys: Tensor,
    step: Tensor,
    first_id: int,
    group: str,
    need_deviation: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return fake_joined(logits, embedding, need_deviation)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.first_id, _, _, ctx.backend = inputs
    mixed, _, _, deviation, statistics = output
    ctx.mark_non_differentiable(deviation, statistics)
    ctx.save_for_backward(*tensors, mixed, deviation, statistics)


def _backward(
    ctx: Any, grad_embedding: Tensor, grad_log_prob: Tensor, grad_log_density: Tensor, *_: Tensor
) -> tuple[Tensor | None, ...]:
    *tensors, mixed, deviation, statistics = ctx.saved_tensors
    logits, embedding = tensors[:2]
    need_dlogits, need_dembedding = ctx.needs_input_grad[:2]
    if logits.shape[1] == 0:
        dlogits, dembedding = torch.zeros_like(logits), torch.zeros_like(embedding)
    else:
        dlogits, dembedding = torch.ops.lepo_kernels.gumbel_softmax_embedding_backward(
            grad_embedding,
            grad_log_prob,
            grad_log_density,
            *tensors,
            ctx.first_id,
            mixed,
            # Read for the gradient of the logits alone.
            deviation if need_dlogits else mixed,
            statistics,
            need_dlogits,
            need_dembedding,
            ctx.backend,
        )
    return (
        dlogits if need_dlogits else None,
        dembedding if need_dembedding else None,
        *(None,) * 9,
    )


_gumbel_softmax_embedding.register_autograd(_backward, setup_context=_setup)
