"""The error model: another order of summation is within it, planted faults are not."""

import pytest
import torch

from tests.seeds import seeded
from tests.tolerances import assert_no_worse_than_plain, assert_within

# A mixture over a vocabulary: long enough that orders differ by much, with a peak or without.
ROWS, VOCAB, WIDTH = 4, 4099, 6


def mixture(peaked):
    """Weights and a table in float32, their product in float64, and its terms' magnitudes."""
    chance = torch.Generator().manual_seed(seeded(0))
    scores = torch.randn(ROWS, VOCAB, generator=chance)
    weights = ((8 if peaked else 1) * scores).softmax(-1)
    table = torch.randn(VOCAB, WIDTH, generator=chance)
    wide = weights.double(), table.double()
    return weights, table, wide[0] @ wide[1], wide[0] @ wide[1].abs()


def one_after_another(weights, table):
    """The order that loses most."""
    total = torch.zeros(ROWS, WIDTH)
    for j in range(VOCAB):
        total += weights[:, j : j + 1] * table[j]
    return total


def largest_first(weights, table):
    order = weights.sum(0).argsort(descending=True)
    return one_after_another(weights[:, order], table[order])


def in_pieces(weights, table):
    pieces = zip(weights.split(64, 1), table.split(64), strict=True)
    return sum((a @ b for a, b in pieces), torch.zeros(ROWS, WIDTH))


def halves(weights, table):
    """Each partial sum in float16, as a tensor core without a wide accumulator has it."""
    total = torch.zeros(ROWS, WIDTH, dtype=torch.float16)
    for a, b in zip(weights.split(64, 1), table.split(64), strict=True):
        total += (a @ b).half()
    return total.float()


FAULTS = {
    "scale": lambda w, t: (w @ t) * 1.001,
    "sign": lambda w, t: -(w @ t),
    "dropped tail": lambda w, t: w[:, :-3] @ t[:-3],
    "neighbouring rows": lambda w, t: w @ t.roll(1, 0),
    "float16 sums": halves,
    "products of bfloat16": lambda w, t: w.bfloat16().float() @ t.bfloat16().float(),
}


def holds(check, *arguments):
    try:
        check(*arguments)
    except AssertionError:
        return False
    return True


@pytest.mark.parametrize("peaked", [False, True])
@pytest.mark.parametrize("order", [one_after_another, largest_first, in_pieces, torch.matmul])
def test_every_order_of_summation_is_within_it(order, peaked):
    weights, table, exact, size = mixture(peaked)
    ours = order(weights, table)
    assert_within(ours, exact, VOCAB, size)
    assert_no_worse_than_plain(ours, weights @ table, exact, torch.float32, VOCAB, size)


# Where the peak has all the weight, a missing tail is less than a rounding.
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_not(fault):
    weights, table, exact, size = mixture(peaked=False)
    wrong = FAULTS[fault](weights, table)
    plain = weights @ table
    assert not holds(assert_within, wrong, exact, VOCAB, size)
    assert not holds(assert_no_worse_than_plain, wrong, plain, exact, torch.float32, VOCAB, size)


# What is not lost in a rounding of half precision, of which plain torch has one per step.
@pytest.mark.parametrize("fault", ["sign", "neighbouring rows", "two units"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_fault_of_half_precision_is_not(dtype, fault):
    weights, table, exact, size = mixture(peaked=False)
    plain = (weights.to(dtype) @ table.to(dtype)).double()
    ours = (weights @ table).to(dtype)
    assert_no_worse_than_plain(ours, plain, exact, dtype, VOCAB, size)
    units = 2 * torch.finfo(dtype).eps
    faults = FAULTS | {"two units": lambda w, t: (w @ t) * (1 + units)}
    wrong = faults[fault](weights, table).to(dtype)
    # Beside a plain result that is as good as a rounding of the result.
    assert not holds(assert_no_worse_than_plain, wrong, ours, exact, dtype, VOCAB, size)


def test_a_half_near_zero_is_rounded_to_a_fixed_step():
    exact = torch.tensor([2.0**-24 * 0.6, 2.0**-20 * 1.001], dtype=torch.float64)
    assert_within(exact.half(), exact, 1, exact.abs())
    assert not holds(assert_within, exact.half() + 2.0**-24, exact, 1, exact.abs())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_is_rounded_once(dtype):
    weights, table, exact, size = mixture(peaked=False)
    assert_within((weights @ table).to(dtype), exact, VOCAB, size)
    coarse = torch.finfo(dtype).eps
    assert not holds(assert_within, (exact * (1 + coarse)).to(dtype), exact, VOCAB, size)


def test_what_is_not_finite_is_the_same_on_both_sides():
    exact = torch.tensor([1.0, torch.inf], dtype=torch.float64)
    assert_within(torch.tensor([1.0, torch.inf]), exact, 1, 1.0)
    assert not holds(assert_within, torch.tensor([1.0, 1.0]), exact, 1, 1.0)
    assert not holds(assert_within, torch.tensor([torch.nan, torch.inf]), exact, 1, 1.0)


def test_float64_is_held_to_its_own_unit():
    exact = torch.ones(3, dtype=torch.float64)
    assert_within(exact + 2**-52, exact, 3, 1.0)
    assert not holds(assert_within, exact + 1e-7, exact, 3, 1.0)
