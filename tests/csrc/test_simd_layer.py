"""The SIMD layer of the CPU kernels against float64, torch's rounding and the Philox reference."""

import random

import numpy as np
import pytest
import torch

from lepo_kernels.backends.reference import philox
from tests.csrc.layer import Layer
from tests.guarded import run_apart

TORCH = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
HALVES = ("bfloat16", "float16")
TINY = np.finfo(np.float32).tiny
# About 4 million of the 2^32 words or floats, a prime apart so that all low bits occur; and both
# ends.
WORDS = np.append(np.arange(0, 2**32, 1021, dtype=np.uint64), 2**32 - 1).astype(np.uint32)
FLOATS = WORDS.view(np.float32)
NANS = FLOATS[np.isnan(FLOATS)]


def between(low: float, high: float) -> np.ndarray:
    inside = FLOATS[(low <= FLOATS) & (high >= FLOATS)]
    return np.append(inside, np.float32([low, high]))


def units(ours: np.ndarray, oracle: np.ndarray) -> np.ndarray:
    """The error in units in the last place of a float32 of the oracle's size."""
    unit = np.spacing(np.abs(oracle).astype(np.float32)).astype(np.float64)
    return np.abs(ours.astype(np.float64) - oracle) / unit


def uniforms(words: np.ndarray) -> np.ndarray:
    """The definition, rounded to float32 after each operation."""
    v = (words.astype(np.float32) + np.float32(0.5)) * np.float32(2.0**-32)
    return np.minimum(v, np.float32(1 - 2.0**-24))


def test_exp_is_within_one_unit(layer: Layer):
    x = between(-87.3, 88)
    assert units(layer.map("vector_exp", x), np.exp(x.astype(np.float64))).max() < 1
    assert np.array_equal(layer.map("vector_exp_or_zero", x), layer.map("vector_exp", x))
    assert layer.map("vector_exp", np.zeros(1, np.float32))[0] == 1


def test_exp_below_the_normal_numbers(layer: Layer):
    below = np.append(between(np.finfo(np.float32).min, -87.31), np.float32(-np.inf))
    almost = layer.map("vector_exp", below)
    assert (almost > 0).all()
    assert (almost < 1.3e-38).all()
    zero = layer.map("vector_exp_or_zero", below)
    assert np.array_equal(zero.view(np.uint32), np.zeros(zero.size, np.uint32))


@pytest.mark.parametrize("name", ["vector_exp", "vector_exp_or_zero"])
def test_exp_of_nan_is_nan(layer: Layer, name: str):
    assert NANS.size > 10000
    assert np.isnan(layer.map(name, NANS)).all()


def test_log_is_within_one_unit(layer: Layer):
    x = np.append(between(TINY, np.finfo(np.float32).max), np.float32(1))
    # Also every float32 from 0.99 to 1.01, where log passes through 0.
    around_one = np.arange(*np.float32([0.99, 1.01]).view(np.uint32), dtype=np.uint32)
    x = np.concatenate((x, around_one.view(np.float32)))
    assert units(layer.map("vector_log", x), np.log(x.astype(np.float64))).max() < 1


@pytest.mark.parametrize("form", ["vector", "scalar"])
def test_uniform_numbers_are_those_of_the_definition(layer: Layer, form: str):
    v = layer.map(f"{form}_uniform", WORDS)
    assert np.array_equal(v, uniforms(WORDS))
    assert v.min() > 0
    assert v.max() == np.float32(1 - 2.0**-24)


@pytest.mark.parametrize("form", ["vector", "scalar"])
def test_exponential_numbers_are_within_three_units(layer: Layer, form: str):
    oracle = -np.log1p(-uniforms(WORDS).astype(np.float64))
    assert units(layer.map(f"{form}_exponential", WORDS), oracle).max() < 3


