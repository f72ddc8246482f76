"""How sure the metrics of an evaluation are, and how its completions spread.

Intervals are percentile bootstrap intervals over problems: the problems are drawn anew, with
replacement, `RESAMPLES` times, each with all of its completions; the interval holds the middle 95 %
of the means. A difference between ablated and plain latents is taken problem by problem first.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from lepo_kernels.trainer.evaluation_metrics import is_solved, values_by_problem

RESAMPLES = 2000
LEVEL = 0.95
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
# Entries of the resampled problems that are held at a time.
_CHUNK = 1 << 22

Records = list[dict[str, Any]]


def intervals(records: Records, success_threshold: float = 0.5) -> dict[str, list[float]]:
    """The interval [low, high] of each metric of `values_by_problem`.

    Args:
        records: see `EvaluationResult`.
        success_threshold: a total reward of at least this counts as solved.
    """
    by_problem = values_by_problem(records, success_threshold)
    return {name: bootstrap_interval(_in_order(values)) for name, values in by_problem.items()}


def bootstrap_interval(
    values: Sequence[float], *, resamples: int = RESAMPLES, level: float = LEVEL, seed: int = 0
) -> list[float]:
    """The percentile bootstrap interval [low, high] of a mean.

    Args:
        values: one per problem; at least one.
        resamples: how often the problems are drawn anew.
        level: the share of the means that the interval holds.
        seed: of the draws.
    """
    exact = torch.tensor(list(values), dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    count = len(exact)
    rows = max(1, _CHUNK // count)
    means = [
        exact[torch.randint(count, (min(rows, resamples - done), count), generator=generator)].mean(
            dim=1
        )
        for done in range(0, resamples, rows)
    ]
    ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    return [float(end) for end in torch.quantile(torch.cat(means), ends)]


def spread(records: Records, success_threshold: float = 0.5) -> dict[str, dict[str, Any]]:
    """Mean, standard deviation and quantiles of lengths and accuracies.

    Returns:
        By name: ``greedy_length`` and ``length`` (of sampled completions), ``accuracy_of_problems``
        (a problem's share of solved samples) and ``accuracy_of_draws`` (the accuracy of each
        problem's d-th sample, for each d: how much one pass over the data set varies).
    """
    greedy = [record for record in records if record["greedy"]]
    sampled = [record for record in records if not record["greedy"]]
    found = {
        "greedy_length": [record["length"] for record in greedy],
        "length": [record["length"] for record in sampled],
    }
    for name, key in (("accuracy_of_problems", "problem"), ("accuracy_of_draws", "draw")):
        found[name] = _shares(sampled, key, success_threshold)
    return {name: distribution(values) for name, values in found.items() if values}


def distribution(values: Iterable[float]) -> dict[str, Any]:
    """Mean, standard deviation (n - 1; None of a single value) and `QUANTILES` of values."""
    exact = torch.tensor(list(values), dtype=torch.float64)
    at = torch.tensor(QUANTILES, dtype=torch.float64)
    quantiles = torch.quantile(exact, at).tolist()
    return {
        "mean": float(exact.mean()),
        "std": float(exact.std()) if len(exact) > 1 else None,
        "quantiles": {f"{q:g}": value for q, value in zip(QUANTILES, quantiles, strict=True)},
    }


def ablation_effects(
    records: Records, success_threshold: float = 0.5
) -> dict[str, dict[str, dict[str, Any]]]:
    """What each ablation does to the accuracies.

    Returns:
        Ablation -> ``greedy_accuracy`` and ``mean@k`` -> ``value`` and ``interval`` under it, and
        ``difference`` (its value less the plain one) with the ``difference_interval`` of the paired
        differences. Empty where nothing was ablated.
    """
    kinds = dict.fromkeys(kind for record in records for kind in record.get("ablated", {}))
    plain = values_by_problem(records, success_threshold)
    effects: dict[str, dict[str, dict[str, Any]]] = {}
    for kind in kinds:
        swapped = [{**record, **record["ablated"][kind]} for record in records]
        other = values_by_problem(swapped, success_threshold)
        effects[kind] = {
            name: _effect(plain[name], other[name]) for name in other if _is_accuracy(name)
        }
    return effects


def _is_accuracy(name: str) -> bool:
    return name == "greedy_accuracy" or name.startswith("mean@")


def _effect(plain: dict[int, float], other: dict[int, float]) -> dict[str, Any]:
    values = _in_order(other)
    changes = _in_order({problem: other[problem] - plain[problem] for problem in other})
    return {
        "value": sum(values) / len(values),
        "interval": bootstrap_interval(values),
        "difference": sum(changes) / len(changes),
        "difference_interval": bootstrap_interval(changes),
    }


def _in_order(values: dict[int, float]) -> list[float]:
    """By problem: the same draws of problems for every metric, in whatever order they came."""
    return [values[problem] for problem in sorted(values)]


def _shares(records: Records, key: str, success_threshold: float) -> list[float]:
    solved: dict[Any, list[bool]] = {}
    for record in records:
        solved.setdefault(record[key], []).append(is_solved(record, success_threshold))
    return [sum(some) / len(some) for some in solved.values()]
