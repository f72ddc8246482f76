"""Triton kernels of LEPO's loss: torch's matrix products, and row kernels between them.

Contract: as `lepo_kernels.backends.chunked_loss` says; the row kernels are those of
lepo_kernels/backends/triton/linear_log_probs.py.
"""

from torch import Tensor

from lepo_kernels.backends import chunked_loss
from lepo_kernels.backends.triton.linear_log_probs import row_kernels


def lepo_loss(
    hidden: Tensor,  # [N, D]
    lm_head: Tensor,  # [V, D]
    ids: Tensor,  # [N, K]
    weights: Tensor,  # [N, K]
    latent: Tensor,  # [N]
    advantages: Tensor,  # [N]
    row_weights: Tensor,  # [N]
    old_log_prob: Tensor | None,  # [N]
    ref_log_probs: Tensor | None,  # [N, K]
    bias: Tensor | None,  # [V]
    softcap: float | None,
    inv_temperature: Tensor,  # [N] or [1]
    beta: float,
    epsilon: float,
    epsilon_high: float,
    delta: float | None,
    latent_kl: str,
    need_dhidden: bool,
    need_dlm_head: bool,
    need_dbias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The fields of `LepoLoss`, then the gradients of hidden, lm_head and bias, or empty ones."""
    return chunked_loss.lepo_loss(
        row_kernels(),
        hidden,
        lm_head,
        ids,
        weights,
        latent,
        advantages,
        row_weights,
        old_log_prob,
        ref_log_probs,
        bias,
        softcap,
        inv_temperature,
        beta,
        epsilon,
        epsilon_high,
        delta,
        latent_kl,
        need_dhidden,
        need_dlm_head,
        need_dbias,
    )


def lepo_loss_backward(
    grad_loss: Tensor,  # []
    dhidden: Tensor,  # [N, D] or [0]
    dlm_head: Tensor,  # [V, D] or [0]
    dbias: Tensor,  # [V] or [0]
    hidden: Tensor,  # [N, D]
    lm_head: Tensor,  # [V, D]
    bias: Tensor | None,  # [V]
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of the loss times its own."""
    return chunked_loss.lepo_loss_backward(
        grad_loss, dhidden, dlm_head, dbias, hidden, lm_head, bias
    )
