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
from lepo_kernels.ops._library import save, saved, torch_op
from lepo_kernels.ops.gumbel_softmax_embedding import (
    GumbelSoftmaxEmbedding,
    MixtureResults,
    gumbel_softmax_embedding_backward,
    prepare_noise,
)
from lepo_kernels.parallel.mixtures import (
    NOISE_UNIT,
    check_values,
    empty_joined,
    join,
    results_of_nothing,
)
from lepo_kernels.parallel.shards import Ranks
from lepo_kernels.structures import MixtureUpstream, Noise
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
        noise = prepare_noise(logits, tau, temperature, seed, row_keys, step, 0)
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
    results = _gumbel_softmax_embedding(
        logits[:, : shard.rows],
        embedding[: shard.rows],
        noise._replace(first_id=shard.first_id),
        shard.group,
        need_deviation,
        chosen,
    )
    return results.public(embedding.dtype)


def _computed(
    logits: Tensor,  # [N, V_r]
    embedding: Tensor,  # [V_r, D]
    noise: Noise,
    group: str,
    need_deviation: bool,
    backend: str,
) -> MixtureResults:
    check_values(noise)
    if logits.shape[1] == 0:
        part = results_of_nothing(logits, embedding)
    else:
        kernel = dispatch.load("gumbel_softmax_embedding", backend)
        part = MixtureResults(*kernel(logits, embedding, noise, True))
    return join("logits", part, noise.tau, group, need_deviation)


@torch_op("vocab_parallel_gumbel_softmax_embedding", _computed)
def _gumbel_softmax_embedding(
    logits: Tensor,  # [N, V_r]
    embedding: Tensor,  # [V_r, D]
    noise: Noise,
    group: str,
    need_deviation: bool,
    backend: str,
) -> MixtureResults:
    """As ``torch.ops.lepo_kernels.gumbel_softmax_embedding``, but see `join`."""
    return empty_joined(logits, embedding, need_deviation)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: MixtureResults) -> None:
    logits, embedding, noise, _, _, backend = inputs
    ctx.mark_non_differentiable(output.deviation, output.statistics)
    save(ctx, logits, embedding, noise, output.kept(), backend)


def _backward(ctx: Any, *grads: Tensor) -> dict[str, Tensor]:
    logits, embedding, noise, mixtures, backend = saved(ctx)
    need_dlogits, need_dembedding = _gumbel_softmax_embedding.needs(ctx, "logits", "embedding")
    if logits.shape[1] == 0:
        dlogits, dembedding = torch.zeros_like(logits), torch.zeros_like(embedding)
    else:
        if not need_dlogits:
            # Read for the gradient of the logits alone.
            mixtures = mixtures._replace(deviation=mixtures.mixed)
        dlogits, dembedding = gumbel_softmax_embedding_backward(
            MixtureUpstream(*grads[:3]),
            logits,
            embedding,
            noise,
            mixtures,
            need_dlogits,
            need_dembedding,
            backend,
        )
    return {"logits": dlogits, "embedding": dembedding}


_gumbel_softmax_embedding.register_autograd(_backward, _setup)
