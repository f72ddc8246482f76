"""Batches of dataset rows: each micro-batch comes with the rows of its whole rollout."""

from typing import Any

from torch.utils.data import DataLoader

from lepo_kernels.trainer.config import LEPOConfig
from lepo_kernels.trainer.sampler import GroupSampler


def group_sampler(
    args: LEPOConfig, size: int, micro_batches: int, num_processes: int
) -> GroupSampler:
    """The order in which a run's rollouts take their prompts.

    Args:
        args: the trainer's settings.
        size: prompts in the dataset.
        micro_batches: of one rollout.
        num_processes: of the run.

    Raises:
        ValueError: the dataset is too small for a rollout.
    """
    return GroupSampler(
        size=size,
        prompts_per_rollout=args.samples_per_rollout // args.num_generations,
        repeats=micro_batches,
        num_processes=num_processes,
        seed=args.seed if args.data_seed is None else args.data_seed,
    )


def train_loader(args: LEPOConfig, dataset: Any, sampler: GroupSampler) -> DataLoader:
    """The loader of one process's batches, which are lists of rows."""
    return DataLoader(
        dataset,
        batch_sampler=sampler,
        collate_fn=keep_rows,
        num_workers=args.dataloader_num_workers,
        persistent_workers=args.dataloader_persistent_workers,
        prefetch_factor=args.dataloader_prefetch_factor,
        pin_memory=False,
    )


def keep_rows(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A collator that leaves the rows as they are."""
    return rows
