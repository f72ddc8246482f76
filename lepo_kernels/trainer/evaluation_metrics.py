"""The metrics of an evaluation: accuracies, mean@k and the unbiased Pass@k."""

import math
from collections.abc import Sequence
from typing import Any


def summarise(records: list[dict[str, Any]], success_threshold: float = 0.5) -> dict[str, float]:
    """Metrics of evaluation records; a missing reward (None or NaN) counts as 0."""
    metrics: dict[str, float] = {}
    greedy = [record for record in records if record["greedy"]]
    if greedy:
        metrics["greedy_accuracy"] = _mean([_reward(r) >= success_threshold for r in greedy])
        metrics["greedy_reward"] = _mean([_reward(r) for r in greedy])
        metrics["greedy_length"] = _mean([r["length"] for r in greedy])
    per_problem: dict[int, list[float]] = {}
    for record in records:
        if not record["greedy"]:
            per_problem.setdefault(record["problem"], []).append(_reward(record))
    if per_problem:
        samples = min(len(drawn) for drawn in per_problem.values())
        solved = [
            (len(drawn), sum(reward >= success_threshold for reward in drawn))
            for drawn in per_problem.values()
        ]
        metrics[f"mean@{samples}"] = _mean([some / drawn for drawn, some in solved])
        metrics[f"reward@{samples}"] = _mean([_mean(drawn) for drawn in per_problem.values()])
        for k in _powers_of_two(samples):
            metrics[f"pass@{k}"] = _mean([pass_at_k(drawn, some, k) for drawn, some in solved])
    return {**metrics, **_logged(records)}


def metric_names(greedy: bool, num_samples: int) -> list[str]:
    """The metrics that an evaluation has in any case, in the order of `summarise`."""
    names = ["greedy_accuracy", "greedy_reward", "greedy_length"] if greedy else []
    if num_samples > 0:
        names += [f"mean@{num_samples}", f"reward@{num_samples}"]
        names += [f"pass@{k}" for k in _powers_of_two(num_samples)]
    return names


def _logged(records: list[dict[str, Any]]) -> dict[str, float]:
    """The metrics that reward functions logged, averaged over the completions they stand for."""
    values: dict[str, list[float]] = {}
    for record in records:
        for name, value in record.get("metrics", {}).items():
            values.setdefault(name, []).append(value)
    return {name: _mean(some) for name, some in values.items()}


def pass_at_k(samples: int, solved: int, k: int) -> float:
    """Unbiased probability that one of k samples solves: ``1 - C(n - c, k) / C(n, k)``.

    Source: Chen et al., arXiv 2107.03374.

    Args:
        samples: n completions of a problem.
        solved: c of them that solve it.
        k: at most n.

    Raises:
        ValueError: k is not in [1, n], or c not in [0, n].
    """
    if not 1 <= k <= samples:
        raise ValueError(f"k: expected an int in [1, {samples}], got {k}")
    if not 0 <= solved <= samples:
        raise ValueError(f"solved: expected an int in [0, {samples}], got {solved}")
    return 1.0 - math.comb(samples - solved, k) / math.comb(samples, k)


def _powers_of_two(limit: int) -> list[int]:
    """1, 2, 4, ... and the limit itself."""
    powers = [1 << bit for bit in range(limit.bit_length()) if 1 << bit <= limit]
    return powers if powers[-1] == limit else [*powers, limit]


def _reward(record: dict[str, Any]) -> float:
    reward = record["reward"]
    return 0.0 if reward is None or math.isnan(reward) else float(reward)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
