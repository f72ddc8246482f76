"""Triton kernels of selected log-probabilities, in one of two ways.

Contract: ``chunks`` are torch's matrix products with row kernels (head/rows.py) on the
logits between them, as `lepo_kernels.backends.gpu.head` says: the best products, but each logit
goes to memory and back several times, and the backward pass waits once for the GPU to learn how
many rows it may leave out. ``tiles`` (head/tiles.py) have products of their own, the forward pass
without logits in memory, and never wait. Which one is taken depends on the device, the dtype, D and
V (head/strategies.py), never on the number of rows, so that no row's statistics depend on the
others.

``gather_log_probs`` are the row kernels alone.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from lepo_kernels.backends.gpu import head as gpu_head
from lepo_kernels.backends.gpu import logits as gpu_logits
from lepo_kernels.backends.gpu.row_kernels import RowKernels
from lepo_kernels.backends.triton.head import rows, strategies, tiles
from lepo_kernels.structures import Head, HeadGradients, Needs, Selection, Statistics, Upstream


class Strategy(NamedTuple):
    """One way to compute both directions of `linear_log_probs`, with this module's signatures."""

    forward: Callable[..., tuple[Tensor, Tensor, Tensor]]
    backward: Callable[..., HeadGradients]


def row_kernels() -> RowKernels:
    """What this backend does with a block of logits."""
    return RowKernels(rows.summarise, rows.statistics, rows.gradient)


STRATEGIES = {
    "chunks": Strategy(
        functools.partial(gpu_head.linear_log_probs, row_kernels()),
        functools.partial(gpu_head.linear_log_probs_backward, row_kernels()),
    ),
    "tiles": Strategy(
        tiles.linear_log_probs,
        tiles.linear_log_probs_backward,
    ),
}


def linear_log_probs(
    head: Head, selection: Selection, chunk_size: int, shard: bool
) -> tuple[Tensor, Tensor, Tensor]:  # [N, K], [N], [N]
    """Selected logits, log-sum-exp and entropy of ``cap(hidden @ lm_head^T + bias) / T``."""
    return _strategy(head).forward(head, selection, chunk_size, shard)


def linear_log_probs_backward(
    upstream: Upstream,
    head: Head,
    selection: Selection,
    statistics: Statistics,
    chunk_size: int,
    needs: Needs,
) -> HeadGradients:
    """Gradients of the hidden states, the head and the bias; those not needed are empty."""
    return _strategy(head).backward(upstream, head, selection, statistics, chunk_size, needs)


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


def _strategy(head: Head) -> Strategy:
    hidden, (vocab, width) = head.hidden, head.lm_head.shape
    return STRATEGIES[strategies.choice(hidden.device, hidden.dtype, width, vocab)]
