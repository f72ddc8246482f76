"""P5 from hidden states: the Gumbel-softmax mixture of a language-model head's own logits.

Design note: nothing of size [N, V] is stored. The logits of some rows, or of some rows and a part
of the vocabulary, exist at a time, and the backward pass forms them again. All else that it needs
of a row are the statistics of `gumbel_softmax_embedding`. With ``da`` the gradient of the logits
``a = cap(h W^T + b) / T`` as that op's file has it:

    dx_j = da_j (1 - (cap_j / softcap)^2) / T
    dh = dx W,  dW = dx^T h,  db = sum dx,  dE = z^T de

A head that is the table, too, has one gradient, the sum of ``dW`` and ``dE``.
"""

from typing import Any

import torch
from torch import Tensor

from lepo_kernels import dispatch
from lepo_kernels.ops._arguments import as_per_row, as_row_keys, as_seed, as_step, check_first_id
from lepo_kernels.ops._library import torch_op
from lepo_kernels.ops.gumbel_softmax_embedding import GumbelSoftmaxEmbedding, fake_outputs
from lepo_kernels.ops.linear_log_probs import prepare_head, rows_at_a_time
from lepo_kernels.validation import FLOAT_DTYPES, MAX_IDS, check_integer, check_tensor

_Outputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


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
    rows, device, vocab = hidden.shape[0], hidden.device, lm_head.shape[0]
    check_integer("lm_head.shape[0]", vocab, 1, MAX_IDS)
    if embedding is not None:
        check_tensor("embedding", embedding, (vocab, "D"), FLOAT_DTYPES, device)
    check_first_id(first_id, vocab)
    table_dtype = (head.lm_head if embedding is None else embedding).dtype
    chosen = dispatch.resolve(
        "linear_gumbel_softmax_embedding", device, backend, head.hidden.dtype, table_dtype
    )
    mixed, log_prob, log_density, _, _ = torch.ops.lepo_kernels.linear_gumbel_softmax_embedding(
        head.hidden,
        head.lm_head,
        embedding,
        head.bias,
        head.softcap,
        as_per_row("tau", tau, rows, device, zero_included=True),
        as_per_row("temperature", temperature, rows, device),
        as_seed(seed, device),
        as_row_keys(row_keys, rows, device),
        as_step(step, rows, device),
        first_id,
        rows_at_a_time(chunk_size, head),
        False,
        chosen,
    )
    return GumbelSoftmaxEmbedding(mixed.to(table_dtype), log_prob, log_density)


@torch_op("linear_gumbel_softmax_embedding")
def _linear_gumbel_softmax_embedding(
    hidden: Tensor,  # [N, Dh]
    lm_head: Tensor,  # [V, Dh]
    embedding: Tensor | None,  # [V, D]; None: lm_head
    bias: Tensor | None,  # [V]
    softcap: float | None,
    tau: Tensor,  # [N] or [1]
    temperature: Tensor,  # [N] or [1]
    seed: Tensor,  # []
    row_keys: Tensor,  # [N]
    step: Tensor,  # [N] or [1]
    first_id: int,
    chunk_size: int,
    shard: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """What ``torch.ops.lepo_kernels.gumbel_softmax_embedding`` returns of the logits.

    A shard is a part of the rows of head, bias and table. Shards join as those of that op do.
    """
    fields: _Outputs = dispatch.load("linear_gumbel_softmax_embedding", backend)(
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
        shard,
    )
    return fields


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
    shard: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return fake_outputs(hidden, lm_head if embedding is None else embedding)


@torch_op("linear_gumbel_softmax_embedding_backward")
def _linear_gumbel_softmax_embedding_backward(
    grad_embedding: Tensor,  # [N, D]
    grad_log_prob: Tensor,  # [N]
    grad_log_density: Tensor,  # [N]
    hidden: Tensor,  # [N, Dh]
    lm_head: Tensor,  # [V, Dh]
    embedding: Tensor | None,  # [V, D]; None: lm_head
    bias: Tensor | None,  # [V]
    softcap: float | None,
    tau: Tensor,  # [N] or [1]
    temperature: Tensor,  # [N] or [1]
    seed: Tensor,  # []
    row_keys: Tensor,  # [N]
    step: Tensor,  # [N] or [1]
    first_id: int,
    chunk_size: int,
    mixed: Tensor,  # [N, D]
    deviation: Tensor,  # [N, D]
    statistics: Tensor,  # [N, 8]
    need_dhidden: bool,
    need_dlm_head: bool,
    need_dbias: bool,
    need_dembedding: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of hidden, lm_head, bias and embedding; one that is not needed comes back empty.

    That of a tied head is the sum of both uses. On a shard, that of ``hidden`` is the shard's part
    of a sum over shards; the others are whole.
    """
    grads: tuple[Tensor, Tensor, Tensor, Tensor] = dispatch.load(
        "linear_gumbel_softmax_embedding_backward", backend
    )(
        grad_embedding,
        grad_log_prob,
        grad_log_density,
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
        mixed,
        deviation,
        statistics,
        need_dhidden,
        need_dlm_head,
        need_dbias,
        need_dembedding,
    )
    return grads


@_linear_gumbel_softmax_embedding_backward.register_fake
def _(
    grad_embedding: Tensor,
    grad_log_prob: Tensor,
    grad_log_density: Tensor,
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
    mixed: Tensor,
    deviation: Tensor,
    statistics: Tensor,
    need_dhidden: bool,
    need_dlm_head: bool,
    need_dbias: bool,
    need_dembedding: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    table = lm_head if embedding is None else embedding
    return (
        hidden.new_empty(hidden.shape if need_dhidden else (0,)),
        lm_head.new_empty(lm_head.shape if need_dlm_head else (0,)),
        lm_head.new_empty(lm_head.shape[0] if need_dbias else 0),
        table.new_empty(table.shape if need_dembedding else (0,)),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    hidden, lm_head, embedding, bias, ctx.softcap, *noisy, first_id, chunk_size, _, ctx.backend = (
        inputs
    )
    ctx.sizes = (first_id, chunk_size)
    mixed, _, _, deviation, statistics = output
    ctx.mark_non_differentiable(deviation, statistics)
    ctx.save_for_backward(hidden, lm_head, embedding, bias, *noisy, mixed, deviation, statistics)


def _backward(
    ctx: Any, grad_embedding: Tensor, grad_log_prob: Tensor, grad_log_density: Tensor, *_: Tensor
) -> tuple[Tensor | None, ...]:
    hidden, lm_head, embedding, bias, *noisy, mixed, deviation, statistics = ctx.saved_tensors
    need_dhidden, need_dlm_head, need_dembedding, need_dbias = ctx.needs_input_grad[:4]
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
            *noisy,
            *ctx.sizes,
            mixed,
            deviation,
            statistics,
            need_dhidden,
            need_dlm_head,
            need_dbias,
            need_dembedding,
            ctx.backend,
        )
    )
    return (
        dhidden if need_dhidden else None,
        dlm_head if need_dlm_head else None,
        dembedding if need_dembedding else None,
        dbias if need_dbias else None,
        *(None,) * 10,
    )


_linear_gumbel_softmax_embedding.register_autograd(_backward, setup_context=_setup_context)
_linear_gumbel_softmax_embedding_backward.refuse_double_backward()
