"""The metrics of an evaluation: accuracies, mean@k and the unbiased Pass@k."""

import math
from collections.abc import Sequence
from typing import Any


def summarise(records: list[dict[str, Any]], success_threshold: float = 0.5) -> dict[str, float]:
    """Metrics of evaluation records; a missing reward (None or NaN) counts as 0."""
    by_problem = values_by_problem(records, success_threshold)
    metrics = {name: _mean(list(values.values())) for name, values in by_problem.items()}
    return {**metrics, **_logged(records)}


def values_by_problem(
    records: list[dict[str, Any]], success_threshold: float = 0.5
) -> dict[str, dict[int, float]]:
    """Each metric's value for each problem, of which the metric is the mean.

    Args:
        records: see `EvaluationResult`.
        success_threshold: a total reward of at least this counts as solved.
    """
    found: dict[str, dict[int, float]] = {}
    greedy = {record["problem"]: record for record in records if record["greedy"]}
    if greedy:
        found["greedy_accuracy"] = {
            p: float(is_solved(r, success_threshold)) for p, r in greedy.items()
        }
        found["greedy_reward"] = {p: _reward(r) for p, r in greedy.items()}
        found["greedy_length"] = {p: r["length"] for p, r in greedy.items()}
    drawn: dict[int, list[dict[str, Any]]] = {}
    for record in records:
        if not record["greedy"]:
            drawn.setdefault(record["problem"], []).append(record)
    if drawn:
        samples = min(map(len, drawn.values()))
        solved = {
            problem: (len(some), sum(is_solved(record, success_threshold) for record in some))
            for problem, some in drawn.items()
        }
        found[f"mean@{samples}"] = {p: some / count for p, (count, some) in solved.items()}
        found[f"reward@{samples}"] = {p: _mean(list(map(_reward, r))) for p, r in drawn.items()}
        for k in _powers_of_two(samples):
            found[f"pass@{k}"] = {p: pass_at_k(n, some, k) for p, (n, some) in solved.items()}
    return found


def is_solved(record: dict[str, Any], success_threshold: float) -> bool:
    """Whether a completion's reward reaches the threshold."""
    return _reward(record) >= success_threshold


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
