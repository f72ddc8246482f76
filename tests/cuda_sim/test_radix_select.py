"""The selection against a stable sort: same ids, in the same order, in every order of threads."""

import pytest
import torch

from tests.cuda_sim.rows import WIDTHS, finite_rows, special_rows
from tests.cuda_sim.simulator import SCHEDULES, Module, Schedule

ENTRIES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


def all_rows(width, dtype=torch.float32):
    return torch.stack([*finite_rows(width).values(), *special_rows(width).values()]).to(dtype)


def top_k(
    x, k, schedule=SCHEDULES[0], *, offset=0, in_global=False, suffix="", module="radix_select"
):
    rows, width = x.shape
    padded = torch.cat([torch.zeros(offset, dtype=x.dtype), x.flatten()])
    room = torch.zeros(rows * 2 ** (k - 1).bit_length() if in_global else 0, dtype=torch.int64)
    values, ids = torch.full((rows, k), -7.0), torch.full((rows, k), -7, dtype=torch.int32)
    kernels = Module(module) if isinstance(module, str) else module
    _, values, ids, _ = kernels.run(
        f"top_k_{ENTRIES[x.dtype]}{suffix}",
        [padded, values, ids, room],
        (rows, width, k, int(in_global), offset),
        schedule,
    )
    return values, ids


def check(x, k, found):
    values, ids = found
    # A stable sort keeps ties in the order of ids; torch puts NaN above +inf.
    order = x.float().sort(dim=1, descending=True, stable=True)
    assert torch.equal(ids.long(), order.indices[:, :k])
    expected = order.values[:, :k]
    torch.testing.assert_close(values, expected, rtol=0, atol=0, equal_nan=True)


def ks(width):
    """1; around a warp; 50 and 64, the usual; more than one pair per thread; all."""
    return sorted({k for k in (1, 2, 31, 33, 50, 64, 600, width) if k <= min(width, 4099)})


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("width", [w for w in WIDTHS if w <= 1000])
def test_the_largest_of_a_row(width, schedule):
    x = all_rows(width)
    for k in ks(width):
        check(x, k, top_k(x, k, schedule))


# The largest rows: the usual k, one that fills a block, and all of 4099 in 8192 places.
@pytest.mark.parametrize(
    ("width", "k", "number"), [(4099, 4099, 0), (4099, 300, 1), (50257, 50, 2), (50257, 1024, 3)]
)
def test_large_rows(width, k, number):
    x = all_rows(width)
    # Rows whose selection ends early, and such that need every pass.
    x = x if width < 50257 else x[[0, 2, 4, 8, 10, 12, 15, 18]]
    check(x, k, top_k(x, k, SCHEDULES[number]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("schedule", SCHEDULES)
# 1000 columns of 2 bytes: every second row begins at a 16-byte address; 33: hardly any.
@pytest.mark.parametrize("width", [33, 1000])
def test_half_precision_rows_have_many_ties(dtype, schedule, width):
    x = all_rows(width, dtype)
    check(x, 30, top_k(x, 30, schedule))


@pytest.mark.parametrize("offset", range(8))
def test_rows_begin_at_any_address(offset):
    for width in (1, 7, 40):
        x = all_rows(width, torch.bfloat16)
        check(x, 1, top_k(x, 1, SCHEDULES[offset % 4], offset=offset))


# Fewer threads than bins per thread need, and as many as a block can have.
@pytest.mark.parametrize("threads", [64, 1024])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_blocks_of_other_sizes(threads, schedule):
    x = all_rows(1000)
    check(x, 64, top_k(x, 64, schedule, suffix=f"_of_{threads}_threads"))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_more_entries_than_shared_memory_holds(schedule):
    x = all_rows(1000)[::4]
    check(x, 700, top_k(x, 700, schedule, in_global=True))


def test_ids_beyond_two_digits():
    # 2^22 + 9 ids have three digits of 10, 11 and 11 bits, and all values are equal.
    x = torch.zeros(1, 2**22 + 9)
    check(x, 2, top_k(x, 2))


@pytest.mark.parametrize("variant", ["address", "thread"])
def test_sanitizers_find_nothing(variant):
    # Two rows, one that needs every pass; 64 threads, for the time that the race check takes.
    x = all_rows(1000)[[0, 2]]
    module = Module("radix_select", variant)
    check(x, 70, top_k(x, 70, Schedule("reverse"), suffix="_of_64_threads", module=module))


def test_the_address_sanitizer_finds_nothing_at_any_address():
    module = Module("radix_select", "address")
    for offset in range(4):
        x = all_rows(7)[:3]
        check(x, 7, top_k(x, 7, offset=offset, suffix="_of_64_threads", module=module))
