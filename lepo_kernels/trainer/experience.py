"""A rollout with everything the loss needs beside it."""

import dataclasses
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lepo_kernels.formulas.latent_scores import SOFT
from lepo_kernels.rollout.layout import LayoutSettings
from lepo_kernels.rollout.policy_log_probs import policy_log_probs
from lepo_kernels.rollout.record import LatentRollout

_ANY_LAYOUT = LayoutSettings()


@dataclass
class Experience:
    """Samples of one rollout on one process, in the order in which micro-batches take them.

    Attributes:
        rollout: the recorded samples.
        advantages: [B] float32.
        token_weights: [B, T] float32: the loss's normalisation; 0 leaves a step out.
        old_log_prob: [B, T] float32 log-probabilities under the sampling policy, on latent steps
            the method's score, computed by a training forward; [B, T, K] of a score with slots;
            None while the policy has not moved.
        ref_log_probs: [B, T, K] float32 log-probabilities of each step's ids under the reference
            policy; None without a KL term.
        counts: [B, T] bool, the steps that the policy's term is of; None for all. The KL is of all.
    """

    rollout: LatentRollout
    advantages: Tensor
    token_weights: Tensor
    old_log_prob: Tensor | None = None
    ref_log_probs: Tensor | None = None
    counts: Tensor | None = None

    def __len__(self) -> int:
        return self.advantages.shape[0]

    def select(
        self,
        index: Tensor,  # [M] int64
    ) -> "Experience":
        """The samples named by ``index``, in its order."""
        return Experience(
            rollout=self.rollout.select(index),
            advantages=self.advantages[index],
            token_weights=self.token_weights[index],
            old_log_prob=None if self.old_log_prob is None else self.old_log_prob[index],
            ref_log_probs=None if self.ref_log_probs is None else self.ref_log_probs[index],
            counts=None if self.counts is None else self.counts[index],
        )

    def step_advantages(self) -> Tensor:  # [B, T]
        """Of each step; 0 where the policy's term is not of it."""
        each = self.advantages[:, None].expand(self.token_weights.shape)
        return each if self.counts is None else each.masked_fill(~self.counts, 0.0)

    def contributing(self, beta: float) -> "Experience":
        """Without the samples whose gradient is zero; at least one stays.

        A sample of advantage 0 adds nothing to the loss while there is no KL term. One sample is
        kept even then: every process must run a forward, or distributed training would hang.
        """
        if beta > 0:
            return self
        counts = (self.advantages != 0) & (self.token_weights != 0).any(-1)
        index = counts.nonzero()[:, 0]
        if index.numel() == 0:
            index = torch.zeros(1, dtype=torch.int64, device=self.advantages.device)
        return self if index.numel() == len(self) else self.select(index)

    def state_dict(self) -> dict[str, Any]:
        """Plain tensors, for `torch.save`."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {**fields, "rollout": self.rollout.state_dict()}

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> "Experience":
        """The inverse of `state_dict`."""
        return cls(**{**state, "rollout": LatentRollout.from_state_dict(state["rollout"])})


def training_order(
    samples: int,
    group: int,
    updates: int,
    generator: torch.Generator,
) -> Tensor:  # [samples] int64
    """The order in which the updates of a rollout take its samples.

    Which update a sample is in is drawn; within an update the samples of a prompt follow each
    other, so that a micro-batch has several, whose prompt need be run once.

    Args:
        samples: of the rollout, groups side by side.
        group: samples per prompt.
        updates: that share the samples equally.
        generator: of the draw.
    """
    drawn = torch.randperm(samples, generator=generator).reshape(updates, -1)
    prompts = drawn // group
    return drawn.gather(1, prompts.argsort(dim=1, stable=True)).flatten()


class StepScores(NamedTuple):
    """Of every recorded step, on the mixtures; 0 where there is no action."""

    log_prob: Tensor  # [B, T]: the (soft) log-probability
    log_probs: Tensor  # [B, T, K]: of each of its ids
    score: Tensor  # [B, T], or [B, T, K] of a score with slots: what has the importance ratio


@torch.no_grad()
def step_scores(
    model: torch.nn.Module,
    rollout: LatentRollout,
    temperature: float,
    batch_size: int,
    *,
    latent_score: str = SOFT,
    layout: LayoutSettings = _ANY_LAYOUT,
) -> StepScores:
    """Log-probabilities and scores of every recorded step, without gradient, float32.

    Args:
        model: the policy or the reference.
        rollout: the recorded samples.
        temperature: T of the policy.
        batch_size: samples per forward.
        latent_score: the method's score of latent steps.
        layout: which layouts a forward may take.
    """
    was_training = model.training
    model.eval()
    try:
        parts = [
            _step_scores(model, rollout.select(index), temperature, latent_score, layout)
            for index in torch.arange(len(rollout), device=rollout.completion_ids.device).split(
                batch_size
            )
        ]
    finally:
        model.train(was_training)
    return StepScores(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _step_scores(
    model: torch.nn.Module,
    rollout: LatentRollout,
    temperature: float,
    latent_score: str,
    layout: LayoutSettings,
) -> StepScores:
    step_mask = rollout.action_mask
    scored = policy_log_probs(
        model, rollout, step_mask, temperature=temperature, **layout._asdict()
    )
    K = max(1, rollout.latent_ids.shape[2])
    log_probs = scored.logits - scored.lse[:, None]
    values = (scored.log_prob, log_probs, scored.score(latent_score))
    return StepScores(*(_at_steps(x, step_mask, K) for x in values))


def _at_steps(
    values: Tensor,  # [M] or [M, <= K]
    step_mask: Tensor,  # [B, T] bool, of M steps
    K: int,
) -> Tensor:  # [B, T] or [B, T, K]
    """Where the steps are, and 0 elsewhere.

    A batch without latent steps comes with one id per step, whatever K is.
    """
    if values.dim() == 1:
        placed = values.new_zeros(step_mask.shape)
        placed[step_mask] = values
        return placed
    placed = values.new_zeros(*step_mask.shape, K)
    placed[..., : values.shape[1]][step_mask] = values
    return placed
