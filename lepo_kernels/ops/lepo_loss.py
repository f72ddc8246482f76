"""P6: LEPO's loss from hidden states and the language-model head.

Design note: the loss is a sum over rows, so the gradient of a row's logits is known as soon as its
own logits are. Where the backend has a kernel for it, the forward pass forms the gradients, too,
and the logits are not computed again: three products of the head instead of four. Elsewhere it is
`linear_log_probs` followed by `lepo_objective`, which say what the loss is; the fused kernel may
never disagree with them.
"""

from typing import Any

import torch
from torch import Tensor

from lepo_kernels import dispatch
from lepo_kernels.formulas.lepo_objective import (
    LepoLoss,
    check_rows_of_loss,
    check_settings,
    lepo_objective,
)
from lepo_kernels.ops._library import torch_op
from lepo_kernels.ops.linear_log_probs import linear_log_probs, prepare_head, prepare_rows


def lepo_loss(
    hidden: Tensor,  # [N, D]
    lm_head: Tensor,  # [V, D]
    ids: Tensor,  # [N, K]
    weights: Tensor,  # [N, K]
    latent: Tensor,  # [N] bool
    advantages: Tensor,  # [N]
    row_weights: Tensor,  # [N]
    *,
    old_log_prob: Tensor | None = None,  # [N]
    ref_log_probs: Tensor | None = None,  # [N, K]
    beta: float = 0.0,
    epsilon: float = 0.2,
    epsilon_high: float | None = None,
    delta: float | None = None,
    latent_kl: str = "k3",
    bias: Tensor | None = None,  # [V]
    softcap: float | None = None,
    inv_temperature: float | Tensor = 1.0,  # [] or [N]
    backend: str | None = None,
) -> LepoLoss:
    """LEPO's loss from hidden states: `linear_log_probs` followed by `lepo_objective`.

    A fused kernel computes the gradients in the forward pass, and only those that autograd will ask
    for; the backward pass hands them over, multiplied by the loss's own gradient. On the CPU that
    multiplication, and the copy it makes, is spared where that is 1: put factors into
    ``row_weights``. On a GPU it is always made: to look at that number would be to wait. A fused
    kernel does not look at rows that are left out (`LepoLoss`); on a GPU it waits once for their
    number, unless a CUDA graph is captured.

    On a GPU it holds up to 3 GiB beside its results, or more for a head that alone is larger
    (`lepo_kernels.backends.gpu.loss`): what it takes not to compute the logits again.
    `linear_log_probs` has a ``chunk_size`` where that is too much.

    Args:
        hidden: [N, D] final hidden states, one row per scored step.
        lm_head: [V, D] weight of the language-model head.
        ids: [N, K] int64 or int32: the kept ids of a latent row; the sampled id in one slot of a
            discrete row.
        weights: [N, K] constants: the mixture weights of a latent row; one-hot on a discrete row.
        latent, advantages, row_weights, old_log_prob, ref_log_probs, beta, epsilon, epsilon_high,
            delta, latent_kl: see `lepo_objective`.
        bias, softcap, inv_temperature, backend: see `linear_log_probs`.

    Returns:
        `LepoLoss`. Differentiable in ``hidden``, ``lm_head`` and ``bias``.

    Raises:
        TypeError, ValueError: an argument has the wrong dtype, shape, device or range.
        ValueError, IndexError: a row's logits or an id are bad; see `linear_log_probs`.
        RuntimeError: a second or forward-mode derivative is asked for.
    """
    epsilon_high = epsilon if epsilon_high is None else epsilon_high
    head = prepare_head(hidden, lm_head, bias, softcap)
    scale = prepare_rows(head, ids, inv_temperature)
    check_rows_of_loss(ids, weights, latent, advantages, row_weights, old_log_prob, ref_log_probs)
    check_settings(beta, epsilon, epsilon_high, delta, latent_kl, ref_log_probs)
    dtype = head.hidden.dtype
    op, chosen = dispatch.resolve_or_fall_back("lepo_loss", hidden.device, backend, dtype)
    if op != "lepo_loss":
        scored = linear_log_probs(
            hidden,
            lm_head,
            ids,
            bias=bias,
            softcap=softcap,
            inv_temperature=inv_temperature,
            backend=chosen,
        )
        return lepo_objective(
            scored.logits,
            scored.lse,
            weights,
            latent,
            advantages,
            row_weights,
            old_log_prob=old_log_prob,
            ref_log_probs=ref_log_probs,
            beta=beta,
            epsilon=epsilon,
            epsilon_high=epsilon_high,
            delta=delta,
            latent_kl=latent_kl,
        )
    loss, *metrics, _, _, _ = torch.ops.lepo_kernels.lepo_loss(
        head.hidden,
        head.lm_head,
        ids,
        weights.detach(),
        latent,
        advantages.detach(),
        row_weights.detach(),
        None if old_log_prob is None else old_log_prob.detach(),
        None if ref_log_probs is None else ref_log_probs.detach(),
        head.bias,
        head.softcap,
        scale,
        float(beta),
        float(epsilon),
        float(epsilon_high),
        None if delta is None else float(delta),
        latent_kl,
        *(_will_be_asked_for(x) for x in (head.hidden, head.lm_head, head.bias)),
        chosen,
    )
    return LepoLoss(loss, *metrics)


