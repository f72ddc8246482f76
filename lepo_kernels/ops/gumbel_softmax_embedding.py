"""P5: the Gumbel-softmax mixture over the whole vocabulary, ``e = softmax((a + g) / tau) @ E``.

Design note: neither the noise nor the weights are stored; the backward pass draws the same noise
again from its counter, and makes the weights of it with a few statistics of the row. With ``z`` the
weights and ``pi = softmax(a)``, ``da_j = z_j (E_j . de - e . de) / tau`` from the mixture plus
``dlogp (z_j - pi_j)`` from the log-probability, and ``dE_j += z_j de``.

At a low tau a row's weight is nearly all at its peak, the largest ``q``, and ``E_peak . de`` nearly
equals ``e . de``. So that a backend which never holds a whole row need not subtract one from the
other, the forward pass also leaves the deviation ``e - E_peak``, which has no such cancellation.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from lepo_kernels import dispatch
from lepo_kernels.ops._arguments import MAX_IDS, as_per_row, as_row_keys, as_seed, as_step
from lepo_kernels.ops._library import torch_op
from lepo_kernels.validation import FLOAT_DTYPES, check_integer, check_tensor

# Columns of the statistics that the backward pass takes over.
_STATISTICS = 5


class GumbelSoftmaxEmbedding(NamedTuple):
    """What `gumbel_softmax_embedding` returns.

    Attributes:
        embedding: [N, D] in the dtype of the table.
        log_prob: [N] float32 (float64 for float64 logits), ``sum z log pi``.
    """

    embedding: Tensor
    log_prob: Tensor


def gumbel_softmax_embedding(
    logits: Tensor,  # [N, V]
    embedding: Tensor,  # [V, D]
    tau: float | Tensor,
    *,
    temperature: float | Tensor = 1.0,
    seed: int | Tensor = 0,
    row_keys: Tensor | None = None,  # [N]
    step: int | Tensor = 0,
    backend: str | None = None,
) -> GumbelSoftmaxEmbedding:
    """Mix all rows of a table by Gumbel-softmax weights, differentiably.

    ``z = softmax((a + g) / tau)`` with ``a = logits / temperature`` and ``g`` the Gumbel noise of
    `lepo_kernels.gumbel_noise` (Jang et al., arXiv 1611.01144; Maddison et al., arXiv 1611.00712).

    Args:
        logits: [N, V] float32, bfloat16, float16, or float64; V <= 2^26. Entries may be -inf.
            Differentiable.
        embedding: [V, D] of the same choice of dtypes; differentiable. Every row takes part, so one
            that holds NaN or an infinity spoils all mixtures, even where its weight is 0.
        tau: >= 0, a number or an [N] tensor. At 0, ``z`` is one-hot at the argmax, and the mixture
            has no gradient in the logits. A tensor is a constant to autograd.
        temperature: > 0, a number or an [N] tensor; a constant to autograd likewise.
        seed: any 64-bit integer, or a 0-d int64 tensor.
        row_keys: [N] int64; None numbers the rows.
        step: in [0, 2^32), or a 0-d or [N] integer tensor.
        backend: see `lepo_kernels.backend`.

    Returns:
        A `GumbelSoftmaxEmbedding`. The gradient of ``log_prob`` takes ``z`` for a constant, as the
        soft surrogate of LEPO does (arXiv 2604.17892).

    Raises:
        TypeError, ValueError: an argument has the wrong dtype, shape, device or range.
        ValueError: a row of logits is all -inf, or holds NaN or +inf (checked on the CPU, or with
            ``LEPO_CHECK_VALUES=1``).
        RuntimeError: a second derivative is asked for.
    """
    check_tensor("logits", logits, ("N", "V"), FLOAT_DTYPES)
    (rows, vocab), device = logits.shape, logits.device
    check_integer("logits.shape[1]", vocab, 1, MAX_IDS)
    check_tensor("embedding", embedding, (vocab, "D"), FLOAT_DTYPES, device)
    chosen = dispatch.resolve(
        "gumbel_softmax_embedding", device, backend, logits.dtype, embedding.dtype
    )
    mixed, log_prob, _, _ = torch.ops.lepo_kernels.gumbel_softmax_embedding(
        logits,
        embedding,
        as_per_row("tau", tau, rows, device, zero_included=True),
        as_per_row("temperature", temperature, rows, device),
        as_seed(seed, device),
        as_row_keys(row_keys, rows, device),
        as_step(step, rows, device),
        chosen,
    )
    return GumbelSoftmaxEmbedding(mixed.to(embedding.dtype), log_prob)


@torch_op("gumbel_softmax_embedding")
def _gumbel_softmax_embedding(
    logits: Tensor,  # [N, V]
    embedding: Tensor,  # [V, D]
    tau: Tensor,  # [N] or [1]
    temperature: Tensor,  # [N] or [1]
    seed: Tensor,  # []
    row_keys: Tensor,  # [N]
    step: Tensor,  # [N] or [1]
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mixtures [N, D], log-probabilities [N], deviations ``e - E_peak`` [N, D], statistics [N, 5].

    Mixtures and deviations are in the dtype that sums over the table are formed in. The statistics
    are float64, which holds an id, too: the largest ``q``, what makes ``z`` of
    ``exp((q - largest) / tau)``, the largest ``a``, what makes ``pi`` of ``exp(a - largest)``, and
    the first id of the largest ``q``.
    """
    fields: tuple[Tensor, Tensor, Tensor, Tensor] = dispatch.load(
        "gumbel_softmax_embedding", backend
    )(logits, embedding, tau, temperature, seed, row_keys, step)
    return fields


