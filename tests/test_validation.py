"""Checks name the argument, what it got and what it wants."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from lepo_kernels import validation
from lepo_kernels.validation import (
    check_choice,
    check_integer,
    check_number,
    check_range,
    check_tensor,
    checks_enabled,
)

FLOATS = (torch.float32, torch.float64)


def test_good_arguments_pass():
    check_tensor("x", torch.zeros(2, 3), (2, "K"), FLOATS, torch.device("cpu"))
    check_tensor("x", torch.zeros(()), (), FLOATS)
    check_number("p", 0.5, 0, 1)
    check_number("p", 0, 0, 1)
    check_number("p", 1, 0, 1, low_included=False)
    check_integer("k", 3, 3, 3)
    check_choice("noise", "gumbel", ("none", "gumbel"))


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (1.0, TypeError, "x: expected a Tensor, got float"),
        (torch.zeros(2, 3).int(), TypeError, "x: expected dtype float32, float64, got int32"),
        (torch.zeros(2), ValueError, r"x: expected shape \[2, K\], got \[2\]"),
        (torch.zeros(3, 3), ValueError, r"x: expected shape \[2, K\], got \[3, 3\]"),
        (
            torch.zeros(2, 3).to_sparse(),
            TypeError,
            "x: expected a dense Tensor, got layout torch.s",
        ),
        (torch.zeros(2, 3, device="meta"), ValueError, "x: expected device cpu, got meta"),
    ],
)
def test_tensors(value, error, message):
    with pytest.raises(error, match=message):
        check_tensor("x", value, (2, "K"), FLOATS, torch.device("cpu"))


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ("1", TypeError, "p: expected a number, got str"),
        (True, TypeError, "p: expected a number, got bool"),
        (torch.tensor(0.5), TypeError, "p: expected a number, got Tensor"),
        (0.0, ValueError, r"p: expected a number in \(0, 1\], got 0.0"),
        (1.5, ValueError, r"p: expected a number in \(0, 1\], got 1.5"),
        (math.nan, ValueError, r"p: expected a number in \(0, 1\], got nan"),
        # No float holds them.
        (10**400, ValueError, r"p: expected a number in \(0, 1\], got 10000"),
        (Fraction(-(10**400)), ValueError, r"p: expected a number in \(0, 1\], got -10000"),
    ],
)
def test_numbers(value, error, message):
    with pytest.raises(error, match=message):
        check_number("p", value, 0, 1, low_included=False)


def test_infinity_is_not_a_number_in_an_open_range():
    with pytest.raises(ValueError, match=r"p: expected a number in \[0, inf\), got inf"):
        check_number("p", math.inf, 0)


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (2.0, TypeError, "k: expected an int, got float"),
        (True, TypeError, "k: expected an int, got bool"),
        (0, ValueError, r"k: expected an int in \[1, 4\], got 0"),
        (5, ValueError, r"k: expected an int in \[1, 4\], got 5"),
    ],
)
def test_integers(value, error, message):
    with pytest.raises(error, match=message):
        check_integer("k", value, 1, 4)


def test_integers_without_an_upper_end():
    check_integer("k", 10**12, 1)
    with pytest.raises(ValueError, match=r"k: expected an int in \[1, inf\), got 0"):
        check_integer("k", 0, 1)


def test_choices():
    with pytest.raises(ValueError, match="noise: expected one of 'none', 'gumbel', got 'laplace'"):
        check_choice("noise", "laplace", ("none", "gumbel"))


@pytest.mark.parametrize("value", [np.array(["none", "gumbel"]), torch.ones(2), ["none"], None])
def test_a_choice_is_a_string(value):
    with pytest.raises(ValueError, match="noise: expected one of 'none', 'gumbel', got"):
        check_choice("noise", value, ("none", "gumbel"))


def test_a_range_may_end_beyond_every_float():
    assert check_range("r", (-(10**400), 1)) == (-math.inf, 1.0)
    with pytest.raises(ValueError, match=r"r\[1\]: expected a number in \[0, inf\), got 10000"):
        check_range("r", (0, 10**400))


def test_values_are_checked_on_the_cpu_and_elsewhere_on_request(monkeypatch):
    assert checks_enabled(torch.device("cpu"))
    monkeypatch.setattr(validation, "_value_checks_everywhere", False)
    assert not checks_enabled(torch.device("cuda"))
    monkeypatch.setattr(validation, "_value_checks_everywhere", True)
    assert checks_enabled(torch.device("cuda"))
