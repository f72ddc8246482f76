"""Reference kernels of the embedding mixture: plain torch, any dtype.

Contract: reads K rows of the table per output row; sums in float32 (float64 for float64);
deterministic run to run; a row's result does not depend on its neighbours.
"""

import torch
from torch import Tensor

from lepo_kernels.backends.checks import check_ids
from lepo_kernels.backends.reference.numerics import add_rows
from lepo_kernels.dtypes import accumulation_dtype


def mix_embeddings(
    ids: Tensor,  # [N, K]
    weights: Tensor,  # [N, K]
    embedding: Tensor,  # [V, D]
) -> Tensor:  # [N, D]
    """Sum of weights_k * embedding[ids_k], in the dtype of ``embedding``."""
    check_ids("ids", ids, embedding.shape[0])
    rows = _used_rows(ids, weights, embedding)
    acc = rows.dtype
    mixed = torch.einsum("nk,nkd->nd", weights.to(acc), rows)
    return mixed.to(embedding.dtype).contiguous()


def mix_embeddings_backward(
    grad: Tensor,  # [N, D]
    ids: Tensor,  # [N, K]
    weights: Tensor,  # [N, K]
    embedding: Tensor,  # [V, D]
    need_dweights: bool,
    need_dembedding: bool,
) -> tuple[Tensor, Tensor]:  # [N, K] or [0], [V, D] or [0]
    """dw_k = E[i_k] . de and dE[i_k] += w_k de."""
    acc = accumulation_dtype(embedding.dtype)
    dweights, dembedding = weights.new_empty(0), embedding.new_empty(0)
    if need_dweights:
        rows = _rows(embedding, ids).to(acc)
        dweights = torch.einsum("nkd,nd->nk", rows, grad.to(acc)).to(weights.dtype).contiguous()
    if need_dembedding:
        contributions = weights.to(acc)[..., None] * grad.to(acc)[:, None, :]
        table = torch.zeros(embedding.shape, dtype=acc, device=embedding.device)
        add_rows(table, ids.reshape(-1), contributions.flatten(0, 1))
        dembedding = table.to(embedding.dtype)
    return dweights, dembedding


def _rows(embedding: Tensor, ids: Tensor) -> Tensor:  # [N, K, D]
    """``embedding[ids]``, also where D is 0."""
    return embedding.index_select(0, ids.reshape(-1)).reshape(*ids.shape, embedding.shape[1])


def _used_rows(ids: Tensor, weights: Tensor, embedding: Tensor) -> Tensor:
    """Rows of the table, zeroed where the weight is 0: 0 * inf must not poison the sum."""
    rows = _rows(embedding, ids).to(accumulation_dtype(embedding.dtype))
    return rows.masked_fill((weights == 0)[..., None], 0.0)
