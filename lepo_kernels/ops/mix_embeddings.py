"""The soft embedding mixture ``e = sum_k w_k E[i_k]`` and its gradients.

Design note: the mixture reads K rows of the table per output row, never the whole table. The
gradients are ``dw_k = E[i_k] . de`` and ``dE[i_k] += w_k de``.
"""

from typing import Any

from torch import Tensor

from lepo_kernels import dispatch
from lepo_kernels.ops._library import save, saved, torch_op
from lepo_kernels.structures import empty_gradient
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
        return _mix_embeddings(ids, weights, embedding, chosen)
    rows = weights.shape[:-1].numel()
    flat = (rows, lead[-1])
    mixed = _mix_embeddings(ids.reshape(flat), weights.reshape(flat), embedding, chosen)
    return mixed.reshape(*lead[:-1], embedding.shape[1])


@torch_op("mix_embeddings")
def _mix_embeddings(
    ids: Tensor,  # [N, K]
    weights: Tensor,  # [N, K]
    embedding: Tensor,  # [V, D]
    backend: str,
) -> Tensor:  # [N, D]
    return embedding.new_empty(ids.shape[0], embedding.shape[1])


@torch_op("mix_embeddings_backward")
def mix_embeddings_backward(
    grad: Tensor,  # [N, D]
    ids: Tensor,  # [N, K]
    weights: Tensor,  # [N, K]
    embedding: Tensor,  # [V, D]
    need_dweights: bool,
    need_dembedding: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """Gradients of the weights and of the table; one that is not needed comes back empty."""
    return empty_gradient(weights, need_dweights), empty_gradient(embedding, need_dembedding)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    save(ctx, *inputs)


def _backward(ctx: Any, grad: Tensor) -> dict[str, Tensor]:
    ids, weights, embedding, backend = saved(ctx)
    need_dweights, need_dembedding = _mix_embeddings.needs(ctx, "weights", "embedding")
    dweights, dembedding = mix_embeddings_backward(
        grad, ids, weights, embedding, need_dweights, need_dembedding, backend
    )
    return {"weights": dweights, "embedding": dembedding}


_mix_embeddings.register_autograd(_backward, _setup_context)
mix_embeddings_backward.refuse_double_backward()