@pytest.mark.parametrize("form", ["vector", "scalar"])
def test_gumbel_numbers(layer: Layer, form: str):
    g = layer.map(f"{form}_gumbel", WORDS)
    oracle = -np.log(-np.log1p(-uniforms(WORDS).astype(np.float64)))
    # One unit for the outer logarithm. Three of the inner one, each at most 2^-23 of it, are as
    # much in the outer one's argument, and so in its value whatever that is.
    allowed = np.spacing(np.abs(oracle).astype(np.float32)) + 3 * 2.0**-23
    assert (np.abs(g - oracle) <= allowed).all()
    assert np.isfinite(g).all()
    # Of the smallest word, -log(2^-33), and of the largest, -log(log(2^24)).
    np.testing.assert_allclose(g[[0, -1]], [22.873857, -2.8115408], rtol=1e-6)


def test_scalar_and_reference_gumbel_numbers_are_the_vector_ones(layer: Layer):
    vector, scalar = layer.map("vector_gumbel", WORDS), layer.map("scalar_gumbel", WORDS)
    words = torch.from_numpy(WORDS.astype(np.int64))
    reference = philox.gumbel_from_words(words, torch.float32).numpy()
    # Both may be off by as much as test_gumbel_numbers allows, in opposite directions.
    allowed = 2 * (np.spacing(np.abs(vector)) + 3 * 2.0**-23)
    assert (np.abs(vector - scalar) <= allowed).all()
    assert (np.abs(vector - reference) <= allowed).all()


def keys(dice: random.Random) -> tuple[int, int, int]:
    return dice.randrange(2**64), dice.randrange(2**64), dice.randrange(2**32)


def reference_words(seed: int, row_key: int, step: int, ids: np.ndarray, draw: int) -> np.ndarray:
    def signed(x: int) -> int:
        return x - 2**64 if x >= 2**63 else x

    return philox.philox_words(
        torch.tensor(signed(seed)),
        torch.tensor([signed(row_key)]),
        torch.tensor([step]),
        torch.from_numpy(ids.astype(np.int64))[None],
        draw,
    )[0].numpy()


