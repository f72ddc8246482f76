"""Steps of a rollout that can be captured: a cache of fixed size, and every state in place.

Contract: two steps of a phase issue the same operations on the same memory, and none waits for the
device. Step, seed, row keys and flags are tensors on the device, so that one graph serves all steps
of a phase, and all rollouts of a size. Finished rows stay in the batch and store what counts for
nothing.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lepo_kernels.rollout.choosing import Choice, Chooser, Place
from lepo_kernels.rollout.config import LatentGenerationConfig
from lepo_kernels.rollout.model_cache import (
    cache_argument,
    fill_static,
    make_cache,
    step_arguments,
)
from lepo_kernels.rollout.prompts import Prompts
from lepo_kernels.rollout.recorded_steps import RecordedSteps
from lepo_kernels.rollout.schedule import Phase, Schedule
from lepo_kernels.rollout.soft_embedding import SoftEmbedding


class StaticSteps:
    """The state of a rollout of ``rows`` rows, and what moves it on by a step.

    It does not hold the model, so that what is kept with a model does not keep it alive.

    Args:
        base: the unwrapped model.
        soft: its embedding.
        config: how to sample.
        rows: of the batch; those beyond a rollout's own repeat the last one.
        columns: of the cache: prompt and completion together at most.
        backend: see `lepo_kernels.backend`.
        device: where the rollouts' prompts are.
    """

    def __init__(
        self,
        base: Any,
        soft: SoftEmbedding,
        config: LatentGenerationConfig,
        rows: int,
        columns: int,
        backend: str | None,
        device: torch.device,
    ):
        self.soft = soft
        self._config = config
        self._backend, self._schedule = backend, Schedule(config)
        self._may_force = len(config.latent_suffix_ids) > 0
        self._cache = make_cache(base, "static", columns)
        self._cached = {
            cache_argument(base): self._cache,
            "use_cache": True,
            **step_arguments(base),
        }
        T = config.max_new_tokens
        self._device = device
        self._step, self._seed = self._state(()), self._state(())
        self._keys, self._latent_end = self._state((rows,)), self._state((rows,))
        self._cold_steps = self._state((rows,))
        self._live = self._state((rows,), torch.bool)
        self._mask, self._positions = self._state((rows, columns)), self._state((rows, 1))
        # Steps come first: each writes one row of the record.
        self._token, self._was_live = self._state((T, rows)), self._state((T, rows), torch.bool)
        self._log_prob = self._state((T, rows), torch.float32)
        self._entropy = self._state((T, rows), torch.float32)
        # Their widths are known with the first choice.
        self._embedding: Tensor | None = None
        self._mixtures: list[Tensor] | None = None
        self._chooser: Chooser | None = None

    def begin(self, base: Any, prompts: Prompts, seed: int) -> None:
        """Start a rollout: the pass over its prompts, once for all samples of one, and step 0."""
        rows = torch.arange(self._live.shape[0], device=self._device)
        source = rows.clamp(max=prompts.ids.shape[0] - 1)
        self._step.zero_()
        self._seed.fill_(seed - (1 << 64) if seed >= 1 << 63 else seed)
        self._keys.copy_(prompts.row_keys[source])
        self._latent_end.fill_(self._config.latent_length)
        self._cold_steps.zero_()
        self._live.copy_(rows == source)
        logits = self._prefill(base, prompts, source)
        if self._chooser is None:
            self._chooser = Chooser(
                self.soft, self._config, logits.shape[1], self._seed, self._backend, self._device
            )
        self._choose(logits, self._schedule.phase(0))

    def advance(self, base: Any, phase: Phase) -> None:
        """One more step: feed what was chosen, choose anew, and record it."""
        assert self._embedding is not None
        self._positions.add_(1)
        output = base(
            inputs_embeds=self._embedding[:, None],
            attention_mask=self._mask,
            position_ids=self._positions,
            **self._cached,
        )
        self._choose(output.logits[:, -1], phase)

    def count_live(self) -> int:
        """Rows that have not ended; waits for the device."""
        return int(self._live.sum())

    def steps(self, rows: int, count: int) -> RecordedSteps:
        """The first ``count`` steps of the first ``rows`` rows."""
        columns = (self._token, self._log_prob, self._entropy, self._was_live)
        token, log_prob, entropy, live = (x[:count, :rows].T.clone() for x in columns)
        if self._mixtures is None:
            mixtures = [x.new_zeros(rows, 0, 0) for x in (token, log_prob)]
            mixtures.append(token.new_zeros(rows, 0))
        else:
            mixtures = [x[:count, :rows].transpose(0, 1).clone() for x in self._mixtures]
        ids, weights, kept, *scores = mixtures
        latent_end, unfinished = self._latent_end[:rows].clone(), self._live[:rows].clone()
        return RecordedSteps(
            token,
            log_prob,
            entropy,
            live,
            ids,
            weights,
            kept,
            scores[0] if scores else weights[..., :0],
            latent_end,
            unfinished,
        )

    def _prefill(
        self,
        base: Any,
        prompts: Prompts,
        source: Tensor,  # [n] int64, which row of the prompts each row of the batch takes
    ) -> Tensor:  # [n, V]
        P, shared = prompts.ids.shape[1], prompts.samples
        positions = prompts.positions()
        self._mask.fill_(1)
        self._mask[:, :P] = prompts.mask[source]
        self._positions.copy_(positions[source, -1:])
        # By a cache that grows: its attention is over the prompts alone.
        cache = make_cache(base, "dynamic", 0)
        output = base(
            input_ids=prompts.ids[::shared],
            attention_mask=prompts.mask[::shared].long(),
            position_ids=positions[::shared].clamp(min=0),
            **{**self._cached, cache_argument(base): cache},
        )
        logits: Tensor = output.logits[:, -1]
        fill_static(self._cache, cache, source // shared, P)
        return logits[source // shared]

    def _choose(self, logits: Tensor, phase: Phase) -> None:
        """Choose and record step ``_step``, and go on to the next one."""
        assert self._chooser is not None
        place = Place(self._step, self._keys, self._latent_end)
        may_force = self._may_force and phase is not Phase.LATENT
        choice = self._chooser.choose(logits, place, phase, may_force=may_force)
        self._write(choice)
        if phase is not Phase.TOKEN and self._schedule.may_leave:
            cold_steps, latent_end = self._chooser.leave_latents(choice, place, self._cold_steps)
            self._cold_steps.copy_(cold_steps)
            self._latent_end.copy_(latent_end)
        if phase is not Phase.LATENT or self._config.latent_eos == "stop":
            self._live.logical_and_(self._chooser.goes_on(choice.token))
        self._step.add_(1)

    def _write(self, choice: Choice) -> None:
        if self._embedding is None:
            self._embedding = self._state(choice.embedding.shape, choice.embedding.dtype)
        self._embedding.copy_(choice.embedding)
        at = self._step[None]
        self._token.index_copy_(0, at, choice.token[None])
        self._log_prob.index_copy_(0, at, choice.log_prob[None])
        self._entropy.index_copy_(0, at, choice.entropy[None])
        self._was_live.index_copy_(0, at, self._live[None])
        if choice.ids is None or choice.weights is None or choice.kept is None:
            return
        mixture = [choice.ids, choice.weights, choice.kept]
        if choice.scores is not None:
            mixture.append(choice.scores)
        if self._mixtures is None:
            L = self._config.latent_length
            self._mixtures = [self._state((L, *x.shape), x.dtype) for x in mixture]
        for column, value in zip(self._mixtures, mixture, strict=True):
            column.index_copy_(0, at, value[None])

    def _state(self, shape: Sequence[int], dtype: torch.dtype = torch.int64) -> Tensor:
        """Zeros at an address that a captured graph may hold on to, and write to."""
        made = torch.zeros(shape, dtype=dtype, device=self._device)
        torch._dynamo.mark_static_address(made)
        return made
