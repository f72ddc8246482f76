"""The selection against a stable sort: same ids, in the same order, in every order of threads."""

import pytest
import torch

from tests.cuda_sim.checks import all_rows, check_top_k, top_k
from tests.cuda_sim.rows import WIDTHS
from tests.cuda_sim.simulator import SCHEDULES, Module, Schedule


def ks(width):
    """1; around a warp; 50 and 64, the usual; more than one pair per thread; all."""
    return sorted({k for k in (1, 2, 31, 33, 50, 64, 600, width) if k <= min(width, 4099)})


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize("width", [w for w in WIDTHS if w <= 1000])
def test_the_largest_of_a_row(width, schedule):
    x = all_rows(width)
    for k in ks(width):
        check_top_k(x, k, top_k(x, k, schedule))


# The largest rows: the usual k, one that fills a block, and all of 4099 in 8192 places.
@pytest.mark.parametrize(
    ("width", "k", "number"), [(4099, 4099, 0), (4099, 300, 1), (50257, 50, 2), (50257, 1024, 3)]
)
def test_large_rows(width, k, number):
    x = all_rows(width)
    # Rows whose selection ends early, and such that need every pass.
    x = x if width < 50257 else x[[0, 2, 4, 8, 10, 12, 15, 18]]
    check_top_k(x, k, top_k(x, k, SCHEDULES[number]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
# 1000 columns of 2 bytes: every second row begins at a 16-byte address; 33: hardly any.
@pytest.mark.parametrize("width", [33, 1000])
def test_half_precision_rows_have_many_ties(dtype, schedule, width):
    x = all_rows(width, dtype)
    check_top_k(x, 30, top_k(x, 30, schedule))


@pytest.mark.parametrize("offset", range(8))
def test_rows_begin_at_any_address(offset):
    for width in (1, 7, 40):
        x = all_rows(width, torch.bfloat16)
        check_top_k(x, 1, top_k(x, 1, SCHEDULES[offset % 4], offset=offset))


# Fewer threads than bins per thread need, and as many as a block can have.
@pytest.mark.parametrize("threads", [64, 1024])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_blocks_of_other_sizes(threads, schedule):
    x = all_rows(1000)
    check_top_k(x, 64, top_k(x, 64, schedule, suffix=f"_of_{threads}_threads"))


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
# Tiles of 512: less than one, one, two, and 16, whose runs are merged in several steps.
@pytest.mark.parametrize("k", [300, 512, 700, 4099])
def test_more_entries_than_shared_memory_holds(schedule, k):
    x = all_rows(max(1000, k))[::4]
    check_top_k(x, k, top_k(x, k, schedule, in_global=True))


def test_ids_beyond_two_digits():
    # 2^22 + 9 ids have three digits of 10, 11 and 11 bits, and all values are equal.
    x = torch.zeros(1, 2**22 + 9)
    check_top_k(x, 2, top_k(x, 2))


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["address", "thread"])
def test_sanitizers_find_nothing(variant):
    # Two rows, one that needs every pass; 64 threads, for the time that the race check takes.
    x = all_rows(1000)[[0, 2]]
    module = Module("radix_select", variant)
    options = {"suffix": "_of_64_threads", "module": module}
    check_top_k(x, 70, top_k(x, 70, Schedule("reverse"), **options))
    # Four tiles of 128, which are full but for the last places.
    check_top_k(x, 500, top_k(x, 500, Schedule("reverse"), in_global=True, **options))


def test_the_address_sanitizer_finds_nothing_at_any_address():
    module = Module("radix_select", "address")
    for offset in range(4):
        x = all_rows(7)[:3]
        check_top_k(x, 7, top_k(x, 7, offset=offset, suffix="_of_64_threads", module=module))
