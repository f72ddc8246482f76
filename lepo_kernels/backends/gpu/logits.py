"""Selected log-probabilities of precomputed logits on a GPU: a backend's row kernels alone."""

import torch
from torch import Tensor

from lepo_kernels.backends.checks import check_ids, check_positive, check_rows
from lepo_kernels.backends.gpu.blocks import rows_of
from lepo_kernels.backends.gpu.row_kernels import RowKernels, States
from lepo_kernels.backends.rows import dense_rows
from lepo_kernels.structures import Selection, Statistics, Upstream


def gather_log_probs(
    kernels: RowKernels,
    logits: Tensor,  # [N, V]
    selection: Selection,
) -> tuple[Tensor, Tensor, Tensor]:  # [N, K], [N], [N]
    """Selected logits, log-sum-exp and entropy of ``logits / T``."""
    check_ids("ids", selection.ids, logits.shape[1])
    check_positive("inv_temperature", selection.inv_temperature)
    rows = rows_of(logits, selection, None)
    states = States(kernels, rows.ids, logits.shape[1])
    states.add(dense_rows(logits), 0, rows, None, 0.0)
    outputs = states.outputs()
    check_rows("logits", outputs[1])
    return outputs


def gather_log_probs_backward(
    kernels: RowKernels,
    upstream: Upstream,
    logits: Tensor,  # [N, V]
    selection: Selection,
    statistics: Statistics,
) -> Tensor:  # [N, V]
    """Gradient of the logits, in their dtype."""
    dlogits = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
    kernels.gradient(
        dense_rows(logits),
        None,
        0.0,
        selection.inv_temperature.contiguous(),
        selection.ids.long().contiguous(),
        0,
        *(x.contiguous() for x in (*upstream, *statistics)),
        dlogits,
    )
    return dlogits
