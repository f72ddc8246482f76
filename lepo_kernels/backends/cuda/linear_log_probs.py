"""CUDA kernels of selected log-probabilities: torch's matrix products, and csrc/cuda between them.

Contract: as `lepo_kernels.backends.gpu.head` says; the row kernels are those of
csrc/cuda/linear_log_probs.cuh.
"""

import torch
from torch import Tensor

from lepo_kernels.backends.gpu import head as gpu_head
from lepo_kernels.backends.gpu import logits as gpu_logits
from lepo_kernels.backends.gpu.row_kernels import RowKernels
from lepo_kernels.structures import Head, HeadGradients, Needs, Selection, Statistics, Upstream


def row_kernels() -> RowKernels:
    """What csrc/cuda does with a block of logits."""
    library = torch.ops.lepo_kernels_cuda
    return RowKernels(library.summarise_logits, library.statistics_of, library.logit_gradient)


def linear_log_probs(
    head: Head, selection: Selection, chunk_size: int, shard: bool
) -> tuple[Tensor, Tensor, Tensor]:  # [N, K], [N], [N]
    """Selected logits, log-sum-exp and entropy of ``cap(hidden @ lm_head^T + bias) / T``."""
    return gpu_head.linear_log_probs(row_kernels(), head, selection, chunk_size, shard)


def linear_log_probs_backward(
    upstream: Upstream,
    head: Head,
    selection: Selection,
    statistics: Statistics,
    chunk_size: int,
    needs: Needs,
) -> HeadGradients:
    """Gradients of the hidden states, the head and the bias; those not needed are empty."""
    return gpu_head.linear_log_probs_backward(
        row_kernels(), upstream, head, selection, statistics, chunk_size, needs
    )


def gather_log_probs(
    logits: Tensor,  # [N, V]
    selection: Selection,
) -> tuple[Tensor, Tensor, Tensor]:  # [N, K], [N], [N]
    """Selected logits, log-sum-exp and entropy of ``logits / T``."""
    return gpu_logits.gather_log_probs(row_kernels(), logits, selection)


def gather_log_probs_backward(
    upstream: Upstream,
    logits: Tensor,  # [N, V]
    selection: Selection,
    statistics: Statistics,
) -> Tensor:  # [N, V]
    """Gradient of the logits, in their dtype."""
    return gpu_logits.gather_log_probs_backward(
        row_kernels(), upstream, logits, selection, statistics
    )
