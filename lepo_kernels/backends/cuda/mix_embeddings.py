"""CUDA kernels of the embedding mixture: csrc/cuda/mix_embeddings.cuh.

Contract: as the reference's, in float32. The bits of the mixture and of ``dweights`` depend neither
on the batch nor on how the table lies in memory; those of ``dembedding`` are the same in every run.
Nothing waits for the GPU, and no size depends on values, so calls can be captured in a graph. The
table is never copied unless its rows are not dense.
"""

import torch
from torch import Tensor

from lepo_kernels.backends.checks import check_ids
from lepo_kernels.backends.rows import dense_rows


def mix_embeddings(
    ids: Tensor,  # [N, K]
    weights: Tensor,  # [N, K]
    embedding: Tensor,  # [V, D]
) -> Tensor:  # [N, D]
    """Sum of weights_k * embedding[ids_k], in the dtype of ``embedding``."""
    check_ids("ids", ids, embedding.shape[0])
    mixed: Tensor = torch.ops.lepo_kernels_cuda.mix_embeddings.default(
        ids.contiguous(), weights.float().contiguous(), dense_rows(embedding)
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
    check_ids("ids", ids, embedding.shape[0])
    ops = torch.ops.lepo_kernels_cuda
    grad, ids = dense_rows(grad), ids.contiguous()
    dweights, dembedding = weights.new_empty(0), embedding.new_empty(0)
    if need_dweights:
        dweights = ops.mix_dweights.default(grad, ids, dense_rows(embedding)).to(weights.dtype)
    if need_dembedding:
        vocab, exact = embedding.shape[0], weights.float().contiguous()
        keys, order = ops.mix_keys.default(ids, exact, vocab).sort(stable=True)
        dembedding = ops.mix_dembedding.default(grad, exact, keys, order, vocab)
    return dweights, dembedding
