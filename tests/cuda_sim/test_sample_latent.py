"""The latent draw, from its launch on: exact choices, the same bits in any split and layout."""

import dataclasses
import itertools
import math

import pytest
import torch

from lepo_kernels.ops.sample_latent import NOISES
from tests.cuda_sim.checks import Draw, check_latent, check_latent_statistics, latent
from tests.cuda_sim.rows import finite_rows, special_rows
from tests.cuda_sim.simulator import SCHEDULES, Module, Schedule

UNIT, TILE = 512, 4096
# Not 1, and such that 3e38 stays finite.
EXACT = Draw(temperature=(1.3,))


def rows_of(width, dtype=torch.float32):
    return torch.stack([*finite_rows(width).values()]).to(dtype)


def random_rows(rows, width, dtype=torch.float32):
    chance = torch.Generator().manual_seed(width)
    return (3 * torch.randn(rows, width, generator=chance)).to(dtype)


def assert_same_bits(first, second):
    for name, ours, other in zip(first._fields, first, second, strict=True):
        torch.testing.assert_close(ours, other, rtol=0, atol=0, equal_nan=True, msg=name)


# 2, 7: less than an octet; a unit and one more; a tile, and a second that has one entry.
@pytest.mark.parametrize("width", [1, 2, 7, UNIT, UNIT + 1, TILE, TILE + 1])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_rows_that_are_hard_to_select_from(width, schedule):
    x = rows_of(width)
    x = x[x.isfinite().any(1)]
    # The fewest, the published number, and the most of the narrow kernel.
    for k in sorted({min(k, width) for k in (1, 30, 64)}):
        draw = dataclasses.replace(EXACT, top_k=k)
        check_latent(x, draw, latent(x, draw, schedule))


# Four tiles: a rising row replaces all candidates in each; the last tile has one entry.
@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_no_bit_depends_on_the_splits(schedule):
    x = rows_of(3 * TILE + 1)
    draw = Draw(top_k=64, noise="gumbel", top_p=0.95, tau=(0.3,))
    whole = latent(x, draw, schedule)
    check_latent(x, draw, whole)
    for splits in (2, 4):
        assert_same_bits(latent(x, draw, schedule, splits=splits), whole)


