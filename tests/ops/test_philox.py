"""Philox words against published answers and a scalar transcription; noise against its formulas."""

import math
import random

import pytest
import scipy.stats
import torch

from lepo_kernels import gumbel_noise, normal_noise, philox_words
from lepo_kernels.backends.reference.philox import (
    dense_philox_words,
    gumbel_from_words,
    philox_blocks,
)

# From the test vectors published with Random123: counter, key, words.
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    (
        (0xFFFFFFFF,) * 4,
        (0xFFFFFFFF,) * 2,
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def scalar_philox(counter, key):
    """Philox4x32-10 on Python integers, from the definition in the paper."""
    c, k = list(counter), list(key)
    for _ in range(10):
        left, right = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [
            (right >> 32) ^ c[1] ^ k[0],
            right % 2**32,
            (left >> 32) ^ c[3] ^ k[1],
            left % 2**32,
        ]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return tuple(c)


def scalar_word(seed, row_key, step, token, draw):
    seed, row_key = seed % 2**64, row_key % 2**64
    counter = (token // 4 + draw * 2**24, step, row_key % 2**32, row_key >> 32)
    return scalar_philox(counter, (seed % 2**32, seed >> 32))[token % 4]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN_ANSWERS)
def test_published_answers(counter, key, words):
    def tensors(values):
        return tuple(torch.tensor(v) for v in values)

    blocks = philox_blocks(tensors(counter), tensors(key))
    assert tuple(int(x) for x in blocks) == words
    assert scalar_philox(counter, key) == words


def test_the_contract_places_every_field_of_the_counter():
    # The digits-of-pi vector fits the public op's ranges: its first counter word is draw 0x24,
    # block 0x3f6a88.
    words = philox_words(
        0x299F31D0A4093822,
        torch.tensor([0x0370734413198A2E]),
        0x85A308D3,
        4 * 0x3F6A88 + torch.arange(4),
        draw=0x24,
    )
    assert tuple(words[0].tolist()) == KNOWN_ANSWERS[2][2]


def test_words_match_a_scalar_transcription():
    dice = random.Random(0)
    seed = dice.randrange(-(2**63), 2**64)
    row_keys = [dice.randrange(-(2**63), 2**63) for _ in range(5)]
    steps = [dice.randrange(2**32) for _ in range(5)]
    ids = [[dice.randrange(2**26) for _ in range(7)] for _ in range(5)]
    ours = philox_words(
        seed, torch.tensor(row_keys), torch.tensor(steps), torch.tensor(ids), draw=63
    )
    expected = [
        [scalar_word(seed, key, step, token, 63) for token in row]
        for key, step, row in zip(row_keys, steps, ids, strict=True)
    ]
    assert ours.tolist() == expected


def test_dense_words_are_the_same_words():
    keys, step, seed = torch.tensor([3, -8]), torch.tensor([6]), torch.tensor(17)
    # 4k, 4k + 1 and 4k + 3 ids: whole and cut last blocks.
    for vocab in (8, 9, 11):
        dense = dense_philox_words(seed, keys, step, vocab)
        assert torch.equal(dense, philox_words(17, keys, 6, torch.arange(vocab)))


def test_a_word_depends_on_its_own_entry_alone():
    keys, ids = torch.tensor([5, -1, 9, 2**40]), torch.arange(50)
    whole = philox_words(1, keys, 3, ids)
    rows, columns = torch.tensor([2, 0]), torch.tensor([49, 7, 7, 0])
    assert torch.equal(philox_words(1, keys[rows], 3, ids[columns]), whole[rows][:, columns])


def test_every_field_matters():
    keys, ids = torch.tensor([5]), torch.arange(8)
    base = philox_words(1, keys, 3, ids)
    others = [
        philox_words(2, keys, 3, ids),
        philox_words(1 + 2**32, keys, 3, ids),
        philox_words(1, keys + 1, 3, ids),
        philox_words(1, keys + 2**32, 3, ids),
        philox_words(1, keys, 4, ids),
        philox_words(1, keys, 3, ids + 8),
        philox_words(1, keys, 3, ids, draw=1),
    ]
    for other in others:
        assert not (base == other).any()


def test_seeds_and_steps_come_as_numbers_or_tensors():
    keys, ids = torch.arange(3), torch.arange(5)
    base = philox_words(-1, keys, 4, ids)
    assert torch.equal(base, philox_words(2**64 - 1, keys, 4, ids))
    assert torch.equal(base, philox_words(torch.tensor(-1), keys, torch.tensor(4), ids))
    assert torch.equal(base, philox_words(-1, keys, torch.full((3,), 4), ids.int()))


def test_gumbel_numbers_follow_the_contract():
    keys, ids = torch.arange(4), torch.arange(100)
    words = philox_words(11, keys, 2, ids, draw=5)
    v = [min((b + 0.5) * 2.0**-32, 1 - 2.0**-24) for b in words.flatten().tolist()]
    expected = torch.tensor([-math.log(-math.log1p(-x)) for x in v], dtype=torch.float64)
    exact = gumbel_noise(11, keys, 2, ids, draw=5, dtype=torch.float64)
    torch.testing.assert_close(exact.flatten(), expected, rtol=1e-14, atol=1e-14)
    # In float32, v is within 2^-24 of 1 at worst, where log1p loses what rounding v lost.
    single = gumbel_noise(11, keys, 2, ids, draw=5)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), exact, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_words_give_finite_noise(dtype):
    lowest, highest = gumbel_from_words(torch.tensor([2**32 - 1, 0]), dtype).tolist()
    # v = 1 - 2^-24 and v = 2^-33.
    assert math.isclose(lowest, -math.log(24 * math.log(2)), rel_tol=1e-6)
    assert math.isclose(highest, 33 * math.log(2), rel_tol=1e-6)