# The first and last ids of the contract's range, and one whose block number is odd.
@pytest.mark.parametrize("first", [0, 4 * 1000001, 2**26 - 64])
@pytest.mark.parametrize("draw", [0, 63])
def test_words_are_the_reference_words(layer: Layer, first: int, draw: int):
    dice = random.Random(first + draw)
    for seed, row_key, step in [keys(dice), (0, 0, 0), (2**64 - 1, 2**64 - 1, 2**32 - 1)]:
        ids = first + np.arange(4 * layer.lanes)
        expected = reference_words(seed, row_key, step, ids, draw)
        assert np.array_equal(layer.philox_words(seed, row_key, step, first, draw), expected)
        for id, word in zip(ids.tolist(), expected.tolist(), strict=True):
            assert layer.scalar_philox_word(seed, row_key, step, id, draw) == word
        blocks = (ids[::4] // 4 + draw * 2**24).astype(np.uint32)
        found = layer.philox_blocks(seed, row_key, step, blocks)
        assert np.array_equal(found.T.reshape(-1), expected)


def test_blocks_of_counters_in_any_order(layer: Layer):
    dice = random.Random(0)
    seed, row_key, step = keys(dice)
    blocks = [dice.randrange(2**24) for _ in range(layer.lanes)]
    found = layer.philox_blocks(seed, row_key, step, np.array(blocks, np.uint32))
    for lane, block in enumerate(blocks):
        expected = reference_words(seed, row_key, step, 4 * block + np.arange(4), 0)
        assert np.array_equal(found[:, lane], expected)


def as_torch(dtype: str, values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(values).view(TORCH[dtype])


@pytest.mark.parametrize("dtype", HALVES)
def test_widening_is_exact(layer: Layer, dtype: str):
    every = np.arange(2**16, dtype=np.uint16).view(layer.STORAGE[dtype])
    ours = torch.from_numpy(layer.widen(dtype, every))
    expected = as_torch(dtype, every).float()
    nan = expected.isnan()
    assert torch.equal(ours.isnan(), nan)
    assert torch.equal(ours[~nan].view(torch.int32), expected[~nan].view(torch.int32))


@pytest.mark.parametrize("dtype", HALVES)
def test_narrowing_rounds_as_torch_does(layer: Layer, dtype: str):
    halves = np.arange(2**16, dtype=np.uint16).view(layer.STORAGE[dtype])
    exact = layer.widen(dtype, halves)
    # Also every value of the narrow type, the midpoint above it, and the floats beside both.
    halfway = exact.view(np.uint32) + np.uint32(0x8000 if dtype == "bfloat16" else 0x1000)
    near = [(b + np.uint32(d)).view(np.float32) for b in (exact.view(np.uint32), halfway)
            for d in (0, 1, 2**32 - 1)]  # fmt: skip
    x = np.concatenate((FLOATS[: FLOATS.size // 16 * 16], *near))
    ours = as_torch(dtype, layer.narrow(dtype, x))
    expected = torch.from_numpy(x).to(TORCH[dtype])
    nan = torch.from_numpy(np.isnan(x))
    assert ours[nan].isnan().all()
    assert torch.equal(ours[~nan].view(torch.int16), expected[~nan].view(torch.int16))


@pytest.mark.parametrize("dtype", TORCH)
def test_part_of_a_vector(layer: Layer, dtype: str):
    values = np.arange(1, 1 + layer.lanes, dtype=np.float32)
    stored = layer.narrow(dtype, values)
    for count in range(layer.lanes):
        loaded = layer.load_some(dtype, stored.ctypes.data, count, -7.0)
        assert loaded.tolist() == values[:count].tolist() + [-7.0] * (layer.lanes - count)
        target = np.zeros_like(stored)
        layer.store_some(dtype, target.ctypes.data, values, count)
        assert target.tolist() == stored[:count].tolist() + [0] * (layer.lanes - count)


@pytest.mark.parametrize("dtype", TORCH)
def test_part_of_a_vector_touches_nothing_beyond(layer: Layer, dtype: str):
    run_apart("tests.csrc.guarded_loads", str(layer.path), dtype)


def test_any_lane(layer: Layer):
    assert not layer.any(np.zeros(layer.lanes, np.int32))
    for lane in range(layer.lanes):
        # A comparison's lane holds all bits; one of any weight must do, too.
        for bits in (-1, 1, -(2**31)):
            mask = np.zeros(layer.lanes, np.int32)
            mask[lane] = bits
            assert layer.any(mask)


def test_lane_numbers(layer: Layer):
    assert layer.lane_numbers().tolist() == list(range(layer.lanes))


def test_sums_of_lanes_fold_halves(layer: Layer):
    rng = np.random.default_rng(0)
    for _ in range(100):
        # Sizes far apart, so that another order of summation gives other bits.
        x = (rng.standard_normal(layer.lanes) * 10.0 ** rng.integers(-4, 5, layer.lanes)).astype(
            np.float32
        )
        folded = x
        while folded.size > 1:
            half = folded.size // 2
            folded = folded[:half] + folded[half:]
        assert layer.fold("sum_of_lanes", x) == folded[0]


def test_maxima_of_lanes(layer: Layer):
    for lane in range(layer.lanes):
        x = np.full(layer.lanes, -np.inf, np.float32)
        assert layer.fold("max_of_lanes", x) == -np.inf
        x[lane] = -3
        assert layer.fold("max_of_lanes", x) == -3


def test_larger_and_smaller_take_the_second_where_the_first_is_nan(layer: Layer):
    a = np.resize(np.float32([1, 2, np.nan, -np.inf]), layer.lanes)
    b = np.resize(np.float32([2, 1, 5, 5]), layer.lanes)
    assert layer.pairwise("vector_max", a, b)[:4].tolist() == [2, 2, 5, 5]
    assert layer.pairwise("vector_min", a, b)[:4].tolist() == [1, 1, 5, -np.inf]
