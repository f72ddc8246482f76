"""Selected log-probabilities of precomputed logits on a GPU: a backend's row kernels alone."""

import torch
from torch import Tensor

from lepo_kernels.backends.checks import check_ids, check_positive, check_rows
from lepo_kernels.backends.gpu.blocks import Rows
from lepo_kernels.backends.gpu.row_kernels import RowKernels, States
from lepo_kernels.backends.rows import dense_rows


def gather_log_probs(
    kernels: RowKernels,
    logits: Tensor,  # [N, V]
    ids: Tensor,  # [N, K]
    inv_temperature: Tensor,  # [N] or [1]
) -> tuple[Tensor, Tensor, Tensor]:  # [N, K], [N], [N]
    """Selected logits, log-sum-exp and entropy of ``logits / T``."""
    check_ids("ids", ids, logits.shape[1])
    check_positive("inv_temperature", inv_temperature)
    rows = Rows(logits, ids.long().contiguous(), inv_temperature.contiguous())
    states = States(kernels, rows.ids, logits.shape[1])
    states.add(dense_rows(logits), 0, rows, None, 0.0)
    outputs = states.outputs()
    check_rows("logits", outputs[1])
    return outputs


def gather_log_probs_backward(
    kernels: RowKernels,
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
    dlogits = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
    saved = (grad_logits, grad_lse, grad_entropy, lse, entropy)
    kernels.gradient(
        dense_rows(logits),
        None,
        0.0,
        inv_temperature.contiguous(),
        ids.long().contiguous(),
        0,
        *(x.contiguous() for x in saved),
        dlogits,
    )
    return dlogits
