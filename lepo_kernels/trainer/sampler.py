"""Which dataset rows a process sees, and when: whole groups, repeated as often as they are used."""

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler


class GroupSampler(Sampler[list[int]]):
    """Yield, per micro-batch, the dataset indices of the whole rollout that it belongs to.

    A rollout of one process takes ``prompts_per_rollout`` prompts. Its list of indices is yielded
    once per micro-batch that uses it (``repeats`` times), one process after the other, as
    accelerate deals batches out to processes in turn. Prompts of an epoch that do not fill a
    rollout on every process are left out; the shuffle of an epoch depends on (seed, epoch) alone.

    Args:
        size: rows of the dataset.
        prompts_per_rollout: prompts of one process and rollout.
        repeats: micro-batches per rollout, all iterations together.
        num_processes: processes that train together.
        seed: seed of the shuffle.

    Raises:
        ValueError: the dataset does not fill one rollout.
    """

    def __init__(
        self, size: int, prompts_per_rollout: int, repeats: int, num_processes: int, seed: int
    ) -> None:
        self.prompts_per_round = prompts_per_rollout * num_processes
        if size < self.prompts_per_round:
            raise ValueError(
                f"train_dataset: one rollout takes {self.prompts_per_round} prompts, "
                f"the dataset has {size}"
            )
        self.size = size
        # accelerate asks both of a batch sampler that it deals out to processes.
        self.batch_size = prompts_per_rollout
        self.drop_last = True
        self.prompts_per_rollout = prompts_per_rollout
        self.repeats = repeats
        self.num_processes = num_processes
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose shuffle the next iteration follows."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.size // self.prompts_per_round * self.repeats * self.num_processes

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(self.seed + 1_000_003 * self.epoch)
        order = torch.randperm(self.size, generator=generator).tolist()
        for start in range(0, self.size - self.prompts_per_round + 1, self.prompts_per_round):
            for _ in range(self.repeats):
                for process in range(self.num_processes):
                    first = start + process * self.prompts_per_rollout
                    yield order[first : first + self.prompts_per_rollout]
