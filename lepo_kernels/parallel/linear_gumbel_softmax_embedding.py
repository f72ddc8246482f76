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
from lepo_kernels.ops._library import save, saved, torch_op
from lepo_kernels.ops.gumbel_softmax_embedding import (
    GumbelSoftmaxEmbedding,
    MixtureResults,
    prepare_noise,
)
from lepo_kernels.ops.linear_gumbel_softmax_embedding import (
    DIFFERENTIABLE,
    linear_gumbel_softmax_embedding_backward,
)
from lepo_kernels.ops.linear_log_probs import prepare_head, rows_at_a_time
from lepo_kernels.parallel.collectives import sum_over_ranks
from lepo_kernels.parallel.mixtures import (
    NOISE_UNIT,
    check_values,
    empty_joined,
    join,
    results_of_nothing,
)
from lepo_kernels.parallel.shards import Ranks
from lepo_kernels.structures import Head, MixtureUpstream, Needs, Noise
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
        noise = prepare_noise(head.hidden, tau, temperature, seed, row_keys, step, 0)
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
    results = _linear_gumbel_softmax_embedding(
        head.columns(shard.rows),
        None if embedding is None else embedding[: shard.rows],
        noise._replace(first_id=shard.first_id),
        chunk,
        shard.group,
        need_deviation,
        chosen,
    )
    return results.public(table.dtype)


def _computed(
    head: Head,
    embedding: Tensor | None,  # [V_r, D]
    noise: Noise,
    chunk_size: int,
    group: str,
    need_deviation: bool,
    backend: str,
) -> MixtureResults:
    check_values(noise)
    if head.lm_head.shape[0] == 0:
        part = results_of_nothing(head.hidden, head.lm_head if embedding is None else embedding)
    else:
        kernel = dispatch.load("linear_gumbel_softmax_embedding", backend)
        part = MixtureResults(*kernel(head, embedding, noise, chunk_size, True))
    return join("logits of hidden", part, noise.tau, group, need_deviation)


@torch_op("vocab_parallel_linear_gumbel_softmax_embedding", _computed)
def _linear_gumbel_softmax_embedding(
    head: Head,
    embedding: Tensor | None,  # [V_r, D]; None: the head
    noise: Noise,
    chunk_size: int,
    group: str,
    need_deviation: bool,
    backend: str,
) -> MixtureResults:
    """As ``torch.ops.lepo_kernels.vocab_parallel_gumbel_softmax_embedding`` of the logits."""
    table = head.lm_head if embedding is None else embedding
    return empty_joined(head.hidden, table, need_deviation)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: MixtureResults) -> None:
    head, embedding, noise, chunk_size, group, need_deviation, backend = inputs
    ctx.mark_non_differentiable(output.deviation, output.statistics)
    mixtures = output.kept()
    if not need_deviation:
        # Read for the gradient of the logits alone.
        mixtures = mixtures._replace(deviation=mixtures.mixed)
    save(ctx, head, embedding, noise, chunk_size, mixtures, group, backend)


def _backward(ctx: Any, *grads: Tensor) -> dict[str, Tensor]:
    head, embedding, noise, chunk_size, mixtures, group, backend = saved(ctx)
    *needs, need_dembedding = _linear_gumbel_softmax_embedding.needs(ctx, *DIFFERENTIABLE)
    gradients: tuple[Tensor, ...]
    if head.lm_head.shape[0] == 0:
        table = head.lm_head if embedding is None else embedding
        like = (head.hidden, head.lm_head, head.lm_head[:, 0], table)
        gradients = tuple(torch.zeros_like(x) for x in like)
    else:
        gradients = linear_gumbel_softmax_embedding_backward(
            MixtureUpstream(*grads[:3]),
            head,
            embedding,
            noise,
            chunk_size,
            mixtures,
            Needs(*needs),
            need_dembedding,
            backend,
        )
    named = dict(zip(DIFFERENTIABLE, gradients, strict=True))
    if needs[0]:
        named["hidden"] = sum_over_ranks(named["hidden"], group)
    return named


_linear_gumbel_softmax_embedding.register_autograd(_backward, _setup)
