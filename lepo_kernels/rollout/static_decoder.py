"""The decode loop behind `latent_generate` for a cache of fixed size, compiled or not."""

from collections.abc import Callable
from typing import Any

from lepo_kernels.rollout.choosing import embedding_noise
from lepo_kernels.rollout.compiled_steps import CompiledSteps, compiled_steps
from lepo_kernels.rollout.config import LatentGenerationConfig
from lepo_kernels.rollout.decoder import steps_between_looks
from lepo_kernels.rollout.prompts import Prompts
from lepo_kernels.rollout.record import LatentRollout
from lepo_kernels.rollout.recorded_steps import as_rollout
from lepo_kernels.rollout.schedule import Schedule
from lepo_kernels.rollout.soft_embedding import SoftEmbedding
from lepo_kernels.rollout.static_steps import StaticSteps


class StaticDecoder:
    """One rollout on steps of fixed size.

    Args:
        base: the unwrapped model.
        soft: its embedding.
        prompts: of the rollout.
        config: how to sample.
        seed: of the noise.
        backend: see `lepo_kernels.backend`.
        compiled: whether each step is one graph.
    """

    def __init__(
        self,
        base: Any,
        soft: SoftEmbedding,
        prompts: Prompts,
        config: LatentGenerationConfig,
        seed: int,
        backend: str | None,
        *,
        compiled: bool,
    ):
        self._base, self._prompts = base, prompts
        self._config, self._seed = config, seed
        (B, P), device = prompts.ids.shape, prompts.ids.device
        columns = P + config.max_new_tokens
        steps: CompiledSteps | StaticSteps
        if compiled:
            steps = compiled_steps(base, soft, config, B, columns, backend, device)
            self._advance, self._steps = steps.advance, steps.steps
        else:
            steps = StaticSteps(base, soft, config, B, columns, backend, device)
            self._advance, self._steps = steps.advance, steps

    def run(self, progress: Callable[[int, int], None] | None) -> LatentRollout:
        """Decode until every row is done or the length limit is reached."""
        total, schedule = self._config.max_new_tokens, Schedule(self._config)
        look_every = steps_between_looks(self._prompts.ids.device)
        self._steps.begin(self._base, self._prompts, self._seed)
        for step in range(total):
            if step > 0:
                self._advance(self._base, schedule.phase(step))
            if progress is not None:
                progress(step + 1, total)
            look = schedule.may_end(step) and (step + 1) % look_every == 0
            if look and self._steps.count_live() == 0:
                break
        return as_rollout(
            self._steps.steps(self._prompts.ids.shape[0], step + 1),
            self._config,
            prompt_ids=self._prompts.ids,
            prompt_mask=self._prompts.mask,
            row_keys=self._prompts.row_keys,
            seed=self._seed,
            embedding_noise=embedding_noise(self._config),
        )
