"""The native latent draw against the reference, exact selections, and its own bits."""

import math

import pytest
import torch
from torch import Tensor

from lepo_kernels import dispatch, native, sample_latent
from tests.ops.helpers import assert_passes_on
from tests.seeds import seeded
from tests.tolerances import sum_error

pytestmark = pytest.mark.skipif("cpu" in dispatch.MISSING, reason="no native library")

NOISES = ("none", "gumbel", "gaussian", "dirichlet", "categorical")
EXACT = ("ids", "count", "shadow")


def native_and_reference(logits, **arguments):
    return (
        sample_latent(logits, backend="cpu", **arguments),
        sample_latent(logits, backend="reference", **arguments),
    )


def assert_same_draw(ours, reference):
    """Equal choices, and numbers to float32 rounding.

    The noise is exact in its words; a Gumbel or normal number is off by some units in the last
    place of numbers up to 20, which tau = 0.3 magnifies threefold in the exponent of a weight.
    """
    for name in EXACT:
        assert torch.equal(getattr(ours, name), getattr(reference, name)), name
    for name in ("logits", "lse", "kept_lse"):
        torch.testing.assert_close(
            getattr(ours, name), getattr(reference, name), rtol=1e-6, atol=1e-6, msg=name
        )
    torch.testing.assert_close(ours.entropy, reference.entropy, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.scores, reference.scores, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.weights, reference.weights, rtol=1e-4, atol=1e-5)
    assert (ours.token == reference.token).float().mean() > 0.99


def decided_top_p(
    logits: Tensor,  # [N, V]
    top_k: int,
    top_p: float,
) -> float:
    """A bound near ``top_p`` that no row's sums of probabilities come close to.

    Where one does, which entry is the last is a matter of rounding, and two kernels may differ.
    """
    sums = logits.double().topk(top_k).values.softmax(-1).cumsum(-1)
    undecided = 2 * sum_error(logits.shape[1])
    while (sums - top_p).abs().min() < undecided:
        top_p -= undecided
    return top_p


# V = 2: one vector, cut; 7 and 1000: no multiple of a vector, one chunk; 49152: six whole chunks;
# 151936: a cut last chunk. K = 1, the published 30, one above the entries that ranks sort (128),
# and more than the cells of a small row. The excluded ids hold the best of every row.
@pytest.mark.parametrize(("rows", "vocab"), [(5, 2), (5, 7), (5, 1000), (3, 49152), (2, 151936)])
@pytest.mark.parametrize("top_k", [1, 30, 300])
@pytest.mark.parametrize("excluding", [False, True])
def test_draw_is_the_references(rows, vocab, top_k, excluding):
    torch.manual_seed(seeded(vocab))
    logits = 3 * torch.randn(rows, vocab)
    excluded = torch.unique(logits.argmax(-1))[: vocab - 1] if excluding else None
    allowed = logits.clone()
    if excluded is not None:
        allowed[:, excluded] = -math.inf
    top_k = min(top_k, vocab)
    arguments = {
        "top_k": top_k,
        "top_p": decided_top_p(allowed / 0.8, top_k, 0.95),
        "temperature": 0.8,
        "tau": 0.3,
        "exclude_ids": excluded,
        "seed": 3,
        "step": 5,
    }
    assert_same_draw(*native_and_reference(logits, **arguments))


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_noise_and_dtype_is_the_references(noise, dtype):
    torch.manual_seed(seeded(1))
    logits = (3 * torch.randn(64, 3000)).to(dtype)
    draws = 4 if noise == "categorical" else 1
    top_p = decided_top_p(logits, 40, 0.9)
    arguments = {"top_k": 40, "top_p": top_p, "min_p": 0.01, "tau": 0.3, "noise": noise}
    ours, reference = native_and_reference(logits, num_draws=draws, noise_scale=2.0, **arguments)
    if noise == "dirichlet":
        # A score of an entry without mass is about -1e6: compare what it means.
        torch.testing.assert_close(ours.scores, reference.scores, rtol=1e-4, atol=1e-4)
        assert torch.equal(ours.ids, reference.ids)
    else:
        assert_same_draw(ours, reference)


