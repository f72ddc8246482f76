"""What reward functions log beside their rewards, by TRL's ``log_extra`` and ``log_metric``."""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from numbers import Real
from typing import Any

from torch import Tensor

from lepo_kernels.trainer.reward_errors import RewardError

# What the records of completions and of evaluations hold already.
OWN_COLUMNS = frozenset(
    {"step", "evaluation", "problem", "prompt", "completion", "latent", "rewards", "reward"}
    | {"advantage", "greedy", "length", "metrics", "draw", "ablated"}
)
# What a training log holds besides the metrics of its rollout.
OWN_METRICS = frozenset(
    {"step", "epoch", "loss", "grad_norm", "learning_rate", "step_time", "kl", "ratio"}
    | {"aux_loss", "skipped_updates", "latent/gradient_share"}
    | {f"sampling/sampling_logp_difference/{part}" for part in ("mean", "max")}
    | {f"clip_ratio/{part}_mean" for part in ("low", "high", "region")}
)


class RewardLog:
    """What the reward functions of one call logged.

    Args:
        samples: how many samples the call is about.

    Attributes:
        columns: name -> one value per sample.
    """

    def __init__(self, samples: int) -> None:
        self.samples = samples
        self.columns: dict[str, list[Any]] = {}
        self._values: dict[str, list[float]] = {}

    def hooks(self, function: str) -> dict[str, Callable[..., None]]:
        """The two functions that the reward function ``function`` is given to log with.

        ``log_extra(column, values)`` adds a column, with one value per sample, to the records of
        completions; ``log_metric(name, value)`` a metric to the log, averaged over all calls
        between two logs. A value that is not finite is left out of the average.
        """
        return {
            "log_extra": partial(self._add_column, function),
            "log_metric": partial(self._add_value, function),
        }

    def metrics(self, own: Iterable[str] = ()) -> dict[str, float]:
        """The mean of what was logged under each name.

        Args:
            own: names of metrics that stand beside these.

        Raises:
            RewardError: a function logged under one of those names.
        """
        taken = sorted((OWN_METRICS | set(own)) & self._values.keys())
        if taken:
            raise RewardError(f"log_metric: the name {taken[0]!r} is that of another metric")
        return {name: sum(some) / len(some) for name, some in self._values.items() if some}

    def _add_column(self, function: str, column: str, values: Sequence[Any]) -> None:
        where = f"reward function {function!r}: log_extra"
        if column in OWN_COLUMNS or column in self.columns:
            raise RewardError(f"{where}: there is a column {column!r} already")
        values = values.tolist() if hasattr(values, "tolist") else values
        if isinstance(values, str) or not isinstance(values, Sequence):
            raise RewardError(f"{where}: expected a list of values, got {type(values).__name__}")
        if len(values) != self.samples:
            raise RewardError(
                f"{where}: expected one value per sample ({self.samples}) of {column!r}, "
                f"got {len(values)}"
            )
        self.columns[column] = list(values)

    def _add_value(self, function: str, name: str, value: Any) -> None:
        if isinstance(value, Tensor) or hasattr(value, "item"):
            value = value.item()
        if not isinstance(value, Real):
            raise RewardError(
                f"reward function {function!r}: log_metric: expected a number as {name!r}, "
                f"got {type(value).__name__}"
            )
        some = self._values.setdefault(name, [])
        if math.isfinite(value):
            some.append(float(value))
