"""Reward functions: what they are given, what they may return, and how their rewards add up."""

import inspect
import itertools
import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lepo_kernels.trainer.reward_calls import Call, call_all
from lepo_kernels.trainer.reward_errors import RewardError
from lepo_kernels.trainer.reward_log import RewardLog
from lepo_kernels.trainer.reward_values import checked_rewards, own_copy
from lepo_kernels.validation import FLOAT32_MAX, check_number

__all__ = ["RewardError", "RewardFunction", "Rewards", "check_timeout", "check_weights"]

RewardFunction = Callable[..., Any]

# What every reward function is given, and what those are whose signature takes it.
ALWAYS_GIVEN = ("prompts", "completions", "completion_ids")
GIVEN_ON_REQUEST = ("trainer_state", "log_extra", "log_metric")

_logger = logging.getLogger(__name__)


class Rewards:
    """Several reward functions with weights, called the way TRL calls them.

    A reward function is ``f(prompts, completions, completion_ids, **columns)``, plain or ``async``;
    ``columns`` are the dataset's other columns. It returns a list with a number per sample, or None
    where it does not apply. Three more arguments go to a function whose signature takes them, by
    name or as ``**kwargs``:

    - ``trainer_state``: the trainer's own ``TrainerState`` (``global_step``, ``epoch``, ...), not a
      copy; None outside of a trainer.
    - ``log_extra(column, values)``: adds a column, with a value per sample, to
      ``completions.jsonl``, ``evaluations.jsonl`` and the printed table.
    - ``log_metric(name, value)``: adds a metric to the log.

    Each function is given lists, dicts and arrays of its own: what it does to them, no other
    function sees, nor the trainer. Objects of other types are shared.

    Args:
        functions: one function, or several.
        weights: one per function; None gives all the weight 1.
        timeout: seconds that a call of one function may take; None for no limit. With a limit,
            plain functions run on a thread of their own, where ``signal.alarm`` does not work; a
            call that exceeds it ends in a RewardError, and its thread is abandoned.

    Attributes:
        names: one per function, for metrics; equal ones are numbered.
        trainer_state: what functions are given under that name.
        log: what the functions logged in the last call.

    Raises:
        TypeError: a function is not callable, or a weight or the timeout no number.
        ValueError: no function, a different number of weights, or a number out of range.
    """

    def __init__(
        self,
        functions: RewardFunction | Sequence[RewardFunction],
        weights: Sequence[float] | None = None,
        timeout: float | None = None,
    ) -> None:
        self.functions = [functions] if callable(functions) else list(functions)
        if not self.functions:
            raise ValueError("reward_funcs: expected at least one function, got none")
        for function in self.functions:
            # A reward model is a module: its call takes other arguments.
            if not callable(function) or isinstance(function, nn.Module):
                raise TypeError(
                    f"reward_funcs: expected functions, got {type(function).__name__}: {function!r}"
                )
        self.names = _unique([_name(function) for function in self.functions])
        check_weights(weights)
        if weights is not None and len(weights) != len(self.functions):
            raise ValueError(
                f"reward_weights: expected {len(self.functions)} (one per reward function), "
                f"got {len(weights)}"
            )
        self.weights = [1.0] * len(self.functions) if weights is None else list(weights)
        check_timeout(timeout)
        self.timeout = timeout
        self.trainer_state: Any = None
        self.log = RewardLog(0)
        self._warned = False

    def check_columns(self, dataset: str, columns: Iterable[str]) -> None:
        """Check that every function can be called with the columns of a dataset.

        Args:
            dataset: the dataset's name, for the message.
            columns: its columns besides ``prompt``.

        Raises:
            TypeError: a function cannot; it is named, with what it lacks or does not take.
        """
        given = [*ALWAYS_GIVEN, *columns]
        for name, function in zip(self.names, self.functions, strict=True):
            try:
                signature = inspect.signature(function, follow_wrapped=False)
            except (TypeError, ValueError):
                continue  # written in C: the call will tell
            wanted = [*given, *_on_request(function)]
            try:
                signature.bind(**dict.fromkeys(wanted))
            except TypeError as error:
                raise TypeError(
                    f"reward function {name!r}: cannot be called with {', '.join(given)}, which "
                    f"{dataset} gives it: {error}. A reward function takes its columns by name and "
                    "the others as **kwargs"
                ) from None

    def __call__(
        self,
        prompts: list[Any],
        completions: list[Any],
        completion_ids: list[list[int]],
        columns: dict[str, list[Any]],
    ) -> Tensor:  # [B, F]
        """Rewards of every sample by every function; NaN where a function returned None.

        A sample without any reward is warned of once.

        Raises:
            RewardError: a function raised (chained), took longer than ``timeout``, returned the
                wrong number of rewards, or one that is no number or none that float32 holds.
        """
        arguments = {
            "prompts": prompts,
            "completions": completions,
            "completion_ids": completion_ids,
            **columns,
        }
        log = RewardLog(len(prompts))
        calls = []
        for name, function in zip(self.names, self.functions, strict=True):
            offered = {"trainer_state": self.trainer_state, **log.hooks(name)}
            wanted = {key: offered[key] for key in _on_request(function)}
            calls.append(Call(name, function, {**own_copy(arguments), **wanted}))
        per_function = [
            checked_rewards(name, returned, len(prompts))
            for name, returned in zip(self.names, call_all(calls, self.timeout), strict=True)
        ]
        self.log = log
        rewards = torch.tensor(per_function, dtype=torch.float64).T.reshape(len(prompts), -1)
        self._tell_of_missing(rewards, prompts)
        return rewards

    def total(
        self,
        rewards: Tensor,  # [B, F]
    ) -> Tensor:  # [B]
        """Weighted sum over functions; NaN where no function applied.

        Raises:
            RewardError: a sum is so large that float32 may not hold the difference of two.
        """
        weights = torch.tensor(self.weights, dtype=rewards.dtype)
        summed = (rewards.nan_to_num(0.0) * weights).sum(-1)
        large = (summed.abs() > FLOAT32_MAX / 2).nonzero()[:, 0].tolist()
        if large:
            parts = ", ".join(
                f"{weight:g} * {reward:g} of {name!r}"
                for weight, reward, name in zip(
                    self.weights, rewards[large[0]].tolist(), self.names, strict=True
                )
            )
            raise RewardError(
                f"reward_weights: the rewards of sample {large[0]} sum to {summed[large[0]]:g} "
                f"({parts}); expected at most {FLOAT32_MAX / 2:g}"
            )
        return summed.masked_fill(rewards.isnan().all(-1), float("nan"))

    def _tell_of_missing(
        self,
        rewards: Tensor,  # [B, F]
        prompts: list[Any],
    ) -> None:
        missing = rewards.isnan().all(-1).nonzero()[:, 0].tolist()
        if not missing or self._warned:
            return
        self._warned = True
        _logger.warning(
            "No reward for %d of %d samples: %s returned None for them (first for sample %d, with "
            "the prompt %.200r). They count as unsolved in evaluations, and train nothing. This is "
            "said once.",
            len(missing),
            len(prompts),
            " and ".join(map(repr, self.names)),
            missing[0],
            prompts[missing[0]],
        )


