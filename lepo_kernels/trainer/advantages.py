"""Group-relative advantages."""

from typing import NamedTuple

import torch
from torch import Tensor

SCALE_REWARDS = ("group", "batch", "none")
# Keeps a group of equal rewards finite (arXiv 2604.17892, as in GRPO).
STD_FLOOR = 1e-4


class Advantages(NamedTuple):
    """What `group_advantages` returns."""

    advantages: Tensor  # [B]; 0 for samples without a reward
    group_mean: Tensor  # [B / G]
    group_std: Tensor  # [B / G]


def group_advantages(
    rewards: Tensor,  # [B]
    group_size: int,
    scale_rewards: str = "group",
    *,
    batch: Tensor | None = None,  # [M]
) -> Advantages:
    """``A = (r - mean) / (std + 1e-4)`` within groups of consecutive samples.

    Args:
        rewards: [B] floating point; samples of a group stand side by side. NaN marks a sample
            without a reward: it takes no part in its group's mean and gets advantage 0.
        group_size: samples G per group; divides B.
        scale_rewards: ``"group"`` divides by the group's standard deviation, ``"batch"`` by that of
            all rewards, ``"none"`` leaves the difference as it is.
        batch: [M] the rewards of the whole batch, where other processes hold a part of it; None
            takes ``rewards``.

    Returns:
        `Advantages` in the dtype of ``rewards``. Standard deviations are unbiased (n - 1); a group
        with fewer than two rewards has 0.

    Raises:
        ValueError: B is not a multiple of ``group_size``.
    """
    if rewards.numel() % group_size:
        raise ValueError(f"rewards: expected a multiple of {group_size}, got {rewards.numel()}")
    groups = rewards.reshape(-1, group_size)
    present = ~groups.isnan()
    mean = _mean(groups, present)
    std = _std(groups, present)
    centered = groups - mean[:, None]
    if scale_rewards == "group":
        centered = centered / (std[:, None] + STD_FLOOR)
    elif scale_rewards == "batch":
        every = (rewards if batch is None else batch)[None]
        whole = _std(every, ~every.isnan())
        centered = centered / (whole + STD_FLOOR)
    advantages = torch.where(present, centered, torch.zeros_like(centered))
    return Advantages(advantages.reshape(-1), mean, std)


def _mean(groups: Tensor, present: Tensor) -> Tensor:  # [B / G]
    count = present.sum(-1).clamp(min=1)
    return groups.masked_fill(~present, 0.0).sum(-1) / count


def _std(groups: Tensor, present: Tensor) -> Tensor:  # [B / G]
    deviation = (groups - _mean(groups, present)[:, None]).masked_fill(~present, 0.0)
    # Equal rewards deviate by exactly nothing, whatever the mean's rounding: zero-advantage rows
    # are recognised by comparing with 0.
    first = torch.where(present, groups, torch.full_like(groups, float("inf"))).amin(-1)
    last = torch.where(present, groups, torch.full_like(groups, float("-inf"))).amax(-1)
    std = (deviation.square().sum(-1) / (present.sum(-1) - 1).clamp(min=1)).sqrt()
    return torch.where(last > first, std, torch.zeros_like(std))
