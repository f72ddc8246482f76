"""CUDA kernels of selected log-probabilities: torch's matrix products, and csrc/cuda between them.

Contract: as `lepo_kernels.backends.gpu.head` says; the row kernels are those of
csrc/cuda/linear_log_probs.cuh.
"""

import torch
from torch import Tensor

from lepo_kernels.backends.gpu import head as gpu_head
from lepo_kernels.backends.gpu import logits as gpu_logits
from lepo_kernels.backends.gpu.row_kernels import RowKernels


def row_kernels() -> RowKernels:
    """What csrc/cuda does with a block of logits."""
    library = torch.ops.lepo_kernels_cuda
    return RowKernels(library.summarise_logits, library.statistics_of, library.logit_gradient)


def linear_log_probs(
    hidden: Tensor,  # [N, D]
    lm_head: Tensor,  # [V, D]
    ids: Tensor,  # [N, K]
    bias: Tensor | None,  # [V]
    softcap: float | None,
    inv_temperature: Tensor,  # [N] or [1]
    chunk_size: int,
    shard: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # [N, K], [N], [N]
    """Selected logits, log-sum-exp and entropy of ``cap(hidden @ lm_head^T + bias) / T``."""
    return gpu_head.linear_log_probs(
        row_kernels(), hidden, lm_head, ids, bias, softcap, inv_temperature, chunk_size, shard
    )


def linear_log_probs_backward(
    grad_logits: Tensor,  # [N, K]
    grad_lse: Tensor,  # [N]
    grad_entropy: Tensor,  # [N]
    hidden: Tensor,  # [N, D]
    lm_head: Tensor,  # [V, D]
    ids: Tensor,  # [N, K]
    bias: Tensor | None,  # [V]
    softcap: float | None,
    inv_temperature: Tensor,  # [N] or [1]
    lse: Tensor,  # [N]
    entropy: Tensor,  # [N]
    chunk_size: int,
    need_dhidden: bool,
    need_dlm_head: bool,
    need_dbias: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # [N, D] or [0], [V, D] or [0], [V] or [0]
    """Gradients of the hidden states, the head and the bias; those not needed are empty."""
    return gpu_head.linear_log_probs_backward(
        row_kernels(),
        grad_logits,
        grad_lse,
        grad_entropy,
        hidden,
        lm_head,
        ids,
        bias,
        softcap,
        inv_temperature,
        lse,
        entropy,
        chunk_size,
        need_dhidden,
        need_dlm_head,
        need_dbias,
    )


def gather_log_probs(
    logits: Tensor,  # [N, V]
    ids: Tensor,  # [N, K]
    inv_temperature: Tensor,  # [N] or [1]
) -> tuple[Tensor, Tensor, Tensor]:  # [N, K], [N], [N]
    """Selected logits, log-sum-exp and entropy of ``logits / T``."""
    return gpu_logits.gather_log_probs(row_kernels(), logits, ids, inv_temperature)


def gather_log_probs_backward(
    grad_logits: Tensor,  # [N, K]
    grad_lse: Tensor,  # [N]
    grad_entropy: Tensor,  # [N]
    logits: Tensor,  # [N, V]
    ids: Tensor,  # [N, K]
    inv_temperature: Tensor,  # [N] or [1]
    lse: Tensor,  # [N]
    entropy: Tensor,  # [N]
) -> Tensor:  # [N, V]
    """Gradient of the logits, in their dtype."""
    return gpu_logits.gather_log_probs_backward(
        row_kernels(),
        grad_logits,
        grad_lse,
        grad_entropy,
        logits,
        ids,
        inv_temperature,
        lse,
        entropy,
    )
