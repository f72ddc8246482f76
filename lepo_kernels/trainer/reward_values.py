"""The values that reward functions are given, and those that they return."""

import copy
import math
from collections.abc import Sequence
from decimal import Decimal
from numbers import Real
from typing import Any

import numpy as np
from torch import Tensor

from lepo_kernels.trainer.reward_errors import RewardError
from lepo_kernels.validation import FLOAT32_MAX

_ATOMS = frozenset({str, int, float, bool, bytes, type(None)})


def own_copy(value: Any) -> Any:
    """The value with its lists, dicts, sets and arrays copied, at every depth."""
    kind = type(value)
    if kind is list:
        # Most are ids and texts, which a plain copy serves.
        flat = all(type(item) in _ATOMS for item in value)
        return value.copy() if flat else [own_copy(item) for item in value]
    if kind is dict:
        return {key: own_copy(item) for key, item in value.items()}
    if kind is tuple:
        return tuple(own_copy(item) for item in value)
    if isinstance(value, list | dict | tuple | set | bytearray | np.ndarray):
        return copy.deepcopy(value)
    return value.clone() if isinstance(value, Tensor) else value


def checked_rewards(name: str, returned: Any, expected: int) -> list[float]:
    """What a reward function returned as floats, NaN for None.

    Args:
        name: the function's.
        returned: what it returned.
        expected: how many rewards.

    Raises:
        RewardError: it is no list of that many numbers that float32 holds.
    """
    if hasattr(returned, "tolist"):  # a tensor, an array, a pandas Series
        returned = returned.tolist()
    if isinstance(returned, str | bytes | bytearray) or not isinstance(returned, Sequence):
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
    if isinstance(reward, np.generic) or (
        isinstance(reward, Tensor | np.ndarray) and math.prod(reward.shape) == 1
    ):
        reward = reward.item()
    if not isinstance(reward, Real | Decimal):
        raise RewardError(
            f"reward function {name!r}: reward {index} is a {type(reward).__name__}, not a number"
        )
    number = _as_float(reward)
    if not abs(number) <= FLOAT32_MAX:
        raise RewardError(
            f"reward function {name!r}: reward {index} is {number}; expected a number that float32 "
            f"holds, up to {FLOAT32_MAX:.3g}, or None where the function does not apply"
        )
    return number


def _as_float(number: Any) -> float:
    try:
        return float(number)
    except OverflowError:  # a large int or Fraction
        return math.inf if number > 0 else -math.inf
    except ValueError:  # a signalling NaN of decimal
        return math.nan