def check_weights(weights: Any) -> None:
    """Check the weights of reward functions; None stands for all 1.

    Raises:
        TypeError: not a list of numbers.
        ValueError: a weight is NaN, infinite or beyond what float32 holds.
    """
    if weights is None:
        return
    if isinstance(weights, str) or not isinstance(weights, Sequence):
        raise TypeError(f"reward_weights: expected a list of numbers, got {type(weights).__name__}")
    for index, weight in enumerate(weights):
        check_number(f"reward_weights[{index}]", weight, -FLOAT32_MAX, FLOAT32_MAX)


def check_timeout(timeout: Any) -> None:
    """Check the time limit of reward functions; None stands for no limit.

    Raises:
        TypeError: not a number.
        ValueError: not positive, or longer than Python can wait.
    """
    if timeout is not None:
        check_number("reward_timeout", timeout, 0.0, threading.TIMEOUT_MAX, low_included=False)


def _on_request(function: RewardFunction) -> list[str]:
    """Which of `GIVEN_ON_REQUEST` a function takes.

    A decorator that takes anything hands it on to the function that it wraps: both must take it.
    """
    taken = list(GIVEN_ON_REQUEST)
    for follow in (False, True):
        try:
            parameters = inspect.signature(function, follow_wrapped=follow).parameters
        except (TypeError, ValueError):
            return []
        anything = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        by_position = {n for n, p in parameters.items() if p.kind is p.POSITIONAL_ONLY}
        named = parameters.keys() - by_position
        taken = [name for name in taken if anything or name in named]
    return taken


def _name(function: RewardFunction) -> str:
    # functools.partial has no name of its own.
    inner = getattr(function, "func", function)
    name = getattr(function, "__name__", None) or getattr(inner, "__name__", None)
    return str(name or type(function).__name__)


def _unique(names: list[str]) -> list[str]:
    """Append a number to names that stand more than once, so that metrics do not collide."""
    unique: list[str] = []
    for name in names:
        numbered = (f"{name}_{number}" for number in itertools.count())
        free = (new for new in numbered if new not in unique and new not in names)
        unique.append(name if names.count(name) == 1 else next(free))
    return unique
