"""CUDA kernels of LEPO's loss: torch's matrix products, and row kernels between them.

Contract: as `lepo_kernels.backends.gpu.loss` says; the row kernels are those of
csrc/cuda/linear_log_probs.cuh.
"""

from torch import Tensor

from lepo_kernels.backends.cuda.linear_log_probs import row_kernels
from lepo_kernels.backends.gpu import loss
from lepo_kernels.backends.gpu.loss import lepo_loss_backward
from lepo_kernels.formulas.loss_rows import LossSettings, RowFacts
from lepo_kernels.structures import Head, Needs, Selection

__all__ = ["lepo_loss", "lepo_loss_backward"]


def lepo_loss(
    head: Head, selection: Selection, facts: RowFacts, settings: LossSettings, needs: Needs
) -> tuple[Tensor, ...]:
    """The fields of `LepoLoss`, then the gradients of hidden, lm_head and bias, or empty ones."""
    return loss.lepo_loss(row_kernels(), head, selection, facts, settings, needs)
