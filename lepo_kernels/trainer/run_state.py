"""What a run keeps from one update to the next, beside transformers' TrainerState."""

from dataclasses import dataclass
from pathlib import Path

from lepo_kernels.trainer.checkpoint_saving import EVALUATION_DUE
from lepo_kernels.trainer.experience import Experience
from lepo_kernels.trainer.manifest import read_manifest
from lepo_kernels.trainer.random_states import RandomStates


@dataclass
class RunState:
    """Created by each call of `LEPOTrainer.train`.

    Attributes:
        resumed_from: the checkpoint that the run resumes from.
        saved_step: updates in the newest checkpoint.
        evaluation_due: whether the evaluation after the last update is still to be done.
        random_states: those after the last update and what followed it.
        ended_epoch_at: the update that ended an epoch, until transformers says so.
        experience: what micro-batches are taken from; None before the first rollout.
        reward_cause: what is wrong with the rewards behind the experience, if anything is.
    """

    resumed_from: Path | None = None
    saved_step: int = 0
    evaluation_due: bool = False
    random_states: RandomStates | None = None
    ended_epoch_at: int | None = None
    experience: Experience | None = None
    reward_cause: str | None = None

    @classmethod
    def from_checkpoint(cls, checkpoint: Path) -> "RunState":
        """The state of a run that resumes from a checkpoint."""
        manifest = read_manifest(checkpoint)
        return cls(checkpoint, manifest["step"], bool(manifest.get(EVALUATION_DUE)))

    def ends_epoch(self, step: int, epoch: float | None) -> bool:
        """Whether update ``step`` was its epoch's last; true once per epoch.

        transformers logs, saves and evaluates after each update, and after an epoch's last one
        again for the epoch: True there.
        """
        ends = float(epoch or 0.0).is_integer()
        said, self.ended_epoch_at = self.ended_epoch_at == step, step if ends else None
        return ends and not said
