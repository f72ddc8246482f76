"""The policy's log-probabilities on the steps of a rollout, with gradient.

Contract: one forward over prompt and completion (`run_on_steps`); agrees with the rollout's own
``log_probs``. Old and reference log-probabilities come from here: none is computed on shadow ids.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lepo_kernels.formulas.latent_scores import ScoredRows
from lepo_kernels.formulas.ratios import score_of
from lepo_kernels.formulas.scores import soft_log_prob
from lepo_kernels.rollout.layout import LayoutSettings
from lepo_kernels.rollout.lm_head import LmHead
from lepo_kernels.rollout.record import LatentRollout
from lepo_kernels.rollout.selected_steps import SelectedSteps, run_on_steps
from lepo_kernels.validation import check_positive_number


@dataclass(frozen=True)
class PolicyLogProbs:
    """What the policy gives to M selected steps, in row-major order of the selection.

    Attributes:
        ids: [M, K] int64; on a discrete step its id, repeated.
        weights: [M, K] float32; on a discrete step (1, 0, ..., 0).
        logits: [M, K] float32, logits / temperature at ``ids``.
        lse: [M] float32, log-sum-exp over the whole vocabulary.
        entropy: [M] float32, over the whole vocabulary.
        latent: [M] bool, which steps are latent.
        recorded: [M, K] float32, what the rollout recorded for the method's score, or None.
    """

    ids: Tensor
    weights: Tensor
    logits: Tensor
    lse: Tensor
    entropy: Tensor
    latent: Tensor
    recorded: Tensor | None = None

    @property
    def log_prob(self) -> Tensor:
        """[M]: sum_k w_k log pi(id_k), which on a discrete step is log pi(id)."""
        return soft_log_prob(self.logits, self.lse, self.weights)

    def score(self, latent_score: str) -> Tensor:  # [M], or [M, K] of a score with slots
        """What has the importance ratio: `log_prob`, and on latent steps the score of a name.

        Args:
            latent_score: see `lepo_kernels.formulas.latent_scores`.
        """
        # No score has a value that depends on advantages.
        rows = ScoredRows(self.weights, self.recorded, torch.zeros_like(self.lse))
        return score_of(latent_score, self.log_prob, self.logits, self.lse, self.latent, rows)


torch.serialization.add_safe_globals([PolicyLogProbs])


def policy_log_probs(
    model: Any,
    rollout: LatentRollout,
    step_mask: Tensor,  # [B, T]
    *,
    temperature: float = 1.0,
    share_prompts: bool = True,
    packing: bool = True,
    backend: str | None = None,
) -> PolicyLogProbs:
    """Log-probabilities of ``softmax(logits / temperature)`` on selected steps of a rollout.

    Args:
        model: a decoder-only transformers model, possibly inside DDP, FSDP or peft. It is run in
            the mode (train or eval) it is in.
        rollout: B rows of at most T steps, on the model's device.
        step_mask: [B, T] bool, the steps to score. Logits are formed for these only.
        temperature: as in the rollout's settings.
        share_prompts: run each prompt once for all of its samples, where that runs fewer tokens
            and the model's cache allows it.
        packing: lay rows end to end, where that does and the model's attention allows it.
        backend: see `lepo_kernels.backend`.

    Returns:
        `PolicyLogProbs`; differentiable in all parameters of the model, the embedding table through
        the mixtures included.

    Raises:
        TypeError, ValueError: a wrong shape, dtype or device; a step that does not exist (checked
            on the CPU, or with ``LEPO_CHECK_VALUES=1``); a model that cannot be served (see
            ``SoftEmbedding`` and ``LmHead``).
    """
    temperature = check_positive_number("temperature", temperature)

    def score(head: LmHead, hidden: Tensor, steps: SelectedSteps) -> tuple[Tensor, ...]:
        return head.log_probs(hidden, steps.ids, temperature=temperature)

    steps, (logits, lse, entropy, *_), *_ = run_on_steps(
        model,
        rollout,
        step_mask,
        score,
        layout=LayoutSettings(share_prompts, packing),
        backend=backend,
    )
    return PolicyLogProbs(
        steps.ids, steps.weights, logits, lse, entropy, steps.latent, steps.recorded
    )