def test_the_most_parts_that_one_block_merges():
    x = torch.cat([random_rows(1, 64 * TILE), torch.zeros(1, 64 * TILE)])
    for k in (1, 64):
        draw = dataclasses.replace(EXACT, top_k=k)
        check_latent(x, draw, latent(x, draw, SCHEDULES[2], splits=64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
# A row inside one octet, one that ends in a unit, and one of three units.
@pytest.mark.parametrize("width", [5, 300, 2 * UNIT + 13])
def test_no_bit_depends_on_the_address_or_the_precision(dtype, width):
    x = random_rows(3, width, dtype)
    for k in (min(9, width), min(70, width)):
        draw = dataclasses.replace(EXACT, top_k=k)
        expected = latent(x.float(), draw)
        check_latent(x.float(), draw, expected)
        # Every distance from a 16-byte address, and rows that begin at different ones.
        for offset in range(16 // x.element_size()):
            for gap in (0, 3):
                schedule = SCHEDULES[offset % 4]
                if schedule.math == "exact":
                    ours = latent(x, draw, schedule, offset=offset, gap=gap)
                    assert_same_bits(ours, expected)
                else:
                    check_latent(x, draw, latent(x, draw, schedule, offset=offset, gap=gap))


# Just above the narrow kernel's most; more than a block has threads; all.
@pytest.mark.parametrize("top_k", [65, 600, 3 * UNIT + 5])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_wide_selections(top_k, schedule):
    x = rows_of(3 * UNIT + 5)
    draw = dataclasses.replace(EXACT, top_k=top_k, exclude=(0, 700, 1540))
    ours = latent(x, draw, schedule)
    check_latent(x, draw, ours)
    narrow = latent(x, dataclasses.replace(draw, top_k=5), schedule)
    assert torch.equal(ours.lse, narrow.lse)
    assert torch.equal(ours.entropy, narrow.entropy)


def test_a_selection_that_is_sorted_tile_by_tile():
    # Two tiles of 4096 places; ties across both.
    x = torch.cat([rows_of(4200)[:2], torch.zeros(1, 4200)])
    draw = dataclasses.replace(EXACT, top_k=4150)
    check_latent(x, draw, latent(x, draw))


@pytest.mark.parametrize("noise", NOISES)
# One chunk of entries for a block's threads, and two.
@pytest.mark.parametrize("top_k", [40, 700])
def test_every_noise_is_the_references(noise, top_k):
    x = random_rows(6, 1000)
    filters = itertools.product((1.0, 0.9), (0.0, 0.02))
    for number, (top_p, min_p) in enumerate(filters):
        draw = Draw(
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            noise=noise,
            noise_scale=2.0,
            clamp=(-1.0, 3.0) if noise == "gumbel" and number % 2 else (-math.inf, math.inf),
            num_draws=5 if noise == "categorical" else 1,
            exclude=(3, 999, 3) if number % 2 else (),
            # As few as can be and tau 0; rows with their own.
            tau=(0.3, 0.0, 1.0, 0.5, 1e-38, 2.0),
            temperature=(1.0, 0.5, 2.0, 0.9, 1.0, 7.0) if number % 2 else (0.8,),
            step=(1, 2, 2**32 - 1, 0, 5, 6) if number % 2 else (9,),
            seed=-(2**60) + 3,
        )
        check_latent(x, draw, latent(x, draw, SCHEDULES[number]))


@pytest.mark.parametrize("top_k", [3, 65])
@pytest.mark.parametrize("noise", NOISES)
def test_bad_rows_spoil_themselves_only(noise, top_k):
    good = random_rows(2, 600)
    bad = torch.stack([*special_rows(600).values()])
    x = torch.cat([good[:1], bad, good[1:]])
    draws = 2 if noise == "categorical" else 1
    draw = Draw(top_k=top_k, noise=noise, num_draws=draws, tau=(0.5,))
    for schedule in SCHEDULES:
        ours = latent(x, draw, schedule)
        for name in ("weights", "scores", "logits", "lse", "kept_lse", "entropy"):
            field = getattr(ours, name)
            assert field[1:-1].isnan().all(), name
            assert not field[[0, -1]].isnan().any(), name
        for name in ("ids", "shadow", "token"):
            assert ((getattr(ours, name) >= 0) & (getattr(ours, name) < 600)).all(), name


@pytest.mark.parametrize("top_k", [3, 65])
def test_exclusion(top_k):
    x = random_rows(3, 2 * TILE)
    best = x.argmax(1).tolist()
    # Ids of a lane's every octet, at both ends, more than a warp looks at in one go, and such as
    # are in no row.
    many = (*best, 0, 2 * TILE - 1, *range(250, 1600, 7))
    outside = (-1, -(2**63), 2 * TILE, 2**40)
    draw = dataclasses.replace(EXACT, top_k=top_k, exclude=many)
    expected = latent(x, draw)
    check_latent(x, draw, expected)
    ours = latent(x, dataclasses.replace(draw, exclude=many + outside), SCHEDULES[1], splits=2)
    assert torch.equal(ours.ids, expected.ids)


@pytest.mark.parametrize("top_k", [3, 65])
def test_a_row_that_exclusion_empties(top_k):
    x = random_rows(3, 700)
    x[1] = -math.inf
    x[1, 7] = 1.5
    ours = latent(x, Draw(top_k=top_k, exclude=(7,)))
    check_latent_statistics(x, Draw(), ours)
    assert ours.weights[1].isnan().all()
    assert ours.kept_lse.isnan().tolist() == [False, True, False]
    assert ours.count[1] == ours.shadow[1] == ours.token[1] == 0


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["address", "thread"])
def test_sanitizers_find_nothing(variant):
    module = Module("sample_latent", variant)
    # The race check takes a millisecond per thread: one row, and each way once.
    flat = torch.zeros(1, TILE + 3)
    draw = Draw(top_k=40, top_p=0.9, noise="gaussian", exclude=(3, 9))
    check_latent(flat, draw, latent(flat, draw, Schedule("reverse"), splits=2, module=module))
    wide = random_rows(1, 300)
    draw = Draw(top_k=70, min_p=0.01, noise="gumbel", exclude=(3, 9))
    check_latent(wide, draw, latent(wide, draw, module=module))
    draw = Draw(top_k=9, noise="categorical", num_draws=6)
    check_latent(wide, draw, latent(wide, draw, module=module))


def test_the_address_sanitizer_finds_nothing_at_any_address():
    module = Module("sample_latent", "address")
    for dtype in (torch.float32, torch.bfloat16):
        x = random_rows(2, 3 * UNIT + 29, dtype)
        for offset in range(16 // x.element_size()):
            latent(x, Draw(top_k=3), offset=offset, gap=1, module=module)
            latent(x, Draw(top_k=65), offset=offset, gap=1, module=module)
