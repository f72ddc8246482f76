import statistics

import pytest
import torch

from lepo_kernels.trainer.advantages import group_advantages


def test_group_scaling_is_the_papers_formula():
    rewards = [1.0, 0.0, 0.0, 1.0, 0.5, 2.5, -1.0, 0.0]
    got = group_advantages(torch.tensor(rewards, dtype=torch.float64), 4)
    for group in range(2):
        part = rewards[4 * group : 4 * group + 4]
        mean, std = statistics.mean(part), statistics.stdev(part)
        expected = [(r - mean) / (std + 1e-4) for r in part]
        assert got.advantages[4 * group : 4 * group + 4].tolist() == pytest.approx(expected)
        assert float(got.group_mean[group]) == pytest.approx(mean)
        assert float(got.group_std[group]) == pytest.approx(std)


def test_batch_scaling_divides_by_the_spread_of_all_rewards():
    rewards = [1.0, 0.0, 3.0, 3.0]
    got = group_advantages(torch.tensor(rewards, dtype=torch.float64), 2, "batch")
    std = statistics.stdev(rewards)
    assert got.advantages.tolist() == pytest.approx([0.5 / (std + 1e-4), -0.5 / (std + 1e-4), 0, 0])


def test_without_scaling_the_difference_stays():
    got = group_advantages(torch.tensor([1.0, 0.0, 3.0, 1.0]), 2, "none")
    assert got.advantages.tolist() == [0.5, -0.5, 1.0, -1.0]


@pytest.mark.parametrize("reward", [0.1, 1 / 3, 1e8])  # not exact in binary, or large
def test_equal_rewards_give_exactly_zero(reward):
    got = group_advantages(torch.full((8,), reward), 8)
    assert got.advantages.abs().max() < 1e-3 * max(1, reward * 1e-4)
    assert got.group_std.tolist() == [0.0]


def test_missing_rewards_take_no_part():
    nan = float("nan")
    got = group_advantages(torch.tensor([1.0, 0.0, nan, nan, nan, nan], dtype=torch.float64), 3)
    std = statistics.stdev([1.0, 0.0])
    assert got.advantages.tolist() == pytest.approx(
        [0.5 / (std + 1e-4), -0.5 / (std + 1e-4), 0, 0, 0, 0]
    )
    assert got.group_std.tolist() == pytest.approx([std, 0.0])


def test_a_partial_group_is_refused():
    with pytest.raises(ValueError, match="multiple of 4, got 6"):
        group_advantages(torch.zeros(6), 4)


def test_the_batchs_spread_may_come_from_other_processes():
    mine, all_of_them = torch.tensor([1.0, 0.0]), torch.tensor([1.0, 0.0, 10.0, 0.0])
    got = group_advantages(mine, 2, "batch", batch=all_of_them)
    std = statistics.stdev(all_of_them.tolist())
    assert got.advantages.tolist() == pytest.approx([0.5 / (std + 1e-4), -0.5 / (std + 1e-4)])
