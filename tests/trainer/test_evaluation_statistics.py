"""Intervals, spreads and paired differences of evaluations."""

import itertools
import statistics

import pytest

from lepo_kernels.trainer.evaluation_statistics import (
    RESAMPLES,
    ablation_effects,
    bootstrap_interval,
    distribution,
    intervals,
    spread,
)


def record(problem, reward, *, draw=0, greedy=False, length=3, **ablated):
    row = {"problem": problem, "draw": draw, "reward": reward, "greedy": greedy, "length": length}
    if ablated:
        row["ablated"] = {
            kind: {"reward": value, "length": length, "completion": ""}
            for kind, value in ablated.items()
        }
    return row


def test_the_interval_holds_the_middle_of_all_resampled_means():
    values = [0.0, 0.25, 0.5, 1.0, 1.0]
    means = sorted(sum(drawn) / 5 for drawn in itertools.product(values, repeat=5))
    low, high = bootstrap_interval(values)

    def share_below(value):
        return sum(mean <= value + 1e-12 for mean in means) / len(means)

    # A quantile of R draws lies where the true share is 0.025, give or take its standard deviation
    # sqrt(0.025 * 0.975 / R), of which five are allowed; and the distribution has steps there.
    off = 5 * (0.025 * 0.975 / RESAMPLES) ** 0.5
    step = max(means.count(mean) for mean in (low, high) if mean in means) / len(means)
    assert share_below(low) == pytest.approx(0.025, abs=off + step)
    assert share_below(high) == pytest.approx(0.975, abs=off + step)


def test_the_interval_of_one_value_is_that_value():
    assert bootstrap_interval([0.5]) == [0.5, 0.5]
    assert bootstrap_interval([0.25] * 7) == [0.25, 0.25]


def test_intervals_are_the_same_in_whatever_order_records_come():
    records = [record(p, float(d <= p), draw=d) for p in range(5) for d in range(3)]
    assert intervals(records) == intervals(records[::-1])
    assert intervals(records).keys() == {"mean@3", "reward@3", "pass@1", "pass@2", "pass@3"}


def test_spread():
    records = [record(p, 1.0, greedy=True, length=p + 1) for p in range(4)]
    rewards = {(0, 0): 1.0, (0, 1): 0.0, (1, 0): 1.0, (1, 1): 1.0}
    records += [record(p, r, draw=d, length=10 * (p + d)) for (p, d), r in rewards.items()]
    found = spread(records)
    assert found["greedy_length"]["mean"] == 2.5
    assert found["greedy_length"]["std"] == pytest.approx(statistics.stdev([1, 2, 3, 4]))
    assert found["length"]["quantiles"]["0.5"] == 10
    # Problem 0 is solved by one of two, problem 1 by both; draw 0 solves both, draw 1 one of them.
    for name in ("accuracy_of_problems", "accuracy_of_draws"):
        assert found[name]["mean"] == 0.75
        assert found[name]["std"] == pytest.approx(statistics.stdev([0.5, 1.0]))
    assert "length" not in spread([record(0, 1.0, greedy=True)])


def test_quantiles_interpolate():
    found = distribution([0.0, 1.0, 2.0, 3.0, 4.0])
    assert found["quantiles"] == {
        "0": 0.0, "0.05": 0.2, "0.25": 1.0, "0.5": 2.0, "0.75": 3.0, "0.95": 3.8, "1": 4.0
    }  # fmt: skip
    assert distribution([2.0])["std"] is None


def test_ablations_are_compared_problem_by_problem():
    # Half of the problems are solved; "blank" solves none, "argmax" solves the other half.
    records = [record(p, float(p % 2), blank=0.0, argmax=1.0 - p % 2) for p in range(8)]
    records += [record(p, 1.0, greedy=True, blank=1.0, argmax=0.0) for p in range(8)]
    effects = ablation_effects(records)
    assert effects.keys() == {"blank", "argmax"}
    greedy = effects["argmax"]["greedy_accuracy"]
    # Every problem changes alike: the difference is as sure as can be.
    assert (greedy["value"], greedy["difference"], greedy["difference_interval"]) == (
        0,
        -1,
        [-1, -1],
    )
    sampled = effects["argmax"]["mean@1"]
    assert (sampled["value"], sampled["difference"]) == (0.5, 0.0)
    assert sampled["difference_interval"][0] < -0.25 < 0.25 < sampled["difference_interval"][1]
    assert effects["blank"]["mean@1"]["difference"] == -0.5
    assert ablation_effects([record(0, 1.0)]) == {}
