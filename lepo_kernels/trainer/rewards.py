"""Calling reward functions, and refusing what they must not return."""

import asyncio
import inspect
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

RewardFunction = Callable[..., Any]


class RewardError(RuntimeError):
    """A reward function raised, or returned something that is not a list of rewards."""


class Rewards:
    """Several reward functions with weights, called the way TRL calls them.

    A reward function is ``f(prompts, completions, completion_ids, **columns)``, plain or ``async``;
    ``columns`` are the dataset's other columns. It returns a list with a float per sample, or None
    where it does not apply.

    Args:
        functions: one function, or several.
        weights: one per function; None weighs all by 1.

    Raises:
        TypeError: a function is not callable.
        ValueError: no function, or a different number of weights.
    """

    def __init__(
        self,
        functions: RewardFunction | Sequence[RewardFunction],
        weights: Sequence[float] | None = None,
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
        if weights is not None and len(weights) != len(self.functions):
            raise ValueError(
                f"reward_weights: expected {len(self.functions)} (one per reward function), "
                f"got {len(weights)}"
            )
        self.weights = [1.0] * len(self.functions) if weights is None else list(weights)

    def __call__(
        self,
        prompts: list[Any],
        completions: list[Any],
        completion_ids: list[list[int]],
        columns: dict[str, list[Any]],
    ) -> Tensor:  # [B, F]
        """Rewards of every sample by every function; NaN where a function returned None.

        Raises:
            RewardError: a function raised (chained), returned the wrong number of rewards, or one
                that is NaN, infinite or no number.
        """
        arguments = {
            "prompts": prompts,
            "completions": completions,
            "completion_ids": completion_ids,
            **columns,
        }
        per_function = [
            _checked(name, returned, len(prompts))
            for name, returned in zip(self.names, self._call_all(arguments), strict=True)
        ]
        return torch.tensor(per_function, dtype=torch.float64).T.reshape(len(prompts), -1)

    def total(
        self,
        rewards: Tensor,  # [B, F]
    ) -> Tensor:  # [B]
        """Weighted sum over functions; NaN where no function applied."""
        weights = torch.tensor(self.weights, dtype=rewards.dtype)
        summed = (rewards.nan_to_num(0.0) * weights).sum(-1)
        return summed.masked_fill(rewards.isnan().all(-1), float("nan"))

    def _call_all(self, arguments: dict[str, Any]) -> list[Any]:
        """Call every function; those that are async run side by side."""
        returned = [
            _call(name, function, arguments)
            for name, function in zip(self.names, self.functions, strict=True)
        ]
        waiting = [index for index, value in enumerate(returned) if inspect.isawaitable(value)]
        if waiting:
            # A thread of its own: the caller may be inside a running event loop (a notebook).
            with ThreadPoolExecutor(max_workers=1) as pool:
                awaited = pool.submit(asyncio.run, _gather([returned[i] for i in waiting])).result()
            for index, value in zip(waiting, awaited, strict=True):
                if isinstance(value, BaseException):
                    raise _raised(self.names[index], value) from value
                returned[index] = value
        return returned


def _call(name: str, function: RewardFunction, arguments: dict[str, Any]) -> Any:
    try:
        return function(**arguments)
    except Exception as error:
        raise _raised(name, error) from error


def _raised(name: str, error: BaseException) -> RewardError:
    return RewardError(f"reward function {name!r} raised {error!r}")


async def _gather(awaitables: list[Any]) -> list[Any]:
    return await asyncio.gather(*awaitables, return_exceptions=True)


def _checked(name: str, returned: Any, expected: int) -> list[float]:
    if isinstance(returned, Tensor | np.ndarray):
        returned = returned.tolist()
    if returned is None or isinstance(returned, str) or not isinstance(returned, Sequence):
        raise RewardError(
            f"reward function {name!r}: expected a list of {expected} rewards, "
            f"got {type(returned).__name__}"
        )
    if len(returned) != expected:
        raise RewardError(
            f"reward function {name!r}: expected {expected} rewards, got {len(returned)}"
        )
    return [_checked_reward(name, index, reward) for index, reward in enumerate(returned)]


def _checked_reward(name: str, index: int, reward: Any) -> float:
    if reward is None:
        return float("nan")
    if isinstance(reward, Tensor) and reward.numel() == 1:
        reward = reward.item()
    if not isinstance(reward, Real):
        raise RewardError(
            f"reward function {name!r}: reward {index} is a {type(reward).__name__}, not a number"
        )
    if not math.isfinite(reward):
        raise RewardError(f"reward function {name!r}: reward {index} is {float(reward)}")
    return float(reward)


def _name(function: RewardFunction) -> str:
    name = getattr(function, "__name__", None) or type(function).__name__
    return str(name)


def _unique(names: list[str]) -> list[str]:
    """Append a number to names that stand more than once, so that metrics do not collide."""
    return [
        name if names.count(name) == 1 else f"{name}_{names[:position].count(name)}"
        for position, name in enumerate(names)
    ]
