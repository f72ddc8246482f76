"""Row statistics and the gradient of logits against float64, in every order of threads."""

import dataclasses
import math

import pytest
import torch

from tests.cuda_sim.log_probs import Problem, bits, gradient, make_upstream, statistics
from tests.cuda_sim.rows import finite_rows, special_rows
from tests.cuda_sim.simulator import SCHEDULES, Module, Schedule

EPS = 2.0**-23
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# 2: the smallest; 7: less than a vector of halves; 512, 513: one unit, and one entry more; 1000: no
# whole part of the gradient; 1024, 1025: one, and one entry more; 9000: more than the eight warps
# of a block have, and a ragged end.
WIDTHS = (2, 7, 512, 513, 1000, 1024, 1025, 9000)


def random_problem(columns, dtype=torch.float32, *, rows=3, kept=5, seed=0, **settings):
    chance = torch.Generator().manual_seed(seed + columns)
    logits = (4 * torch.randn(rows, columns, generator=chance)).to(dtype)
    ids = torch.randint(0, columns, (rows, kept), generator=chance)
    if kept > 2:
        ids[:, 2] = ids[:, 0]  # duplicates
    scale = torch.rand(rows, generator=chance) + 0.5
    if settings.pop("with_bias", False):
        settings["bias"] = torch.randn(columns, generator=chance)
    return Problem(logits, ids, scale, **settings)


def assert_statistics(problem, found):
    selected, lse, entropy = problem.exact_statistics()
    # Of a: one rounding each of bias, cap (tanhf: 2 units) and scale.
    a_error = 8 * EPS * problem.exact().abs().nan_to_num(0, posinf=0, neginf=0).amax(1)
    finite = selected.isfinite()
    assert ((found[0] - selected).abs() <= a_error[:, None] + 1e-30)[finite].all()
    assert torch.equal(found[0].double()[~finite], selected[~finite])
    # A term far below the maximum errs by more units (2 + 1.2 of distance), and weighs less: 8
    # units in all. A lane adds 32 terms one after the other, and 5 steps join the lanes.
    bound = 48 * EPS + 2 * a_error + EPS * lse.abs()
    assert ((found[1] - lse).abs() <= bound).all()
    # Twice, and times the mean distance; log(sum) and the weighted mean cancel.
    assert ((found[2] - entropy).abs() <= (8 + entropy) * bound).all()


