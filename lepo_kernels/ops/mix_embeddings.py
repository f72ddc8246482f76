"""P2: the soft embedding mixture ``e = sum_k w_k E[i_k]`` and its gradients.

Design note: the mixture reads K rows of the table per output row, never the whole table. The
gradients are ``dw_k = E[i_k] . de`` and ``dE[i_k] += w_k de``.
"""

from typing import Any

import torch
from torch import Tensor

from lepo_kernels import dispatch
from lepo_kernels.ops._library import torch_op
from lepo_kernels.validation import FLOAT_DTYPES, INDEX_DTYPES, check_tensor, shape_or


def mix_embeddings(
    ids: Tensor,  # [..., K]
    weights: Tensor,  # [..., K]
    embedding: Tensor,  # [V, D]
    *,
    backend: str | None = None,
) -> Tensor:  # [..., D]
    """Mix rows of an embedding table: ``e = sum_k weights_k * embedding[ids_k]``.

    Step 3 of a LEPO latent step (arXiv 2604.17892): the mixture is the model's next input.

    Args:
        ids: [..., K] int64 or int32, in [0, V). Duplicates add up.
        weights: [..., K] floating point. Entries of weight 0 are skipped, whatever their row holds.
        embedding: [V, D] float32, bfloat16, float16, or float64.
        backend: see `lepo_kernels.backend`.

    Returns:
        [..., D] in the dtype of ``embedding``; sums are formed in float32 (float64 for float64).
        Differentiable in ``weights`` and ``embedding``; the gradient of the table is dense [V, D]
        and deterministic.

    Raises:
        TypeError, ValueError: an argument has the wrong dtype, shape or device.
        IndexError: an id is out of range (checked on the CPU, or with ``LEPO_CHECK_VALUES=1``;
            otherwise backend ``"cuda"`` does not read there: unless its weight is 0, the row of the
            mixture is NaN; so is the gradient of its weight, and the table's gradient leaves it
            out).
        RuntimeError: a second or forward-mode derivative is asked for.
    """
    check_tensor("embedding", embedding, ("V", "D"), FLOAT_DTYPES)
    wanted = shape_or(ids, ("K",)) or ("...", "K")
    check_tensor("ids", ids, wanted, INDEX_DTYPES, embedding.device)
    lead = tuple(ids.shape)
    check_tensor("weights", weights, lead, FLOAT_DTYPES, embedding.device)
    chosen = dispatch.resolve("mix_embeddings", embedding.device, backend, embedding.dtype)
    if len(lead) == 2:
        return _mix(ids, weights, embedding, chosen)
    rows = weights.shape[:-1].numel()
    flat = (rows, lead[-1])
    mixed = _mix(ids.reshape(flat), weights.reshape(flat), embedding, chosen)
    return mixed.reshape(*lead[:-1], embedding.shape[1])


def _mix(ids: Tensor, weights: Tensor, embedding: Tensor, backend: str) -> Tensor:
    mixed: Tensor = torch.ops.lepo_kernels.mix_embeddings.default(ids, weights, embedding, backend)
    return mixed


@torch_op("mix_embeddings")
def _mix_embeddings(ids: Tensor, weights: Tensor, embedding: Tensor, backend: str) -> Tensor:
    mixed: Tensor = dispatch.load("mix_embeddings", backend)(ids, weights, embedding)
    return mixed


@_mix_embeddings.register_fake
def _(ids: Tensor, weights: Tensor, embedding: Tensor, backend: str) -> Tensor:
    return embedding.new_empty(ids.shape[0], embedding.shape[1])


@torch_op("mix_embeddings_backward")
def _mix_embeddings_backward(
    grad: Tensor,  # [N, D]
    ids: Tensor,  # [N, K]
    weights: Tensor,  # [N, K]
    embedding: Tensor,  # [V, D]
    need_dweights: bool,
    need_dembedding: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """Gradients of the weights and of the table; one that is not needed comes back empty."""
    kernel = dispatch.load("mix_embeddings_backward", backend)
    dweights, dembedding = kernel(grad, ids, weights, embedding, need_dweights, need_dembedding)
    return dweights, dembedding


@_mix_embeddings_backward.register_fake
def _(
    grad: Tensor,
    ids: Tensor,
    weights: Tensor,
    embedding: Tensor,
    need_dweights: bool,
    need_dembedding: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    return (
        weights.new_empty(weights.shape if need_dweights else (0,)),
        embedding.new_empty(embedding.shape if need_dembedding else (0,)),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ids, weights, embedding, ctx.backend = inputs
    ctx.save_for_backward(ids, weights, embedding)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    ids, weights, embedding = ctx.saved_tensors
    _, need_dweights, need_dembedding, _ = ctx.needs_input_grad
    dweights, dembedding = torch.ops.lepo_kernels.mix_embeddings_backward.default(
        grad, ids, weights, embedding, need_dweights, need_dembedding, ctx.backend
    )
    return None, dweights if need_dweights else None, dembedding if need_dembedding else None, None


_mix_embeddings.register_autograd(_backward, setup_context=_setup_context)
_mix_embeddings_backward.refuse_double_backward()
