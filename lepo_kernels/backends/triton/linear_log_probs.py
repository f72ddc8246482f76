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


class Strategy(NamedTuple):
    """One way to compute both directions of `linear_log_probs`, with this module's signatures."""

    forward: Callable[..., tuple[Tensor, Tensor, Tensor]]
    backward: Callable[..., tuple[Tensor, Tensor, Tensor]]


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
    return _strategy(hidden, lm_head).forward(
        hidden, lm_head, ids, bias, softcap, inv_temperature, chunk_size, shard
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
    return _strategy(hidden, lm_head).backward(
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


def _strategy(
    hidden: Tensor,  # [N, D]
    lm_head: Tensor,  # [V, D]
) -> Strategy:
    vocab, width = lm_head.shape
    return STRATEGIES[strategies.choice(hidden.device, hidden.dtype, width, vocab)]
