"""The decode loop behind `latent_generate` for a cache that grows: finished rows leave the batch.

Design note: the loop feeds ``inputs_embeds`` [B, 1, D] to a cache. It looks at which rows are done,
and so waits for the device, every `steps_between_looks` steps at most, and not at all while no row
can end; a mixture of more than `choosing.WIDE` entries waits at each latent step, too.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lepo_kernels.rollout.choosing import Chooser, Place, embedding_noise
from lepo_kernels.rollout.config import LatentGenerationConfig
from lepo_kernels.rollout.growing_record import GrowingRecord
from lepo_kernels.rollout.model_cache import (
    cache_argument,
    check_grown,
    is_flexible,
    make_cache,
    step_arguments,
)
from lepo_kernels.rollout.prompts import Prompts
from lepo_kernels.rollout.record import LatentRollout
from lepo_kernels.rollout.recorded_steps import as_rollout
from lepo_kernels.rollout.schedule import Phase, Schedule
from lepo_kernels.rollout.soft_embedding import SoftEmbedding


class Decoder:
    """One rollout in progress: the rows still in the batch, and the record of all rows."""

    def __init__(
        self,
        base: Any,
        soft: SoftEmbedding,
        prompts: Prompts,
        config: LatentGenerationConfig,
        seed: int,
        backend: str | None,
    ):
        self.base, self.soft, self.config = base, soft, config
        self.seed, self.backend = seed, backend
        self.prompts, self.schedule = prompts, Schedule(config)
        device = prompts.ids.device
        B, P = prompts.ids.shape
        self.last_only = step_arguments(base)
        self.look_every = steps_between_looks(device)

        # The rows still in the batch. Entries of finished rows stay until enough of them are gone.
        self.rows = torch.arange(B, device=device)
        self.live = torch.ones(B, dtype=torch.bool, device=device)
        self.keys = prompts.row_keys
        self.latent_end = torch.full((B,), config.latent_length, device=device)
        self.cold_steps = torch.zeros(B, dtype=torch.int64, device=device)
        self.mask = torch.ones(B, P + config.max_new_tokens, dtype=torch.int64, device=device)
        self.mask[:, :P] = prompts.mask
        self.positions = prompts.positions()
        # Without padding no mask is passed: transformers would read one back at every step.
        self.padded = not bool(prompts.mask.all())
        # Of all rows, for the record; rows that have left the batch are finished.
        self.latent_ends = self.latent_end.clone()

        self.cache = make_cache(base, "dynamic", 0)
        self.cached = {cache_argument(base): self.cache, "use_cache": True}
        # Whether rows of the cache can be repeated and dropped.
        self.cache_is_flexible = is_flexible(self.cache)
        self.record = GrowingRecord(self.rows)

    def run(self, progress: Callable[[int, int], None] | None) -> LatentRollout:
        """Decode until every row is done or the length limit is reached."""
        total = self.config.max_new_tokens
        logits = self._prefill()
        chooser = Chooser(
            self.soft, self.config, logits.shape[1], self.seed, self.backend, logits.device
        )
        some_left = False
        for step in range(total):
            embedding = self._decode(chooser, logits, step, some_left)
            if progress is not None:
                progress(step + 1, total)
            live, some_left = self._look(step)
            if live == 0 or step + 1 == total:
                break
            if self.cache_is_flexible and 2 * live <= self.live.shape[0]:
                embedding = self._drop_finished(embedding)
            logits = self._advance(embedding, step)
        return self._result()

    def _prefill(self) -> Tensor:
        """Run over the prompts, once for all samples of a prompt where the cache allows it."""
        shared = self.prompts.samples if self.cache_is_flexible else 1
        seen = self._seen(0)
        logits = self._forward(
            input_ids=self.prompts.ids[::shared],
            attention_mask=None if seen is None else seen[::shared],
            position_ids=self.positions[::shared].clamp(min=0),
        )
        if shared > 1:
            self.cache.batch_repeat_interleave(shared)
            logits = logits.repeat_interleave(shared, dim=0)
        self.positions = self.positions[:, -1:]
        return logits

    def _decode(self, chooser: Chooser, logits: Tensor, step: int, some_left: bool) -> Tensor:
        """Choose and record a step; what is fed next, [n, D]."""
        place = Place(step, self.keys, self.latent_end)
        phase = self.schedule.phase(step)
        if phase is Phase.EITHER and not some_left:
            phase = Phase.LATENT
        choice = chooser.choose(logits, place, phase, may_force=self.schedule.may_force(step))
        self.record.append(choice, self.live)
        if phase is not Phase.TOKEN and self.schedule.may_leave:
            self.cold_steps, self.latent_end = chooser.leave_latents(choice, place, self.cold_steps)
        if self.schedule.may_end(step):
            self.live = self.live & chooser.goes_on(choice.token)
        return choice.embedding

    def _look(self, step: int) -> tuple[int, bool]:
        """Number of live rows, and whether some of them may leave the latent phase early.

        Between looks, no row counts as finished, and any as one that may have left.
        """
        may_leave = self.schedule.phase(step + 1) is Phase.EITHER
        if not (may_leave or self.schedule.may_end(step)):
            return self.live.shape[0], False
        if (step + 1) % self.look_every != 0:
            return self.live.shape[0], may_leave
        if not may_leave:
            return int(self.live.sum()), False
        left = self.live & (self.latent_end <= step + 1)
        live, gone = torch.stack([self.live.sum(), left.sum()]).tolist()
        return int(live), gone > 0

    def _drop_finished(self, embedding: Tensor) -> Tensor:
        """Shrink the batch to its live rows."""
        keep = self.live.nonzero()[:, 0]
        self.latent_ends[self.rows] = self.latent_end
        for name in ("rows", "live", "keys", "latent_end", "cold_steps", "mask", "positions"):
            setattr(self, name, getattr(self, name)[keep])
        self.cache.batch_select_indices(keep)
        self.record.continue_with(self.rows)
        return embedding[keep]

    def _advance(self, embedding: Tensor, step: int) -> Tensor:
        """Feed a step's choice; logits of the next one."""
        self.positions = self.positions + 1
        logits = self._forward(
            inputs_embeds=embedding[:, None],
            attention_mask=self._seen(step + 1),
            position_ids=self.positions,
        )
        if step == 0:
            check_grown(self.base, self.cache, self.prompts.ids.shape[1] + 1)
        return logits

    def _seen(self, steps: int) -> Tensor | None:
        """Mask [n, P + steps] of the columns fed so far."""
        return self.mask[:, : self.prompts.ids.shape[1] + steps] if self.padded else None

    def _forward(self, **inputs: Any) -> Tensor:
        """Logits [n, V] of the last position."""
        output = self.base(**self.cached, **self.last_only, **inputs)
        logits: Tensor = output.logits[:, -1]
        return logits

    def _result(self) -> LatentRollout:
        self.latent_ends[self.rows] = self.latent_end
        unfinished = torch.zeros_like(self.prompts.mask[:, 0])
        unfinished[self.rows] = self.live
        return as_rollout(
            self.record.steps(self.latent_ends, unfinished),
            self.config,
            prompt_ids=self.prompts.ids,
            prompt_mask=self.prompts.mask,
            row_keys=self.prompts.row_keys,
            seed=self.seed,
            embedding_noise=embedding_noise(self.config),
        )


def steps_between_looks(device: torch.device) -> int:
    """How many steps to go on before a look at which rows are done.

    On a CPU a look costs nothing. Elsewhere it lets the device run dry, which costs more than some
    steps of a batch whose rows have all ended.
    """
    return 1 if device.type == "cpu" else 8