@_gumbel_softmax_embedding.register_fake
def _(
    logits: Tensor,
    embedding: Tensor,
    tau: Tensor,
    temperature: Tensor,
    seed: Tensor,
    row_keys: Tensor,
    step: Tensor,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows = logits.shape[0]
    mixed = embedding.new_empty(rows, embedding.shape[1], dtype=_accumulation_dtype(embedding))
    return (
        mixed,
        logits.new_empty(rows, dtype=_accumulation_dtype(logits)),
        torch.empty_like(mixed),
        logits.new_empty(rows, _STATISTICS, dtype=torch.float64),
    )


@torch_op("gumbel_softmax_embedding_backward")
def _gumbel_softmax_embedding_backward(
    grad_embedding: Tensor,  # [N, D]
    grad_log_prob: Tensor,  # [N]
    logits: Tensor,  # [N, V]
    embedding: Tensor,  # [V, D]
    tau: Tensor,  # [N] or [1]
    temperature: Tensor,  # [N] or [1]
    seed: Tensor,  # []
    row_keys: Tensor,  # [N]
    step: Tensor,  # [N] or [1]
    deviation: Tensor,  # [N, D]
    statistics: Tensor,  # [N, 5]
    need_dlogits: bool,
    need_dembedding: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """Gradients of the logits and the table; one that is not needed comes back empty."""
    kernel = dispatch.load("gumbel_softmax_embedding_backward", backend)
    dlogits, dembedding = kernel(
        grad_embedding,
        grad_log_prob,
        logits,
        embedding,
        tau,
        temperature,
        seed,
        row_keys,
        step,
        deviation,
        statistics,
        need_dlogits,
        need_dembedding,
    )
    return dlogits, dembedding


@_gumbel_softmax_embedding_backward.register_fake
def _(
    grad_embedding: Tensor,
    grad_log_prob: Tensor,
    logits: Tensor,
    embedding: Tensor,
    tau: Tensor,
    temperature: Tensor,
    seed: Tensor,
    row_keys: Tensor,
    step: Tensor,
    deviation: Tensor,
    statistics: Tensor,
    need_dlogits: bool,
    need_dembedding: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    return (
        logits.new_empty(logits.shape if need_dlogits else (0,)),
        embedding.new_empty(embedding.shape if need_dembedding else (0,)),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.backend = inputs
    _, _, deviation, statistics = output
    ctx.mark_non_differentiable(deviation, statistics)
    ctx.save_for_backward(*tensors, deviation, statistics)


def _backward(
    ctx: Any, grad_embedding: Tensor, grad_log_prob: Tensor, *_: Tensor
) -> tuple[Tensor | None, ...]:
    need_dlogits, need_dembedding = ctx.needs_input_grad[:2]
    dlogits, dembedding = torch.ops.lepo_kernels.gumbel_softmax_embedding_backward(
        grad_embedding,
        grad_log_prob,
        *ctx.saved_tensors,
        need_dlogits,
        need_dembedding,
        ctx.backend,
    )
    return (
        dlogits if need_dlogits else None,
        dembedding if need_dembedding else None,
        *(None,) * 6,
    )


def _accumulation_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


_gumbel_softmax_embedding.register_autograd(_backward, setup_context=_setup_context)
_gumbel_softmax_embedding_backward.refuse_double_backward()
