"""From what each step of a rollout chose to its record: masks are formed once, at the end."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from lepo_kernels.rollout.config import LatentGenerationConfig
from lepo_kernels.rollout.record import LatentRollout


class RecordedSteps(NamedTuple):
    """What B rows did in S steps. Where a row is not live, or not latent, entries are arbitrary."""

    token: Tensor  # [B, S] int64
    log_prob: Tensor  # [B, S] float32
    entropy: Tensor  # [B, S] float32
    live: Tensor  # [B, S] bool
    ids: Tensor  # [B, L, K] int64, of the steps that may be latent
    weights: Tensor  # [B, L, K] float32
    kept: Tensor  # [B, L]
    scores: Tensor  # [B, L, K] float32, or [B, L, 0] where nothing is recorded
    latent_end: Tensor  # [B] int64, the step at which the latent phase ends
    unfinished: Tensor  # [B] bool


def as_rollout(steps: RecordedSteps, config: LatentGenerationConfig, **given: Any) -> LatentRollout:
    """The record of these steps, as long as its longest row.

    Args:
        steps: what the rows did.
        config: how they were sampled.
        **given: the other fields of `LatentRollout`.
    """
    S = int(steps.live.any(dim=0).sum())
    L = min(S, steps.ids.shape[1])
    live = steps.live[:, :S]
    after = torch.arange(S, device=live.device) - steps.latent_end[:, None]
    latent = live & (after < 0)
    action = live & ~((after >= 0) & (after < len(config.latent_suffix_ids)))
    mixed = latent[:, :L]
    return LatentRollout(
        completion_ids=steps.token[:, :S].masked_fill(~live, config.pad_token_id),
        completion_mask=live.contiguous(),
        latent_mask=latent,
        action_mask=action,
        latent_ids=steps.ids[:, :L] * mixed[..., None],
        # Not by a product: what a finished row holds may be NaN.
        latent_weights=steps.weights[:, :L].masked_fill(~mixed[..., None], 0),
        latent_count=steps.kept[:, :L].long() * mixed,
        latent_scores=steps.scores[:, :L].masked_fill(~mixed[..., None], -torch.inf),
        log_probs=steps.log_prob[:, :S].masked_fill(~action, 0),
        entropy=steps.entropy[:, :S].masked_fill(~action, 0),
        truncated=steps.unfinished,
        **given,
    )