def assert_gradient(problem, up, found):
    exact = problem.exact_gradient(up)
    scale = problem.scale.double()[:, None]
    pi = (problem.exact() - up.lse.double()[:, None]).exp()
    log_pi = (problem.exact() - up.lse.double()[:, None]).clamp(min=-80)
    # What a and log pi lose to rounding is a relative error of pi; the terms of the coefficient
    # round each for itself.
    a_error = 8 * EPS * problem.exact().abs().nan_to_num(0, posinf=0, neginf=0) + EPS * (
        up.lse.double()[:, None].abs()
    )
    coefficient = up.gamma[:, None].abs() + up.eta[:, None].abs() * (
        log_pi.abs() + up.entropy[:, None].abs()
    )
    terms = pi * coefficient.double() * (a_error + 8 * EPS)
    terms += pi * up.eta[:, None].abs() * a_error
    alpha = torch.zeros_like(exact).scatter_add_(1, problem.ids, up.alpha.double().abs())
    bound = scale * (terms + 4 * EPS * alpha) + 8 * EPS * exact.abs() + 2e-30
    if found.dtype != torch.float32:
        bound += torch.finfo(found.dtype).eps / 2 * exact.abs() + 2.0**-25
    assert ((found.double() - exact).abs() <= bound).all()


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize("columns", WIDTHS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_statistics(dtype, columns, schedule):
    problem = random_problem(columns, dtype)
    assert_statistics(problem, statistics(problem, schedule))


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("softcap", [0.0, 3.0])
@pytest.mark.parametrize("with_bias", [False, True])
def test_head(dtype, softcap, with_bias, schedule):
    # Rows that begin at another address each, and a last unit of 7.
    problem = random_problem(
        1031, dtype, softcap=softcap, with_bias=with_bias, stride=1035, offset=1
    )
    assert_statistics(problem, statistics(problem, schedule))
    up = make_upstream(problem)
    assert_gradient(problem, up, gradient(problem, up, schedule=schedule))


@pytest.mark.parametrize("kept", [0, 1, 33, 100])
def test_any_number_of_ids(kept):
    # More than a warp holds at a time; all in few places, so that many are equal.
    problem = random_problem(1100, kept=kept)
    problem.ids[:, 3:] %= 4
    found = statistics(problem)
    assert_statistics(problem, found)
    up = make_upstream(problem)
    assert_gradient(problem, up, gradient(problem, up))


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize("columns", WIDTHS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradient(dtype, columns, schedule):
    problem = random_problem(columns, dtype)
    up = make_upstream(problem)
    assert_gradient(problem, up, gradient(problem, up, schedule=schedule))


# Logits and output each aligned, at the same distance from it, and at different ones; the rows' own
# addresses differ, too, where the stride is odd. Two units less one entry: a row that begins behind
# an aligned address reaches into a third.
@pytest.mark.parametrize(("offset", "out_offset"), [(0, 0), (3, 3), (1, 6)])
@pytest.mark.parametrize("stride", [2056, 2051])
@pytest.mark.parametrize(
    ("dtype", "out_dtype"),
    [*((dtype, dtype) for dtype in DTYPES), *((torch.float32, half) for half in DTYPES[1:])],
    ids=str,
)
def test_gradient_in_any_layout(dtype, out_dtype, stride, offset, out_offset):
    problem = random_problem(2047, dtype, stride=stride, offset=offset)
    up = make_upstream(problem)
    plain = gradient(dataclasses.replace(problem, stride=2047, offset=0), up, out_dtype=out_dtype)
    assert_gradient(problem, up, plain)
    there = gradient(problem, up, out_dtype=out_dtype, out_stride=2053, out_offset=out_offset)
    assert torch.equal(bits(there), bits(plain))
    if out_dtype == dtype:
        for schedule in SCHEDULES:
            in_place = gradient(
                problem, up, in_place=True, schedule=dataclasses.replace(schedule, math="exact")
            )
            assert torch.equal(bits(in_place), bits(plain))


def test_gradient_of_a_part_of_the_vocabulary():
    problem = random_problem(3000, torch.float32, with_bias=True)
    up = make_upstream(problem)
    whole = gradient(problem, up)
    parts = [gradient(problem.part(first, 3000), up) for first in (0, 1024, 2048)]
    joined = torch.cat([part[:, :1024] for part in parts], dim=1)
    assert torch.equal(bits(joined), bits(whole))


def test_statistics_have_the_same_bits_however_rows_are_cut_and_held():
    problem = random_problem(3000, torch.bfloat16, rows=4, with_bias=True, softcap=30.0)
    mixed = Schedule(math="mixed")
    whole = [bits(x) for x in statistics(problem, mixed)]

    def same(found):
        return all(torch.equal(bits(x), y) for x, y in zip(found, whole, strict=True))

    assert same(statistics(problem, mixed, parts=(512, 2048)))
    assert same(statistics(problem, mixed, parts=(2048,)))
    # Every distance from an aligned address.
    for offset in range(1, 8):
        assert same(statistics(dataclasses.replace(problem, offset=offset, stride=3008), mixed))
    for order in ("reverse", "shuffled"):
        assert same(statistics(problem, Schedule(order, math="mixed", resident_blocks=4)))
    alone = [statistics(problem.rows_from(n, n + 1), mixed) for n in range(4)]
    assert same([torch.cat(x) for x in zip(*alone, strict=True)])


@pytest.mark.parametrize("columns", [33, 1500])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_hard_rows(columns, schedule):
    logits = torch.stack([*finite_rows(columns).values()])
    # Sums of the row of numbers near the largest are not float32.
    logits = logits[logits.abs().nan_to_num(0, posinf=0, neginf=0).amax(1) < 1e38]
    ids = torch.arange(3).expand(len(logits), 3) * (columns // 3)
    problem = Problem(logits, ids.contiguous(), torch.ones(1))
    found = statistics(problem, schedule)
    assert_statistics(problem, found)
    up = make_upstream(problem)
    ours = gradient(problem, up, schedule=schedule)
    assert_gradient(problem, up, ours)
    dropped = logits == -math.inf
    dropped[torch.arange(len(logits))[:, None], ids] = False
    assert ours[dropped].eq(0).all()


@pytest.mark.parametrize("columns", [33, 1500])
def test_nan_and_infinities_stay_in_their_row(columns):
    special = torch.stack([*special_rows(columns).values()])
    plain = torch.randn(len(special) + 1, columns, generator=torch.Generator().manual_seed(1))
    logits = torch.empty(2 * len(special) + 1, columns)
    logits[::2], logits[1::2] = plain, special
    problem = Problem(logits, torch.zeros(len(logits), 1, dtype=torch.int64), torch.ones(1))
    alone = Problem(plain, problem.ids[::2], torch.ones(1))
    for schedule in SCHEDULES:
        selected, lse, entropy = statistics(problem, schedule)
        assert lse[1::2].isnan().all()
        assert entropy[1::2].isnan().all()
        for x, y in zip((selected, lse, entropy), statistics(alone, schedule), strict=True):
            assert torch.equal(x[::2], y)
        up = make_upstream(problem, lse=lse, entropy=entropy)
        assert gradient(problem, up, schedule=schedule)[::2].isfinite().all()


def test_rows_without_coefficients_are_zero_whatever_they_hold():
    problem = random_problem(1030, rows=4)
    problem.logits[:] = math.nan
    up = make_upstream(problem, lse=torch.full((4,), math.nan))
    for x in (up.alpha, up.gamma, up.eta):
        x.zero_()
    assert gradient(problem, up).eq(0).all()
    # One coefficient of each kind makes a row active.
    up.alpha[1, 3], up.gamma[2], up.eta[3] = 1.0, 1.0, 1.0
    assert gradient(problem, up).isnan().any(1).tolist() == [False, True, True, True]


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["address", "thread"])
def test_sanitizers_find_nothing(variant):
    module = Module("linear_log_probs", variant)
    # In exactly the bytes of the rows; two warps to a block, and one entry less than two units.
    problem = random_problem(2047, torch.bfloat16, rows=2, with_bias=True, softcap=5.0)
    assert_statistics(problem, statistics(problem, SCHEDULES[1], module=module))
    up = make_upstream(problem)
    for in_place in (False, True):
        ours = gradient(problem, up, in_place=in_place, schedule=SCHEDULES[1], module=module)
        assert_gradient(problem, up, ours)
