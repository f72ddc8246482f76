"""Triton kernels of the embedding mixture.

Contract: as the reference's, in float32. Forward is one launch that reads K rows of the table per
output row, of any layout; the weights' gradient is one launch of the same kind. The table's
gradient sorts the entries by id and sums up those of one id in the order in which the call has
them, one program per id and block of columns: no atomics, and the same bits in every run. It writes
the gradient twice where an id points (first the zeros) and once elsewhere. A row of the mixture has
the same bits in any batch. An entry of weight 0 is skipped, but for its own gradient; an id out of
range makes NaN, and adds nothing to the table's gradient.
"""

import torch
import triton
from torch import Tensor

from lepo_kernels.backends.checks import check_ids
from lepo_kernels.backends.triton.common.launching import FUSED, device_of
from lepo_kernels.backends.triton.latent.mixture_kernels import (
    mix_kernel,
    table_gradient_kernel,
    weights_gradient_kernel,
)
from lepo_kernels.validation import FLOAT_DTYPES, INDEX_DTYPES, check_tensor

# Tiles and warps; not measured on a GPU yet. Entries are loaded all at once: K = 30 is one tile.
_MIX = {"ENTRIES": 32, "COLUMNS": 256, "num_warps": 4, **FUSED}
_WEIGHTS_GRADIENT = {"ENTRIES": 32, "COLUMNS": 128, "num_warps": 4, **FUSED}
# Most ids have few entries.
_TABLE_GRADIENT = {"ENTRIES": 8, "COLUMNS": 512, "num_warps": 4, **FUSED}


def mix_embeddings(
    ids: Tensor,  # [N, K]
    weights: Tensor,  # [N, K]
    embedding: Tensor,  # [V, D]
) -> Tensor:  # [N, D]
    """Sum of weights_k * embedding[ids_k], in the dtype of ``embedding``."""
    rows, entries, vocab, width = _sizes(ids, weights, embedding)
    mixed = embedding.new_empty(rows, width)
    if mixed.numel() == 0:
        return mixed
    with device_of(embedding):
        mix_kernel[(rows, triton.cdiv(width, _MIX["COLUMNS"]))](
            ids.contiguous(),
            weights.contiguous(),
            embedding,
            mixed,
            *embedding.stride(),
            vocab,
            width,
            entries,
            **_MIX,
        )
    return mixed


def mix_embeddings_backward(
    grad: Tensor,  # [N, D]
    ids: Tensor,  # [N, K]
    weights: Tensor,  # [N, K]
    embedding: Tensor,  # [V, D]
    need_dweights: bool,
    need_dembedding: bool,
) -> tuple[Tensor, Tensor]:  # [N, K] or [0], [V, D] or [0]
    """dw_k = E[i_k] . de and dE[i_k] += w_k de."""
    rows, _, _, width = _sizes(ids, weights, embedding)
    check_tensor("grad", grad, (rows, width), FLOAT_DTYPES, embedding.device)
    grad, ids, weights = grad.contiguous(), ids.contiguous(), weights.contiguous()
    dweights, dembedding = weights.new_empty(0), embedding.new_empty(0)
    with device_of(embedding):
        if need_dweights:
            dweights = _weights_gradient(grad, ids, weights, embedding)
        if need_dembedding:
            dembedding = _table_gradient(grad, ids, weights, embedding)
    return dweights, dembedding


def _sizes(
    ids: Tensor,  # [N, K]
    weights: Tensor,  # [N, K]
    embedding: Tensor,  # [V, D]
) -> tuple[int, int, int, int]:
    """N, K, V and D, once all tensors agree on them."""
    check_tensor("embedding", embedding, ("V", "D"), FLOAT_DTYPES)
    check_tensor("ids", ids, ("N", "K"), INDEX_DTYPES, embedding.device)
    check_tensor("weights", weights, tuple(ids.shape), FLOAT_DTYPES, embedding.device)
    check_ids("ids", ids, embedding.shape[0])
    return ids.shape[0], ids.shape[1], embedding.shape[0], embedding.shape[1]


def _weights_gradient(
    grad: Tensor,  # [N, D]
    ids: Tensor,  # [N, K]
    weights: Tensor,  # [N, K]
    embedding: Tensor,  # [V, D]
) -> Tensor:  # [N, K]
    (rows, entries), (vocab, width) = ids.shape, embedding.shape
    dweights = torch.empty_like(weights)
    if dweights.numel() > 0:
        weights_gradient_kernel[(rows, triton.cdiv(entries, _WEIGHTS_GRADIENT["ENTRIES"]))](
            grad,
            ids,
            embedding,
            dweights,
            *embedding.stride(),
            vocab,
            width,
            entries,
            **_WEIGHTS_GRADIENT,
        )
    return dweights


def _table_gradient(
    grad: Tensor,  # [N, D]
    ids: Tensor,  # [N, K]
    weights: Tensor,  # [N, K]
    embedding: Tensor,  # [V, D]
) -> Tensor:  # [V, D]
    vocab, width = embedding.shape
    # Not zeros_like: gradients are contiguous, whatever the layout of the table.
    dembedding = embedding.new_zeros(vocab, width)
    if ids.numel() > 0 and width > 0:
        # Behind the vocabulary: entries that add nothing, as all that fill up a row of a filtered
        # draw. They have one id in common, which would be a single program's long sum.
        idle = weights.reshape(-1) == 0
        keys = ids.reshape(-1).masked_fill(idle, vocab)
        # Stable: entries of one id stay in the order of the call.
        sorted_ids, order = keys.sort(stable=True)
        table_gradient_kernel[(ids.numel(), triton.cdiv(width, _TABLE_GRADIENT["COLUMNS"]))](
            grad,
            sorted_ids,
            order,
            weights,
            dembedding,
            vocab,
            width,
            ids.shape[1],
            ids.numel(),
            **_TABLE_GRADIENT,
        )
    return dembedding
