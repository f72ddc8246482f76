"""CPU kernels of the embedding mixture: csrc/cpu/mix_embeddings.cpp.

Contract: as the reference's, in float32; every bit is the same on any number of threads and in any
batch. The table is never copied unless its rows are not dense, and then the forward pass copies
only the rows in use, the backward pass all. An entry of weight 0 adds nothing to the gradient of
the table.
"""

import torch
from torch import Tensor

from lepo_kernels.backends.checks import check_ids


def mix_embeddings(
    ids: Tensor,  # [N, K]
    weights: Tensor,  # [N, K]
    embedding: Tensor,  # [V, D]
) -> Tensor:  # [N, D]
    """Sum of weights_k * embedding[ids_k], in the dtype of ``embedding``."""
    if embedding.stride(1) != 1:
        check_ids("ids", ids, embedding.shape[0])
        ids, embedding = _rows_in_use(ids, embedding)
    mixed: Tensor
    mixed, inside = torch.ops.lepo_kernels_cpu.mix_embeddings.default(
        ids.contiguous(), weights.contiguous(), embedding
    )
    if not inside:
        check_ids("ids", ids, embedding.shape[0])
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
    grad, ids, weights = grad.contiguous(), ids.contiguous(), weights.contiguous()
    if embedding.stride(1) != 1:
        embedding = embedding.contiguous()
    dweights, dembedding, inside = torch.ops.lepo_kernels_cpu.mix_embeddings_backward.default(
        grad, ids, weights, embedding, need_dweights, need_dembedding
    )
    if not inside:
        check_ids("ids", ids, embedding.shape[0])
    return dweights, dembedding


def _rows_in_use(ids: Tensor, embedding: Tensor) -> tuple[Tensor, Tensor]:
    """The table's rows that ``ids`` name, dense, and where to find them."""
    rows = embedding.index_select(0, ids.reshape(-1))
    return torch.arange(ids.numel()).reshape(ids.shape), rows
