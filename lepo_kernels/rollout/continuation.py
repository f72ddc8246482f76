"""The discrete phase of finished rollouts, decoded anew on top of other latent inputs.

Contract: the model runs once over prompt, latent inputs and suffix, as embeddings, and then step by
step. A row that is given its own latent inputs says what it said, up to the model's floating-point
noise: the noise of its s-th sampled token is keyed as in the rollout, by the step which that had
there, however many latent inputs the row is given now, and its room for an answer is the same.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from lepo_kernels.formulas.scores import hard_log_prob
from lepo_kernels.ops.sample_latent import sample_latent
from lepo_kernels.rollout._modules import evaluating, unwrap_model
from lepo_kernels.rollout.ablation import LatentPhase
from lepo_kernels.rollout.choosing import absent_ids
from lepo_kernels.rollout.config import LatentGenerationConfig
from lepo_kernels.rollout.model_cache import cache_argument, make_cache, step_arguments
from lepo_kernels.rollout.probe import check_served
from lepo_kernels.rollout.record import LatentRollout
from lepo_kernels.rollout.soft_embedding import SoftEmbedding


@torch.no_grad()
def answer_after(
    model: Any,
    rollout: LatentRollout,
    phase: LatentPhase,
    config: LatentGenerationConfig,
    *,
    progress: Callable[[int, int], None] | None = None,
    backend: str | None = None,
) -> LatentRollout:
    """Decode the discrete phase of a rollout on top of other latent inputs.

    A row that ended within its latent phase has no discrete phase, and is given none.

    Args:
        model: see `latent_generate`.
        rollout: B finished rows.
        phase: the latent inputs that they are given, [B, L', D].
        config: the settings that the rollout was made with.
        progress: called after each step with (steps done, steps at most).
        backend: see `lepo_kernels.backend`.

    Returns:
        The rows with the other latent phase and its answer. The latent steps are no actions: the
        policy did not choose them. For rewards and metrics, not for training: with noise on
        embeddings, what was fed is not what the record says.

    Raises:
        TypeError, ValueError: see `latent_generate`.
    """
    base = unwrap_model(model)
    soft = SoftEmbedding(base, backend=backend)
    # One row's phase may be longer than another's was.
    more = int(phase.mask.sum(dim=1).max() - rollout.latent_mask.sum(dim=1).min())
    columns = rollout.prompt_ids.shape[1] + config.max_new_tokens + max(0, more)
    lengths = rollout.prompt_mask.sum(dim=1) + phase.mask.sum(dim=1)
    padded = bool((lengths != lengths[0]).any())
    check_served(base, soft, config.cache_implementation, columns, padded=padded)
    with evaluating(base):
        return _Continuation(base, soft, rollout, phase, config, columns, backend).run(progress)


class _Continuation:
    """Rows whose answers are being decoded: those still in the batch, and the record of all."""

    def __init__(
        self,
        base: Any,
        soft: SoftEmbedding,
        rollout: LatentRollout,
        phase: LatentPhase,
        config: LatentGenerationConfig,
        columns: int,
        backend: str | None,
    ) -> None:
        self.base, self.soft, self.config, self.backend = base, soft, config, backend
        self.rollout, self.phase = rollout, phase
        device = rollout.device
        self.suffix = torch.tensor(config.latent_suffix_ids, dtype=torch.int64, device=device)
        self.eos = torch.tensor(config.eos_token_ids, device=device)
        self.last_only = step_arguments(base)
        self.cache = make_cache(base, config.cache_implementation, columns)
        self.cached = {cache_argument(base): self.cache, "use_cache": True}
        self.can_drop = all(
            type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in self.cache.layers
        )
        answers = (rollout.completion_mask & ~rollout.latent_mask).any(dim=1)
        self.answers = answers
        # Of the rows still in the batch.
        self.rows = torch.arange(len(rollout), device=device)
        self.keys = rollout.row_keys
        # The step of the next token in the rollout that was, and in the one that is made.
        self.step = rollout.latent_mask.sum(dim=1) + len(self.suffix)
        self.place = phase.mask.sum(dim=1) + len(self.suffix)
        self.live = answers & (self.step < config.max_new_tokens)
        self.sampled = config.max_new_tokens - int(self.step.min())
        self._make_buffers()

    def run(self, progress: Callable[[int, int], None] | None) -> LatentRollout:
        """Decode until every row is done or has no room left."""
        if bool(self.live.any()):
            logits = self._prefill()
            self.absent = self._absent(logits.shape[1])
            for done in range(1, self.sampled + 1):
                token = self._choose(logits)
                live = int(self.live.sum())
                if progress is not None:
                    progress(done, self.sampled)
                if live == 0 or done == self.sampled:
                    break
                if self.can_drop and 2 * live <= len(self.live):
                    token = self._drop_finished(token)
                logits = self._advance(token)
        return self._result()

    def _prefill(self) -> Tensor:
        """Logits [B, V] after prompt, latent inputs and suffix, which are moved together."""
        rollout, phase = self.rollout, self.phase
        B = len(rollout)
        # By the module itself: an adapter, or a scale, is part of it.
        prompt = self.soft.module(rollout.prompt_ids)
        suffix = self.soft.module(self.suffix.expand(B, -1))
        embedded = torch.cat([prompt, phase.inputs.to(prompt), suffix], dim=1)
        used = torch.cat(
            [rollout.prompt_mask, phase.mask, suffix.new_ones(suffix.shape[:2]) > 0], 1
        )
        width = int(used.sum(dim=1).max())
        order = used.int().argsort(dim=1, stable=True)[:, -width:]
        used = used.gather(1, order)
        embedded = embedded.gather(1, order[..., None].expand(-1, -1, embedded.shape[-1]))
        self.padded = not bool(used.all())
        self.mask = used.long()
        positions = self.mask.cumsum(dim=1) - 1
        self.position = positions[:, -1:]
        return self._forward(embedded * used[..., None], positions.clamp(min=0))

    def _forward(self, embedded: Tensor, positions: Tensor) -> Tensor:
        output = self.base(
            **self.cached,
            **self.last_only,
            inputs_embeds=embedded,
            # Without padding none is passed: transformers would read it back at every step.
            attention_mask=self.mask if self.padded else None,
            position_ids=positions,
        )
        logits: Tensor = output.logits[:, -1]
        return logits

    def _absent(self, vocab: int) -> Tensor | None:
        """The ids of ``vocab`` logits that no step may choose."""
        ids = absent_ids(self.config, self.soft, vocab)
        return torch.tensor(ids, dtype=torch.int64, device=self.eos.device) if ids else None

    def _choose(self, logits: Tensor) -> Tensor:
        """Sample a token [n] per row, record those of live rows, and end rows at an EOS."""
        config = self.config
        sample = sample_latent(
            logits,
            temperature=config.temperature,
            top_k=config.top_k,
            top_p=config.top_p,
            min_p=config.min_p,
            noise="gumbel" if config.samples_tokens else "none",
            seed=self.rollout.seed,
            row_keys=self.keys,
            step=self.step,
            exclude_ids=self.absent,
            backend=self.backend,
        )
        token = sample.token
        kept = (sample.ids == token[:, None]).int().argmax(dim=1)
        chosen = sample.logits.gather(1, kept[:, None])[:, 0]
        row, place = self.rows[self.live], self.place[self.live]
        self.ids[row, place] = token[self.live]
        self.exists[row, place] = True
        self.action[row, place] = True
        self.log_probs[row, place] = hard_log_prob(chosen, sample.lse).float()[self.live]
        self.entropy[row, place] = sample.entropy.float()[self.live]
        ends = self.live & (token[:, None] == self.eos).any(dim=1)
        self.stopped[self.rows[ends]] = True
        # The model is not run again for a row without room.
        self.live = self.live & ~ends & (self.step + 1 < config.max_new_tokens)
        return token

    def _advance(self, token: Tensor) -> Tensor:
        """Feed a token [n] per row; logits of the next one."""
        self.step, self.place, self.position = self.step + 1, self.place + 1, self.position + 1
        self.mask = torch.nn.functional.pad(self.mask, (0, 1), value=1)
        return self._forward(self.soft.module(token[:, None]), self.position)

    def _drop_finished(self, token: Tensor) -> Tensor:
        keep = self.live.nonzero()[:, 0]
        for name in ("rows", "live", "keys", "step", "place", "mask", "position"):
            setattr(self, name, getattr(self, name)[keep])
        self.cache.batch_select_indices(keep)
        return token[keep]

    def _make_buffers(self) -> None:
        """The record of all rows, with the latent phase and the suffix in it."""
        phase, S = self.phase, len(self.suffix)
        B, L = phase.mask.shape
        T, device = L + S + max(self.sampled, 0), phase.mask.device
        self.ids = torch.full((B, T), self.config.pad_token_id, device=device)
        self.exists, self.action = (
            torch.zeros(B, T, dtype=torch.bool, device=device) for _ in range(2)
        )
        self.log_probs, self.entropy = (torch.zeros(B, T, device=device) for _ in range(2))
        # What ended it in its latent phase still does.
        self.stopped = ~self.answers & ~self.rollout.truncated
        heaviest = phase.ids.gather(-1, phase.weights.argmax(dim=-1, keepdim=True))[..., 0]
        self.latent = torch.nn.functional.pad(phase.mask, (0, T - L))
        self.ids[self.latent] = heaviest[phase.mask]
        self.exists |= self.latent
        rows = self.answers.nonzero()[:, 0]
        for number in range(S):
            place = self.place[rows] - S + number
            self.ids[rows, place] = self.suffix[number]
            self.exists[rows, place] = True

    def _result(self) -> LatentRollout:
        rollout, phase = self.rollout, self.phase
        steps = max(1, int(self.exists.sum(dim=1).max()), phase.mask.shape[1])
        return LatentRollout(
            prompt_ids=rollout.prompt_ids,
            prompt_mask=rollout.prompt_mask,
            completion_ids=self.ids[:, :steps],
            completion_mask=self.exists[:, :steps],
            latent_mask=self.latent[:, :steps],
            action_mask=self.action[:, :steps],
            latent_ids=phase.ids,
            latent_weights=phase.weights,
            latent_count=(phase.weights > 0).sum(dim=-1),
            # What was recorded is of the mixtures that were sampled.
            latent_scores=phase.weights[..., :0],
            log_probs=self.log_probs[:, :steps],
            entropy=self.entropy[:, :steps],
            row_keys=rollout.row_keys,
            truncated=~self.stopped,
            seed=rollout.seed,
            embedding_noise=rollout.embedding_noise,
        )
