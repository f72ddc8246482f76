"""Which part of which rollout each micro-batch trains on."""

import torch
from torch import Tensor

from lepo_kernels.trainer.config import LEPOConfig


class RolloutSchedule:
    """Counts the micro-batches of a run, before a resume included.

    Args:
        args: the trainer's settings.
        num_processes: of the run.
    """

    def __init__(self, args: LEPOConfig, num_processes: int) -> None:
        self._args = args
        self._num_processes = num_processes
        self._substep = 0

    @property
    def micro_batches_per_rollout(self) -> int:
        """Micro-batches that one rollout serves, all iterations together."""
        return int(self._args.updates_per_rollout * self._args.gradient_accumulation_steps)

    @property
    def shape(self) -> dict[str, int]:
        """The settings that say which part of a rollout a micro-batch is."""
        args = self._args
        return {
            "per_device_train_batch_size": args.per_device_train_batch_size,
            "gradient_accumulation_steps": args.gradient_accumulation_steps,
            "steps_per_generation": int(args.steps_per_generation or 1),
            "num_generations": args.num_generations,
            "num_iterations": args.num_iterations,
            "processes": self._num_processes,
        }

    def start(self) -> None:
        """Begin with the first micro-batch of an update."""
        self._substep = 0

    def advance(self, step: int) -> tuple[int, int]:
        """The rollout that the next micro-batch belongs to, and its position therein.

        Args:
            step: the updates done.
        """
        accumulation = int(self._args.gradient_accumulation_steps)
        index = step * accumulation + self._substep
        self._substep = (self._substep + 1) % accumulation
        return divmod(index, self.micro_batches_per_rollout)

    def samples(self, position: int) -> Tensor:  # [M] int64
        """Which samples of the rollout the micro-batch at a position trains on."""
        size = self._args.per_device_train_batch_size
        first = position % (self._args.samples_per_rollout // size) * size
        return torch.arange(first, first + size, device=self._args.device)
