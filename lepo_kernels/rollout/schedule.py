"""Which phases the rows of a rollout can be in at a step: known before any row is decoded."""

from enum import Enum

from lepo_kernels.rollout.config import LatentGenerationConfig


class Phase(Enum):
    """What the rows of a batch do at a step."""

    LATENT = "latent"  # all of them take a mixture
    EITHER = "either"  # some may have left the latent phase early
    TOKEN = "token"  # all of them take a token, forced or sampled


class Schedule:
    """The phases of a rollout, step by step.

    Args:
        config: how it samples.
    """

    def __init__(self, config: LatentGenerationConfig):
        self._latent_length = config.latent_length
        self._suffix = len(config.latent_suffix_ids)
        self._shadow_ends = config.latent_eos == "stop"
        # Before this step no row has left the latent phase.
        self._first_left = config.latent_length
        if config.cold_stop_entropy is not None:
            self._first_left = min(config.latent_length, config.cold_stop_steps)
        if config.latent_end_ids:
            self._first_left = min(config.latent_length, 1)
        # Whether rows can leave it at all before all of them do.
        self.may_leave = config.cold_stop_entropy is not None or bool(config.latent_end_ids)

    def phase(self, step: int) -> Phase:
        """The phase of a step."""
        if step >= self._latent_length:
            return Phase.TOKEN
        return Phase.LATENT if step < self._first_left else Phase.EITHER

    def may_force(self, step: int) -> bool:
        """Whether a row may be in the suffix."""
        return self._suffix > 0 and self._first_left <= step < self._latent_length + self._suffix

    def may_end(self, step: int) -> bool:
        """Whether a row may end with this step."""
        if step < self._latent_length and self._shadow_ends:
            return True
        return step >= self._first_left + self._suffix