def test_normal_numbers_are_box_muller_of_word_pairs():
    keys, ids = torch.arange(3), torch.tensor([0, 1, 2, 3, 6, 7, 41])
    words = philox_words(7, keys, 1, torch.arange(48), draw=32)
    ours = normal_noise(7, keys, 1, ids, draw=32, dtype=torch.float64)
    for row in range(3):
        for column, token in enumerate(ids.tolist()):
            pair = [(int(words[row, i]) + 0.5) * 2.0**-32 for i in (token & ~1, token | 1)]
            radius = math.sqrt(-2 * math.log(1 - pair[0]))
            turn = math.sin if token % 2 else math.cos
            expected = radius * turn(2 * math.pi * pair[1])
            assert math.isclose(float(ours[row, column]), expected, abs_tol=1e-12)
    single = normal_noise(7, keys, 1, ids, draw=32)
    torch.testing.assert_close(single.double(), ours, rtol=1e-5, atol=1e-5)


# 20000 numbers: Kolmogorov-Smirnov then sees a shift of about 0.02.
def test_noise_has_its_distribution():
    keys, ids = torch.arange(200), torch.arange(100)
    gumbel = gumbel_noise(0, keys, 0, ids).flatten().numpy()
    normal = normal_noise(0, keys, 0, ids).flatten().numpy()
    assert scipy.stats.kstest(gumbel, "gumbel_r").pvalue > 1e-3
    assert scipy.stats.kstest(normal, "norm").pvalue > 1e-3
    cosines, sines = normal[0::2], normal[1::2]
    # Uncorrelated numbers of this count stay within 4 / sqrt(10000).
    assert abs(scipy.stats.pearsonr(cosines, sines).statistic) < 0.04


@pytest.mark.parametrize("shape", [(0, 3), (2, 0)])
def test_empty_requests(shape):
    words = philox_words(0, torch.arange(shape[0]), 0, torch.zeros(shape, dtype=torch.int64))
    assert words.shape == shape


# One entry; a row longer than a block of 256 threads; no entries; more rows than a grid's y axis.
@pytest.mark.parametrize("shape", [(1, 1), (3, 1000), (0, 4), (70_000, 3)])
def test_words_are_the_reference_words(shape):
    dice = torch.Generator().manual_seed(0)
    keys = torch.randint(-(2**63), 2**63 - 1, shape[:1], generator=dice)
    steps = torch.randint(2**32, shape[:1], generator=dice)
    ids = torch.randint(2**26, shape, generator=dice)
    for step, entries in ((steps, ids), (7, ids[0] if len(ids) else ids)):
        expected = philox_words(-3, keys, step, entries, draw=5, backend="reference")
        assert torch.equal(philox_words(-3, keys, step, entries, draw=5), expected)


def test_opcheck():
    torch.library.opcheck(
        torch.ops.lepo_kernels.philox_words.default,
        (
            torch.tensor(3),
            torch.arange(2),
            torch.tensor([1]),
            torch.arange(5)[None],
            1,
            "reference",
        ),
    )


def test_compiled_noise_is_eager_noise():
    keys, ids = torch.arange(3), torch.arange(6)

    def noise(seed, step):
        return gumbel_noise(seed, keys, step, ids), normal_noise(seed, keys, step, ids)

    compiled = torch.compile(noise, fullgraph=True, backend="aot_eager")
    for seed, step in ((torch.tensor(1), 2), (torch.tensor(5), 3)):
        for ours, eager in zip(compiled(seed, step), noise(seed, step), strict=True):
            assert torch.equal(ours, eager)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"seed": 2**64}, ValueError, "seed: expected an int in"),
        ({"seed": 1.5}, TypeError, "seed: expected an int, got float"),
        ({"seed": torch.tensor([1])}, ValueError, r"seed: expected shape \[\], got \[1\]"),
        ({"row_keys": torch.arange(2).int()}, TypeError, "row_keys: expected dtype int64"),
        ({"step": -1}, ValueError, "step: expected an int in"),
        ({"step": torch.tensor(-1)}, ValueError, r"step: expected values in .*, got -1"),
        ({"step": torch.tensor([0, 2**32])}, ValueError, r"step: expected values in .*4294967296"),
        ({"step": torch.arange(3)}, ValueError, r"step: expected shape \[2\], got \[3\]"),
        ({"ids": torch.zeros(3, 4).long()}, ValueError, r"ids: expected shape \[2, K\]"),
        ({"ids": torch.rand(4)}, TypeError, "ids: expected dtype int64, int32"),
        ({"ids": [1, 2]}, TypeError, "ids: expected a Tensor, got list"),
        ({"ids": torch.tensor([2**26])}, IndexError, "ids: expected values in"),
        ({"ids": torch.tensor([-1])}, IndexError, "ids: expected values in"),
        ({"draw": 64}, ValueError, "draw: expected an int in"),
    ],
)
def test_errors_name_the_argument(change, error, message):
    arguments = {"seed": 0, "row_keys": torch.arange(2), "step": 0, "ids": torch.arange(4)} | change
    for function in (philox_words, gumbel_noise, normal_noise):
        with pytest.raises(error, match=message):
            function(**arguments)


def test_noise_dtype_is_float32_or_float64():
    for function in (gumbel_noise, normal_noise):
        with pytest.raises(TypeError, match="dtype: expected float32 or float64"):
            function(0, torch.arange(2), 0, torch.arange(2), dtype=torch.bfloat16)
