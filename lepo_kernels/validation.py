"""Checks on the arguments of public ops.

Each raises a ``TypeError`` or ``ValueError`` that names the argument, what it got and what it
wants, before any kernel runs. Checks of shapes, dtypes and devices read no data, so they neither
wait for a GPU nor break a graph. Checks of values (`checks_enabled`) run inside the kernels.
"""

import math
import os
from numbers import Real
from typing import Any

import torch
from torch import Tensor

FLOAT_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
INDEX_DTYPES = (torch.int64, torch.int32)
# What a counter of the random numbers holds: draws of a row and step, and ids of a vocabulary.
MAX_DRAWS = 64
MAX_IDS = 1 << 26
# What kernels that compute in float32 can hold: above it is inf; below it, 1 / x is.
FLOAT32_MAX = torch.finfo(torch.float32).max
FLOAT32_TINY = torch.finfo(torch.float32).tiny
# Characters of a value that an error message shows.
_SHOWN = 200

_value_checks_everywhere = os.environ.get("LEPO_CHECK_VALUES", "0") == "1"


class NonFiniteRowError(ValueError):
    """A row of logits is all -inf, or holds NaN or +inf."""


def checks_enabled(device: torch.device) -> bool:
    """Whether kernels look at values (NaN rows, ids out of range) and raise.

    Always on the CPU; elsewhere only with ``LEPO_CHECK_VALUES=1``, since it waits for the device.
    """
    return device.type == "cpu" or _value_checks_everywhere


