"""LEPO's loss from hidden states and the language-model head.

Design note: the loss is a sum over rows, so the gradient of a row's logits is known as soon as its
own logits are. Where the backend has a kernel for it, the forward pass forms the gradients, too,
and the logits are not computed again: three products of the head instead of four. Elsewhere it is
`linear_log_probs` followed by `lepo_objective`, which say what the loss is; the fused kernel may
never disagree with them.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from lepo_kernels import dispatch
from lepo_kernels.formulas.latent_scores import SOFT
from lepo_kernels.formulas.latent_scores import latent_score as score_named
from lepo_kernels.formulas.lepo_objective import LepoLoss, objective_of
from lepo_kernels.formulas.loss_rows import LossSettings, RowFacts, check_loss
from lepo_kernels.ops._library import save, saved, torch_op
from lepo_kernels.ops.linear_log_probs import (
    linear_log_probs_op,
    prepare_head,
    prepare_selection,
    rows_at_a_time,
)
from lepo_kernels.structures import Head, HeadGradients, Needs, Selection


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
    latent_score: str = SOFT,
    latent_ratio: bool = False,
    recorded: Tensor | None = None,  # [N, K]
    sequences: Tensor | None = None,  # [N] int64
    surrogate: str = "ppo",
    kl_times_ratio: bool = False,
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
            delta, latent_kl, latent_score, latent_ratio, recorded, sequences, surrogate,
            kl_times_ratio: see `lepo_objective`. A score without a written-out derivative is not
            fused, nor are sequences: their logits are formed twice.
        bias, softcap, inv_temperature, backend: see `linear_log_probs`.

    Returns:
        `LepoLoss`. Differentiable in ``hidden``, ``lm_head`` and ``bias``.

    Raises:
        TypeError, ValueError: an argument has the wrong dtype, shape, device or range.
        ValueError, IndexError: a row's logits or an id are bad; see `linear_log_probs`.
        RuntimeError: a second or forward-mode derivative is asked for.
    """
    upper = epsilon if epsilon_high is None else epsilon_high
    head = prepare_head(hidden, lm_head, bias, softcap)
    selection = prepare_selection(head, ids, inv_temperature)
    facts = RowFacts(
        weights,
        latent,
        advantages,
        row_weights,
        old_log_prob,
        ref_log_probs,
        recorded,
        sequences,
    )
    settings = LossSettings(
        beta,
        epsilon,
        upper,
        delta,
        latent_kl,
        latent_score,
        latent_ratio,
        surrogate,
        kl_times_ratio,
    )
    settings = check_loss(ids, facts, settings)
    op, chosen = _kernel_for(head, facts, settings, backend)
    if op != "lepo_loss":
        scored = linear_log_probs_op(head, selection, rows_at_a_time(None, head), False, chosen)
        return objective_of(scored.logits, scored.lse, facts, settings)
    needs = Needs(*(_will_be_asked_for(x) for x in (head.hidden, head.lm_head, head.bias)))
    results = _lepo_loss(head, selection, facts.detach(), settings, needs, chosen)
    return LepoLoss(*results[:5])


def _kernel_for(
    head: Head, facts: RowFacts, settings: LossSettings, backend: str | None
) -> tuple[str, str]:
    """The op, or what stands in for it, and the backend.

    What a row's gradient is must be known from its own logits.
    """
    device, dtype = head.hidden.device, head.hidden.dtype
    if facts.sequences is not None or score_named(settings.latent_score).slopes is None:
        return "linear_log_probs", dispatch.resolve("linear_log_probs", device, backend, dtype)
    return dispatch.resolve_or_fall_back("lepo_loss", device, backend, dtype)


def _will_be_asked_for(x: Tensor | None) -> bool:
    return x is not None and x.requires_grad and torch.is_grad_enabled()


class _Results(NamedTuple):
    """The fields of `LepoLoss`, then the gradients of the loss; one not needed comes empty."""

    loss: Tensor  # []
    log_prob: Tensor  # [N]
    kl: Tensor  # [N]
    ratio: Tensor  # [N]
    clipped: Tensor  # [N]
    dhidden: Tensor  # [N, D] or [0]
    dlm_head: Tensor  # [V, D] or [0]
    dbias: Tensor  # [V] or [0]


@torch_op("lepo_loss")
def _lepo_loss(
    head: Head,
    selection: Selection,
    facts: RowFacts,
    settings: LossSettings,
    needs: Needs,
    backend: str,
) -> _Results:
    row = head.hidden.new_empty(head.hidden.shape[0], dtype=torch.float32)
    return _Results(
        row.new_empty(()),
        row,
        torch.empty_like(row),
        torch.empty_like(row),
        torch.empty_like(row, dtype=torch.int8),
        *head.empty_gradients(needs),
    )


@torch_op("lepo_loss_backward")
def _lepo_loss_backward(
    grad_loss: Tensor,  # []
    gradients: HeadGradients,
    head: Head,
    backend: str,
) -> HeadGradients:
    """The gradients of the loss times its own; ``head`` is what the loss is made of."""
    return HeadGradients(*(torch.empty_like(x) for x in gradients))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: _Results) -> None:
    head, _, _, _, needs, backend = inputs
    ctx.mark_non_differentiable(*output[1:])
    # Else autograd would make zeros of the size of the head for the outputs that have no gradient.
    ctx.set_materialize_grads(False)
    # The head only gives second derivatives something to be refused for.
    save(ctx, HeadGradients(*output[5:]), head, needs, backend)


def _backward(ctx: Any, grad_loss: Tensor | None, *constants: Tensor | None) -> dict[str, Tensor]:
    if grad_loss is None:
        return {}
    gradients, head, needs, backend = saved(ctx)
    if not _is_plain_one(grad_loss):
        gradients = _lepo_loss_backward(grad_loss, gradients, head, backend)
    named = zip(("hidden", "lm_head", "bias"), gradients, needs, strict=True)
    return {name: gradient for name, gradient, needed in named if needed}


def _is_plain_one(grad_loss: Tensor) -> bool:
    """Whether the loss's gradient is known to be 1 without waiting, tracing or differentiating."""
    return (
        type(grad_loss) is Tensor
        and grad_loss.device.type == "cpu"
        and not torch.is_grad_enabled()
        and float(grad_loss.detach()) == 1.0
    )


_lepo_loss.register_autograd(_backward, _setup)
_lepo_loss_backward.refuse_double_backward()
