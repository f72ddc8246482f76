"""The record of a rollout while it grows, a step at a time."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from lepo_kernels.rollout.config import LatentGenerationConfig
from lepo_kernels.rollout.record import LatentRollout


class Choice(NamedTuple):
    """What the live rows do at a step: n rows, K entries of the mixture that is fed next."""

    ids: Tensor  # [n, K]
    weights: Tensor  # [n, K]
    kept: Tensor  # [n]: entries the sampler kept
    token: Tensor  # [n]: shadow, forced or sampled id
    log_prob: Tensor  # [n]
    entropy: Tensor  # [n]
    latent: Tensor  # [n] bool
    forced: Tensor  # [n] bool
    embedding: Tensor | None = None  # [n, D], of the mixture; None leaves it to be formed

    def select(
        self,
        keep: Tensor,  # [m] int64
    ) -> "Choice":
        """Some of the rows."""
        return Choice(*(None if x is None else x[keep] for x in self))  # type: ignore[arg-type]


class GrowingRecord:
    """The growing ``LatentRollout``: buffers for all rows, written a step at a time."""

    def __init__(self, B: int, config: LatentGenerationConfig, device: torch.device):
        T, L = config.max_new_tokens, config.latent_length

        def buffer(*shape: int, dtype: torch.dtype, fill: float = 0) -> Tensor:
            return torch.full(shape, fill, dtype=dtype, device=device)

        self.completion_ids = buffer(B, T, dtype=torch.int64, fill=config.pad_token_id)
        self.completion_mask = buffer(B, T, dtype=torch.bool)
        self.latent_mask = buffer(B, T, dtype=torch.bool)
        self.action_mask = buffer(B, T, dtype=torch.bool)
        self.log_probs = buffer(B, T, dtype=torch.float32)
        self.entropy = buffer(B, T, dtype=torch.float32)
        self.latent_ids = buffer(B, L, 0, dtype=torch.int64)
        self.latent_weights = buffer(B, L, 0, dtype=torch.float32)
        self.latent_count = buffer(B, L, dtype=torch.int64)
        self.stopped = buffer(B, dtype=torch.bool)
        self.latent_length = L
        self.pad_token_id = config.pad_token_id

    def write(self, step: int, rows: Tensor, live: Tensor, choice: Choice, stopped: Tensor) -> None:
        """Store a step of the rows ``rows``; finished ones among them store padding."""
        self.completion_ids[rows, step] = choice.token.masked_fill(~live, self.pad_token_id)
        self.completion_mask[rows, step] = live
        self.action_mask[rows, step] = live & ~choice.forced
        self.log_probs[rows, step] = choice.log_prob.masked_fill(~live, 0.0)
        self.entropy[rows, step] = choice.entropy.masked_fill(~live, 0.0)
        self.stopped[rows] |= live & stopped
        if step >= self.latent_length:
            return
        latent = live & choice.latent
        self.latent_mask[rows, step] = latent
        K = choice.ids.shape[1]
        self._widen(K)
        self.latent_ids[rows, step, :K] = choice.ids * latent[:, None]
        self.latent_weights[rows, step, :K] = choice.weights.float() * latent[:, None]
        self.latent_count[rows, step] = choice.kept * latent

    def _widen(self, K: int) -> None:
        """Make room for K entries; rare, since only an unlimited top-k changes its width."""
        more = K - self.latent_ids.shape[2]
        if more > 0:
            self.latent_ids = torch.nn.functional.pad(self.latent_ids, (0, more))
            self.latent_weights = torch.nn.functional.pad(self.latent_weights, (0, more))

    def result(self, steps: int, **given: Any) -> LatentRollout:
        """The first ``steps`` steps, and what is given of the other fields."""
        return LatentRollout(
            completion_ids=self.completion_ids[:, :steps],
            completion_mask=self.completion_mask[:, :steps],
            latent_mask=self.latent_mask[:, :steps],
            action_mask=self.action_mask[:, :steps],
            latent_ids=self.latent_ids[:, :steps],
            latent_weights=self.latent_weights[:, :steps],
            latent_count=self.latent_count[:, :steps],
            log_probs=self.log_probs[:, :steps],
            entropy=self.entropy[:, :steps],
            truncated=~self.stopped,
            **given,
        )