def check_tensor(
    name: str,
    value: object,
    shape: tuple[int | str, ...],
    dtypes: tuple[torch.dtype, ...],
    device: torch.device | None = None,
) -> None:
    """Check that ``value`` is a dense tensor of this shape, one of these dtypes, on this device.

    Args:
        name: the argument's name, for the message.
        value: what the caller passed.
        shape: one entry per dimension: an int that must match, or a letter that matches any size.
        dtypes: the dtypes that are welcome.
        device: where it must live; None accepts any device.

    Raises:
        TypeError: not a tensor, a sparse or nested one, or of another dtype.
        ValueError: of another shape, or on another device.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a Tensor, got {type(value).__name__}")
    if value.is_nested:
        raise TypeError(f"{name}: expected a dense Tensor, got a nested one")
    if (
        value.layout == torch.strided
        and value.dtype in dtypes
        and _fits(value.shape, shape)
        and (device is None or value.device == device)
    ):
        return
    if value.layout != torch.strided:
        raise TypeError(f"{name}: expected a dense Tensor, got layout {value.layout}")
    if value.dtype not in dtypes:
        welcome = ", ".join(str(d).removeprefix("torch.") for d in dtypes)
        raise TypeError(
            f"{name}: expected dtype {welcome}, got {str(value.dtype).removeprefix('torch.')}"
        )
    if not _fits(value.shape, shape):
        want_text = ", ".join(str(s) for s in shape)
        raise ValueError(f"{name}: expected shape [{want_text}], got {list(value.shape)}")
    raise ValueError(f"{name}: expected device {device}, got {value.device}")


def shape_or(value: object, otherwise: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """The shape of a tensor of any rank, for `check_tensor`; of what has none, ``otherwise``."""
    if not isinstance(value, Tensor) or value.is_nested:
        return otherwise
    return tuple(value.shape)


def _fits(sizes: tuple[int, ...], shape: tuple[int | str, ...]) -> bool:
    if len(sizes) != len(shape):
        return False
    # A plain loop: every op runs this on every argument.
    for size, wanted in zip(sizes, shape, strict=True):
        if not isinstance(wanted, str) and size != wanted:
            return False
    return True


def check_number(
    name: str,
    value: object,
    low: float,
    high: float = float("inf"),
    *,
    low_included: bool = True,
) -> float:
    """Check that ``value`` is a number in [low, high], or (low, high] on request.

    It must be finite, and one that float32 can hold: kernels compute in it. Where ``low`` is
    -infinity, what lies below every float32 counts as -infinity; a number nearer to 0 than float32
    can tell is welcome where 0 is (`check_positive_number` is for those that are divided by).

    Returns:
        It as a float: torch does not know every number, such as a Fraction.

    Raises:
        TypeError: not a number.
        ValueError: NaN, infinite, out of range, or beyond float32.
    """
    if type(value) is float and low < value <= high and -FLOAT32_MAX <= value <= FLOAT32_MAX:
        return value  # what most calls pass, without the slow question whether it is a Real
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}")
    number = _as_float(value)
    above = number >= low if low_included else number > low
    if not (above and number <= high and number < math.inf):
        bracket = "[" if low_included else "("
        end = "inf)" if high == math.inf else f"{high:g}]"
        wanted = f"{bracket}{low:g}, {end}"
        raise ValueError(f"{name}: expected a number in {wanted}, got {shown(value)}")
    if number > FLOAT32_MAX or (number < -FLOAT32_MAX and low > -math.inf):
        raise ValueError(f"{name}: expected a number that float32 can hold, got {shown(value)}")
    return number if number >= -FLOAT32_MAX else -math.inf


def check_positive_number(name: str, value: object, *, zero_included: bool = False) -> float:
    """Check that ``value`` is a positive number (or 0, where welcome) that float32 can hold.

    Where 0 is welcome, a number too small for float32 is, too: the kernels take it for 0.

    Returns:
        It as a float.

    Raises:
        TypeError: not a number.
        ValueError: NaN, infinite or out of range.
    """
    if type(value) is float and FLOAT32_TINY <= value <= FLOAT32_MAX:
        return value
    check_number(name, value, 0, low_included=zero_included)
    return check_number(name, value, 0 if zero_included else FLOAT32_TINY, FLOAT32_MAX)


def check_range(name: str, value: object) -> tuple[float, float]:
    """Check that ``value`` is a pair (low, high), low <= high; either end may be open (infinite).

    Raises:
        TypeError: not a pair of numbers.
        ValueError: an end is NaN, the range is empty, or lies where float32 has no finite number.
    """
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise TypeError(f"{name}: expected a pair (low, high), got {shown(value)}")
    low, high = value
    low = check_number(f"{name}[0]", low, -math.inf, FLOAT32_MAX)
    if isinstance(high, Real) and high == math.inf:
        return low, math.inf
    return low, check_number(f"{name}[1]", high, max(low, -FLOAT32_MAX))


def check_integer(name: str, value: object, low: int, high: int | None = None) -> None:
    """Check that ``value`` is an int in [low, high].

    Raises:
        TypeError: not an int.
        ValueError: out of range.
    """
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
        raise TypeError(f"{name}: expected an int, got {type(value).__name__}")
    if value < low or (high is not None and value > high):
        end = "inf)" if high is None else f"{high}]"
        raise ValueError(f"{name}: expected an int in [{low}, {end}, got {shown(value)}")


def check_flag(name: str, value: object) -> None:
    """Check that ``value`` is a bool.

    Raises:
        TypeError: it is not.
    """
    if not isinstance(value, bool):
        raise TypeError(f"{name}: expected a bool, got {type(value).__name__}")


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Check that ``value`` is one of ``choices``.

    Raises:
        ValueError: it is not.
    """
    if not isinstance(value, str) or value not in choices:
        known = ", ".join(map(repr, choices))
        raise ValueError(f"{name}: expected one of {known}, got {shown(value)}")


def shown(value: object) -> str:
    """``value`` as an error message shows it: cut short, and without an error of its own.

    Python refuses to print an int of more than some thousand digits.
    """
    try:
        text = str(value) if isinstance(value, Real) else repr(value)
    except ValueError:
        return f"{type(value).__name__} of too many digits to print"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _as_float(value: Any) -> float:
    """``float(value)``; an infinity for what it cannot hold, as a large int or Fraction."""
    try:
        return float(value)
    except OverflowError:
        return -math.inf if value < 0 else math.inf
