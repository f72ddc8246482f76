"""LEPO's loss of the steps of a rollout, with gradient.

Contract: `policy_log_probs` followed by `lepo_objective`, by `lepo_loss`, which multiplies the head
three times instead of four.
"""

from typing import Any

from torch import Tensor

from lepo_kernels.formulas.lepo_objective import LepoLoss
from lepo_kernels.rollout.lm_head import LmHead
from lepo_kernels.rollout.record import LatentRollout
from lepo_kernels.rollout.selected_steps import SelectedSteps, run_on_steps
from lepo_kernels.validation import check_number


def policy_loss(
    model: Any,
    rollout: LatentRollout,
    rows: Tensor,  # [B, T]
    advantages: Tensor,  # [M]
    row_weights: Tensor,  # [M]
    *,
    old_log_prob: Tensor | None = None,  # [M]
    ref_log_probs: Tensor | None = None,  # [M, >= K]
    temperature: float = 1.0,
    backend: str | None = None,
    **settings: Any,
) -> LepoLoss:
    """LEPO's loss on the M selected steps of a rollout, in row-major order of the selection.

    Args:
        model, rollout, rows, temperature, backend: see `policy_log_probs`.
        advantages, row_weights, old_log_prob: see `lepo_objective`.
        ref_log_probs: [M, K] or wider: the log-probabilities of the steps' ids under the reference
            policy come first. K is 1 where no step is latent.
        **settings: ``beta`` and the others of `lepo_objective`.

    Returns:
        `LepoLoss` of the M steps; differentiable in all parameters of the model, the embedding
        table through the mixtures included.

    Raises:
        TypeError, ValueError: as `policy_log_probs` and `lepo_objective`.
    """
    check_number("temperature", temperature, 0.0, low_included=False)

    def loss(head: LmHead, hidden: Tensor, steps: SelectedSteps) -> tuple[Tensor, ...]:
        kept = steps.ids.shape[1]
        return head.lepo_loss(
            hidden,
            *steps,
            advantages,
            row_weights,
            old_log_prob=old_log_prob,
            ref_log_probs=None if ref_log_probs is None else ref_log_probs[:, :kept],
            temperature=temperature,
            **settings,
        )

    _, outputs = run_on_steps(model, rollout, rows, loss, backend=backend)
    return LepoLoss(*outputs)
