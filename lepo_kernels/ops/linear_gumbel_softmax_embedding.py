"""From hidden states: the Gumbel-softmax mixture of a language-model head's own logits.

Design note: nothing of size [N, V] is stored. The logits of some rows, or of some rows and a part
of the vocabulary, exist at a time, and the backward pass forms them again. All else that it needs
of a row are the statistics of `gumbel_softmax_embedding`. With ``da`` the gradient of the logits
``a = cap(h W^T + b) / T`` as that op's file has it:

    dx_j = da_j (1 - (cap_j / softcap)^2) / T
    dh = dx W,  dW = dx^T h,  db = sum dx,  dE = z^T de

A head that is the table, too, has one gradient, the sum of ``dW`` and ``dE``.
"""

from typing import Any

from torch import Tensor

from lepo_kernels import dispatch
from lepo_kernels.ops._arguments import check_first_id
from lepo_kernels.ops._library import save, saved, torch_op
from lepo_kernels.ops.gumbel_softmax_embedding import (
    GumbelSoftmaxEmbedding,
    MixtureResults,
    empty_results,
    prepare_noise,
)
from lepo_kernels.ops.linear_log_probs import prepare_head, rows_at_a_time
from lepo_kernels.structures import (
    Head,
    Mixtures,
    MixtureUpstream,
    Needs,
    Noise,
    empty_gradient,
)
from lepo_kernels.validation import FLOAT_DTYPES, MAX_IDS, check_integer, check_tensor


def linear_gumbel_softmax_embedding(
    hidden: Tensor,  # [N, Dh]
    lm_head: Tensor,  # [V, Dh]
    embedding: Tensor | None,  # [V, D]
    tau: float | Tensor,
    *,
    bias: Tensor | None = None,  # [V]
    softcap: float | None = None,
    temperature: float | Tensor = 1.0,
    seed: int | Tensor = 0,
    row_keys: Tensor | None = None,  # [N]
    step: int | Tensor = 0,
    first_id: int = 0,
    chunk_size: int | None = None,
    backend: str | None = None,
) -> GumbelSoftmaxEmbedding:
    """`gumbel_softmax_embedding` of the logits ``cap(hidden @ lm_head^T + bias)``.

    ``cap(x) = softcap tanh(x / softcap)`` (Gemma 2). Differentiable in ``hidden``, ``lm_head``,
    ``bias`` and ``embedding``; frozen ones cost nothing. Under autocast the first three are cast to
    its dtype, unless they are float64, as torch's own products do.

    Args:
        hidden: [N, Dh] float32, bfloat16, float16, or float64.
        lm_head: [V, Dh] in the dtype of ``hidden``; V <= 2^26.
        embedding: [V, D] of the same choice of dtypes, as in `gumbel_softmax_embedding`. None takes
            ``lm_head``, as it is after autocast, for the table (tied embeddings).
        tau: >= 0, a number or an [N] tensor; a constant to autograd. At 0, ``z`` is one-hot.
        bias: [V] in the dtype of ``hidden``. Without a softcap, -inf leaves an id out.
        softcap: > 0.
        temperature, seed, row_keys, step, first_id: as in `gumbel_softmax_embedding`.
        chunk_size: bounds the memory: no more logits are held at a time than this many rows have;
            below 2^31. None takes as many rows as 64 MiB of logits hold, on CUDA 256 MiB.
        backend: see `lepo_kernels.backend`.

    Returns:
        A `GumbelSoftmaxEmbedding`, as `gumbel_softmax_embedding` returns it.

    Raises:
        TypeError, ValueError: an argument has the wrong dtype, shape, device or range.
        ValueError: a row's logits are all -inf, or hold NaN or +inf (checked on the CPU, or with
            ``LEPO_CHECK_VALUES=1``).
        RuntimeError: a second or forward-mode derivative is asked for.
    """
    head = prepare_head(hidden, lm_head, bias, softcap)
    device, vocab = hidden.device, lm_head.shape[0]
    check_integer("lm_head.shape[0]", vocab, 1, MAX_IDS)
    if embedding is not None:
        check_tensor("embedding", embedding, (vocab, "D"), FLOAT_DTYPES, device)
    check_first_id(first_id, vocab)
    table = head.lm_head if embedding is None else embedding
    chosen = dispatch.resolve(
        "linear_gumbel_softmax_embedding", device, backend, head.hidden.dtype, table.dtype
    )
    noise = prepare_noise(hidden, tau, temperature, seed, row_keys, step, first_id)
    chunk = rows_at_a_time(chunk_size, head)
    results = _linear_gumbel_softmax_embedding(head, embedding, noise, chunk, False, chosen)
    return results.public(table.dtype)


@torch_op("linear_gumbel_softmax_embedding")
def _linear_gumbel_softmax_embedding(
    head: Head,
    embedding: Tensor | None,  # [V, D]; None: the head
    noise: Noise,
    chunk_size: int,
    shard: bool,
    backend: str,
) -> MixtureResults:
    """What ``torch.ops.lepo_kernels.gumbel_softmax_embedding`` returns of the logits.

    A shard is a part of the rows of head, bias and table. Shards join as those of that op do.
    """
    return empty_results(head.hidden, head.lm_head if embedding is None else embedding)


@torch_op("linear_gumbel_softmax_embedding_backward")
def linear_gumbel_softmax_embedding_backward(
    upstream: MixtureUpstream,
    head: Head,
    embedding: Tensor | None,  # [V, D]; None: the head
    noise: Noise,
    chunk_size: int,
    mixtures: Mixtures,
    needs: Needs,
    need_dembedding: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of hidden, lm_head, bias and embedding; one that is not needed comes back empty.

    That of a tied head is the sum of both uses. On a shard, that of ``hidden`` is the shard's part
    of a sum over shards; the others are whole.
    """
    table = head.lm_head if embedding is None else embedding
    return *head.empty_gradients(needs), empty_gradient(table, need_dembedding)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: MixtureResults) -> None:
    head, embedding, noise, chunk_size, _, backend = inputs
    ctx.mark_non_differentiable(output.deviation, output.statistics)
    save(ctx, head, embedding, noise, chunk_size, output.kept(), backend)


def _backward(ctx: Any, *grads: Tensor) -> dict[str, Tensor]:
    head, embedding, noise, chunk_size, mixtures, backend = saved(ctx)
    *needs, need_dembedding = _linear_gumbel_softmax_embedding.needs(ctx, *DIFFERENTIABLE)
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
    return dict(zip(DIFFERENTIABLE, gradients, strict=True))


# In the order of the gradients.
DIFFERENTIABLE = ("hidden", "lm_head", "bias", "embedding")

_linear_gumbel_softmax_embedding.register_autograd(_backward, _setup_context)
linear_gumbel_softmax_embedding_backward.refuse_double_backward()
