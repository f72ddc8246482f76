"""Reductions against float64, in every order, with the same bits each time."""

import math

import pytest
import torch

from tests.cuda_sim.checks import check_statistics, statistics
from tests.cuda_sim.rows import WIDTHS, finite_rows, special_rows
from tests.cuda_sim.simulator import SCHEDULES, Module, Schedule

REDUCE = Module("block_reduce")
# One warp, two, the usual size, and the largest, whose second stage uses all lanes.
THREADS = (32, 64, 256, 1024)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_rows_of_every_width(width, schedule):
    x = torch.stack([*finite_rows(width).values()])
    check_statistics(x, statistics(x, 256, schedule))


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_blocks_of_every_size(threads, schedule):
    x = torch.stack([*finite_rows(1000).values()])
    check_statistics(x, statistics(x, threads, schedule))


@pytest.mark.parametrize("width", [1, 33, 1000])
def test_nan_and_infinities_stay_in_their_row(width):
    special = special_rows(width)
    plain = torch.randn(width, generator=torch.Generator().manual_seed(1))
    # Each between two plain rows.
    x = torch.stack([row for other in special.values() for row in (plain, other)] + [plain])
    for schedule in SCHEDULES:
        ours = statistics(x, 64, schedule)
        check_statistics(x[::2], ours[::2])
        for (name, row), found in zip(special.items(), ours[1::2], strict=True):
            expected = row.max()
            assert found[0] == expected or (found[0].isnan() and expected.isnan()), name
            if name == "all -inf":
                assert found[2] == -math.inf
            elif row.isnan().any() or (row == math.inf).any():
                assert found[2].isnan(), name
                assert found[3].isnan(), name


def test_bits_do_not_depend_on_the_schedule_or_the_batch():
    x = torch.stack([*finite_rows(1000).values()])
    bits = [
        statistics(x, 256, schedule).view(torch.int32)
        for schedule in (
            Schedule("forward", math="mixed", poison=0xFF),
            Schedule("reverse", math="mixed", poison=0x00),
            Schedule("shuffled", math="mixed", resident_blocks=5),
        )
    ]
    assert torch.equal(bits[0], bits[1])
    assert torch.equal(bits[0], bits[2])
    alone = torch.cat([statistics(row[None], 256, Schedule(math="mixed")) for row in x])
    assert torch.equal(alone.view(torch.int32), bits[0])


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_exclusive_sums(threads, schedule):
    x = torch.randint(-5, 100, (2, threads), dtype=torch.int32)
    zeros = torch.zeros(2, threads + 1, dtype=torch.int32)
    _, out = REDUCE.run("scan", [x, zeros], (threads,), schedule)
    expected = torch.cat([torch.zeros(2, 1), x.cumsum(1)], dim=1)
    assert torch.equal(out, expected.int())


@pytest.mark.parametrize("threads", THREADS)
def test_lower_threads_stand_on_the_left(threads):
    letters = torch.randint(1, 1000, (threads,), dtype=torch.int32)
    text = 0
    for letter in letters.tolist():
        text = (text * 31 + letter) % 65521
    for schedule in SCHEDULES:
        arrays = [letters, torch.zeros(threads, dtype=torch.int64)]
        _, out = REDUCE.run("order", arrays, (threads,), schedule)
        assert out.tolist() == [threads << 48 | text] * threads


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["address", "thread"])
def test_sanitizers_find_nothing(variant):
    # Two rows and two warps; the race check costs most per thread.
    module = Module("block_reduce", variant)
    x = torch.stack([*finite_rows(1000).values()][:2])
    check_statistics(x, statistics(x, 64, SCHEDULES[1], module))
    y = torch.randint(0, 9, (2, 64), dtype=torch.int32)
    module.run("scan", [y, torch.zeros(2, 65, dtype=torch.int32)], (64,), SCHEDULES[0])