# Every way through the selection: fewer entries than k; a bound from groups of cells, from single
# cells, and none; candidates that overflow their room (ties everywhere), once and often; sorts by
# rank and by radix. 20000 entries are 79 blocks.
@pytest.mark.parametrize("top_k", [1, 2, 30, 128, 129, 1000, 5000, 19999, 20000])
@pytest.mark.parametrize("values", [1, 2, 50, 10**6])
@pytest.mark.parametrize("order", ["random", "ascending", "descending"])
def test_selection_is_exact(top_k, values, order):
    torch.manual_seed(seeded(top_k))
    logits = torch.randint(-values // 2, values - values // 2, (2, 20000)).float() / 64
    if order != "random":
        logits = logits.sort(dim=-1, descending=order == "descending").values
    logits[1, torch.rand(20000) < 0.3] = -math.inf
    sample = sample_latent(logits, top_k=top_k, noise="none", backend="cpu")
    for row in range(2):
        expected = logits[row].sort(descending=True, stable=True)
        count = min(top_k, int(expected.values.isfinite().sum()))
        assert int(sample.count[row]) == count
        assert torch.equal(sample.ids[row, :count], expected.indices[:count])
        assert torch.equal(sample.logits[row, :count], expected.values[:count])


# Whole blocks, ids at both ends of the row, repeated and unordered ids, and all but one entry.
@pytest.mark.parametrize(
    "excluded",
    [[0], [999], [500, 3, 3, 999], list(range(256)), list(range(100, 900)), list(range(1, 1000))],
)
def test_exclusion_is_exact(excluded):
    torch.manual_seed(seeded(2))
    logits = torch.randn(4, 1000)
    logits[:, excluded] += 5
    sample = sample_latent(
        logits, top_k=20, noise="none", exclude_ids=torch.tensor(excluded), backend="cpu"
    )
    masked = logits.clone()
    masked[:, excluded] = -math.inf
    count = min(20, 1000 - len(set(excluded)))
    assert sample.count.eq(count).all()
    assert torch.equal(sample.ids[:, :count], masked.topk(count).indices)
    torch.testing.assert_close(sample.lse, logits.logsumexp(-1))


# Wide, flat, shifted, huge, single peaks and masks; entropy near 0 and near log V.
@pytest.mark.parametrize("temperature", [0.3, 1.0, 50.0])
@pytest.mark.parametrize(
    ("scale", "shift"), [(1, 0), (0, 0), (30, 0), (1, 1000), (1e4, -1e4), (1, -3e4)]
)
def test_statistics_are_as_good_as_plain_torch(scale, shift, temperature):
    torch.manual_seed(seeded(3))
    logits = scale * torch.randn(4, 20001) + shift
    logits[1, 7:] = -math.inf
    logits[2, 13] = logits[2].max() + 40
    logits[3, ::2] = -3e38
    sample = sample_latent(logits, temperature=temperature, top_k=2, backend="cpu")
    a = logits * (1 / torch.tensor(temperature))
    exact = a.double().log_softmax(-1)
    lse = a.double().logsumexp(-1)
    entropy = -(exact.exp() * exact.masked_fill(exact == -math.inf, 0)).sum(-1)
    # Rounding the result is half a unit; a sum's terms are within 1.7e-7.
    torch.testing.assert_close(sample.lse.double(), lse, rtol=2e-7, atol=4e-7)
    torch.testing.assert_close(sample.entropy.double(), entropy, rtol=2e-6, atol=1e-6)


def test_a_single_survivor_has_no_entropy_at_any_temperature():
    logits = torch.full((300, 700), -math.inf)
    logits[:, 5] = torch.linspace(-100, 100, 300)
    temperature = torch.linspace(0.1, 3, 300)
    sample = sample_latent(logits, temperature=temperature, backend="cpu")
    assert sample.entropy.eq(0).all()
    assert torch.equal(sample.lse, logits[:, 5] * temperature.reciprocal())


def bits(sample):
    return [field.clone() for field in sample]


# 2 and 5 rows: chunks are shared out, and rows; 262144 entries: one row keeps all threads busy.
@pytest.mark.parametrize(("rows", "vocab"), [(1, 262144), (2, 49152), (5, 20000), (33, 1000)])
@pytest.mark.parametrize("noise", NOISES)
def test_threads_change_no_bit(rows, vocab, noise):
    torch.manual_seed(seeded(4))
    logits = 3 * torch.randn(rows, vocab)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(sample_latent(logits, top_k=40, top_p=0.9, noise=noise, backend="cpu"))
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        for ours, first in zip(result, results[0], strict=True):
            assert torch.equal(ours, first)


@pytest.mark.parametrize("noise", NOISES)
def test_the_batch_changes_no_bit(noise):
    torch.manual_seed(seeded(5))
    logits, keys = 3 * torch.randn(9, 20000), torch.arange(100, 109)

    def run(rows):
        return sample_latent(
            logits[rows], top_k=30, noise=noise, row_keys=keys[rows], tau=0.3, backend="cpu"
        )

    whole, rows = run(torch.arange(9)), torch.tensor([8, 2, 5])
    for part, all_rows in zip(run(rows), whole, strict=True):
        assert torch.equal(part, all_rows[rows])
    for alone, all_rows in zip(run(rows[:1]), whole, strict=True):
        assert torch.equal(alone, all_rows[rows[:1]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rows_may_lie_anywhere(dtype):
    torch.manual_seed(seeded(6))
    # 1001 columns of 1003: neither rows nor blocks begin at a multiple of anything.
    wide = torch.randn(6, 1003).to(dtype)
    view = wide[:, 1:1002]
    one = wide[:1, 1:1002].expand(6, 1001)
    for logits in (view, one, view.contiguous().T.contiguous().T, wide[::2, 1:1002]):
        sample = sample_latent(logits, top_k=9, backend="cpu")
        dense = sample_latent(logits.contiguous(), top_k=9, backend="cpu")
        for ours, expected in zip(sample, dense, strict=True):
            assert torch.equal(ours, expected)


def test_a_poisoned_neighbour_is_not_read():
    wide = torch.full((4, 1200), math.nan)
    wide[:, 100:1101] = torch.randn(4, 1001)
    sample = sample_latent(wide[:, 100:1101], top_k=1001, backend="cpu")
    assert sample.lse.isfinite().all()
    assert sample.count.eq(1001).all()


@pytest.mark.slow
@pytest.mark.parametrize("vocab", [128256, 151936, 262144])
def test_many_rows_of_a_large_vocabulary(vocab):
    torch.manual_seed(seeded(7))
    logits = 3 * torch.randn(64, vocab)
    assert_same_draw(
        *native_and_reference(logits, top_k=30, top_p=decided_top_p(logits, 30, 0.95), tau=0.3)
    )


# What the tests above check, on the instruction sets that they do not use.
CORE = "draw_is_the_references or every_noise or selection_is_exact or statistics or exclusion"


@pytest.mark.slow
@pytest.mark.parametrize("capability", native.CAPABILITIES)
def test_every_instruction_set(capability):
    assert_passes_on(capability, __file__, CORE)