def _will_be_asked_for(x: Tensor | None) -> bool:
    return x is not None and x.requires_grad and torch.is_grad_enabled()


@torch_op("lepo_loss")
def _lepo_loss(
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
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The fields of `LepoLoss`, then the gradients of the loss; one not needed comes empty."""
    outputs: tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor] = dispatch.load(
        "lepo_loss", backend
    )(
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
    return outputs


@_lepo_loss.register_fake
def _(
    hidden: Tensor,
    lm_head: Tensor,
    ids: Tensor,
    weights: Tensor,
    latent: Tensor,
    advantages: Tensor,
    row_weights: Tensor,
    old_log_prob: Tensor | None,
    ref_log_probs: Tensor | None,
    bias: Tensor | None,
    softcap: float | None,
    inv_temperature: Tensor,
    beta: float,
    epsilon: float,
    epsilon_high: float,
    delta: float | None,
    latent_kl: str,
    need_dhidden: bool,
    need_dlm_head: bool,
    need_dbias: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    row = hidden.new_empty(hidden.shape[0], dtype=torch.float32)
    return (
        row.new_empty(()),
        row,
        torch.empty_like(row),
        torch.empty_like(row),
        torch.empty_like(row, dtype=torch.int8),
        hidden.new_empty(hidden.shape if need_dhidden else (0,)),
        lm_head.new_empty(lm_head.shape if need_dlm_head else (0,)),
        lm_head.new_empty(lm_head.shape[0] if need_dbias else 0),
    )


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    hidden, lm_head, bias, ctx.backend = inputs[0], inputs[1], inputs[9], inputs[-1]
    ctx.needs = inputs[-4:-1]
    gradients = output[5:]
    ctx.mark_non_differentiable(*output[1:])
    # Else autograd would make zeros of the size of the head for the outputs that have no gradient.
    ctx.set_materialize_grads(False)
    # The first three only give second derivatives something to be refused for.
    ctx.save_for_backward(hidden, lm_head, bias, *gradients)


def _backward(
    ctx: Any, grad_loss: Tensor | None, *constants: Tensor | None
) -> tuple[Tensor | None, ...]:
    if grad_loss is None:
        return (None,) * 21
    hidden, lm_head, bias, *gradients = ctx.saved_tensors
    if not _is_plain_one(grad_loss):
        gradients = torch.ops.lepo_kernels.lepo_loss_backward(
            grad_loss, *gradients, hidden, lm_head, bias, ctx.backend
        )
    dhidden, dlm_head, dbias = (
        x if needed else None for x, needed in zip(gradients, ctx.needs, strict=True)
    )
    return dhidden, dlm_head, *(None,) * 7, dbias, *(None,) * 11


def _is_plain_one(grad_loss: Tensor) -> bool:
    """Whether the loss's gradient is known to be 1 without waiting, tracing or differentiating."""
    return (
        type(grad_loss) is Tensor
        and grad_loss.device.type == "cpu"
        and not torch.is_grad_enabled()
        and float(grad_loss.detach()) == 1.0
    )


@torch_op("lepo_loss_backward")
def _lepo_loss_backward(
    grad_loss: Tensor,  # []
    dhidden: Tensor,  # [N, D] or [0]
    dlm_head: Tensor,  # [V, D] or [0]
    dbias: Tensor,  # [V] or [0]
    hidden: Tensor,  # [N, D]
    lm_head: Tensor,  # [V, D]
    bias: Tensor | None,  # [V]
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of the loss times its own; hidden, lm_head and bias are what it is made of."""
    grads: tuple[Tensor, Tensor, Tensor] = dispatch.load("lepo_loss_backward", backend)(
        grad_loss, dhidden, dlm_head, dbias, hidden, lm_head, bias
    )
    return grads


@_lepo_loss_backward.register_fake
def _(
    grad_loss: Tensor,
    dhidden: Tensor,
    dlm_head: Tensor,
    dbias: Tensor,
    hidden: Tensor,
    lm_head: Tensor,
    bias: Tensor | None,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(dhidden), torch.empty_like(dlm_head), torch.empty_like(dbias)


_lepo_loss.register_autograd(_backward, setup_context=_setup)
_lepo_loss_backward.refuse_double_backward()
