"""The latent draw against plain-Python filters, transformers' warpers, and exact distributions."""

import math

import pytest
import scipy.stats
import torch
from transformers import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from lepo_kernels import gumbel_noise, normal_noise, sample_latent
from lepo_kernels.backends import checks
from tests.ops.helpers import HALF_DTYPES
from tests.seeds import seeded
from tests.tolerances import sum_error

pytestmark = pytest.mark.usefixtures("backend")

NOISES = ("none", "gumbel", "gaussian", "dirichlet", "categorical")


def expected_kept(a, top_k=None, top_p=1.0, min_p=0.0, excluded=()):
    """Kept ids of one row of Python floats, by the definition of each filter in turn."""
    order = sorted(
        (j for j in range(len(a)) if j not in excluded and a[j] > -math.inf),
        key=lambda j: (-a[j], j),
    )
    order = order[:top_k]
    total = math.fsum(math.exp(a[j] - a[order[0]]) for j in order)
    kept, mass = [], 0.0
    for j in order:
        in_nucleus = top_p == 1 or mass < top_p
        likely = min_p == 0 or a[j] - a[order[0]] >= math.log(min_p)
        if not kept or (in_nucleus and likely):
            kept.append(j)
        mass += math.exp(a[j] - a[order[0]]) / total
    return kept


def skip_unless_served(dtype, backend):
    if dtype == torch.float64 and backend != "reference":
        pytest.skip("float64 is served by reference")


def kept_ids(sample, row):
    return sample.ids[row, : int(sample.count[row])].tolist()


# V = 2 and 7 sort whole rows; 1000 selects blocks first, and its last block has 40 of 64 entries.
@pytest.mark.parametrize("vocab", [2, 7, 1000])
@pytest.mark.parametrize(
    "filters",
    [
        {},
        {"top_k": 1},
        {"top_k": 5},
        {"top_p": 0.8},
        {"min_p": 0.2},
        {"top_k": 6, "top_p": 0.7},
        {"top_k": 5, "top_p": 0.95, "min_p": 0.1},
        {"top_k": 5000, "top_p": 0.5},
    ],
)
def test_filters_keep_what_their_definitions_keep(vocab, filters, real):
    torch.manual_seed(seeded(vocab))
    # The oracle adds exactly. A sum that is a logarithm is known as well as the largest of what it
    # is made of: a logit, or log V.
    unit = sum_error(vocab) * torch.finfo(real).eps / torch.finfo(torch.float32).eps
    logits = 3 * torch.randn(6, vocab, dtype=real)
    logits[0, -1] = 12  # the best entry of a row is the last of the cut block
    sample = sample_latent(logits, temperature=1.5, noise="none", **filters)
    assert sample.ids.shape == (6, min(filters.get("top_k", vocab), vocab))
    for row in range(6):
        a = [x / 1.5 for x in logits[row].tolist()]
        kept = expected_kept(a, **filters)
        assert kept_ids(sample, row) == kept
        assert sample.ids[row, len(kept) :].eq(kept[0]).all()
        total = math.fsum(math.exp(a[j]) for j in kept)
        weights = torch.tensor([math.exp(a[j]) / total for j in kept], dtype=real)
        torch.testing.assert_close(sample.weights[row, : len(kept)], weights)
        assert sample.weights[row, len(kept) :].eq(0).all()
        assert sample.scores[row, len(kept) :].eq(-math.inf).all()
        assert sample.logits[row, len(kept) :].eq(-math.inf).all()
        torch.testing.assert_close(
            sample.logits[row, : len(kept)], torch.tensor([a[j] for j in kept], dtype=real)
        )
        close = {"rel_tol": 0, "abs_tol": unit * (max(map(abs, a)) + math.log(vocab))}
        assert math.isclose(float(sample.kept_lse[row]), math.log(total), **close)
        everything = math.fsum(math.exp(x) for x in a)
        assert math.isclose(float(sample.lse[row]), math.log(everything), **close)
        entropy = math.log(everything) - math.fsum(x * math.exp(x) for x in a) / everything
        assert math.isclose(float(sample.entropy[row]), entropy, **close)
        assert int(sample.shadow[row]) == int(sample.token[row]) == kept[0]


# 4096 columns: 64 blocks of 64, of which top_k = 30 selects 30.
def test_filters_agree_with_transformers():
    torch.manual_seed(seeded(0))
    logits = 4 * torch.randn(16, 4096)
    warped = logits / 0.7
    for warper in (TopKLogitsWarper(30), TopPLogitsWarper(0.9), MinPLogitsWarper(0.02)):
        warped = warper(None, warped)
    sample = sample_latent(logits, temperature=0.7, top_k=30, top_p=0.9, min_p=0.02, noise="none")
    for row in range(16):
        assert sorted(kept_ids(sample, row)) == warped[row].isfinite().nonzero()[:, 0].tolist()
    dense = torch.zeros_like(logits).scatter_add_(1, sample.ids, sample.weights)
    torch.testing.assert_close(dense, warped.softmax(-1))


# V = 7 sorts whole rows, 1000 selects blocks. Of 3 values, all blocks have the same peak; of 100,
# peaks differ, and a late block with a high peak holds entries that tie with an early block's.
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("vocab", [7, 1000])
@pytest.mark.parametrize("values", [3, 100])
def test_ties_are_ordered_by_id(dtype, vocab, values, backend):
    skip_unless_served(dtype, backend)
    torch.manual_seed(seeded(1))
    logits = torch.randint(-values // 2, values // 2, (40, vocab)).to(dtype)
    zeros = logits == 0
    logits[zeros] = torch.where(torch.rand(40, vocab)[zeros] < 0.5, -0.0, 0.0).to(dtype)
    for top_k in (1, 3, 7):
        sample = sample_latent(logits, top_k=top_k, noise="none")
        for row in range(40):
            assert kept_ids(sample, row) == expected_kept(logits[row].tolist(), top_k)
    assert torch.equal(sample_latent(logits, top_k=1).token, logits.argmax(-1))


def test_gumbel_scores_weights_and_token_follow_the_formula(real):
    torch.manual_seed(seeded(2))
    logits = torch.randn(5, 300, dtype=real)
    keys, steps = torch.tensor([4, -9, 2**50, 0, 1]), torch.tensor([3, 1, 4, 1, 5])
    noise = gumbel_noise(99, keys, steps, torch.arange(300), dtype=real)
    sample = sample_latent(
        logits, tau=0.3, temperature=0.8, top_k=4, seed=99, row_keys=keys, step=steps
    )
    q = (logits / 0.8 + noise).gather(1, sample.ids)
    torch.testing.assert_close(sample.scores, q)
    torch.testing.assert_close(sample.weights, (q / 0.3).softmax(-1))
    torch.testing.assert_close(sample.logits, (logits / 0.8).topk(4).values)
    assert torch.equal(sample.token, sample.ids.gather(1, q.argmax(-1, keepdim=True))[:, 0])


def test_clamped_noise(real):
    torch.manual_seed(seeded(3))
    logits = torch.randn(200, 7, dtype=real)
    noise = gumbel_noise(0, torch.arange(200), 0, torch.arange(7), dtype=real)
    assert (noise < -1).any()
    assert (noise > 3).any()
    sample = sample_latent(logits, noise_clamp=(-1, 3))
    torch.testing.assert_close(sample.scores, (logits + noise.clamp(-1, 3)).gather(1, sample.ids))


def test_gaussian_noise_is_scaled_by_the_rms_of_the_kept_logits(real):
    torch.manual_seed(seeded(4))
    logits = torch.randn(5, 40, dtype=real)
    sample = sample_latent(logits, noise="gaussian", noise_scale=0.4, top_p=0.7, seed=1, step=2)
    noise = normal_noise(1, torch.arange(5), 2, torch.arange(40), dtype=real)
    for row in range(5):
        ids = sample.ids[row, : int(sample.count[row])]
        a = logits[row, ids]
        q = a + 0.4 * a.square().mean().sqrt() * noise[row, ids]
        torch.testing.assert_close(sample.scores[row, : len(ids)], q)
        torch.testing.assert_close(sample.weights[row, : len(ids)], q.softmax(-1))
        assert int(sample.token[row]) == int(ids[q.argmax()])


# Masks that are large finite numbers: their squares overflow, and so may sigma times the noise.
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("noise_scale", [0.5, 1e38])
@pytest.mark.parametrize("mask", ["min", -1e20, 1e20])
def test_gaussian_noise_of_huge_logits_never_makes_nan(dtype, noise_scale, mask, backend):
    skip_unless_served(dtype, backend)
    torch.manual_seed(seeded(15))
    logits = torch.randn(50, 6, dtype=dtype)
    mask = torch.finfo(dtype).min if mask == "min" else mask
    logits[:, [1, 4]] = mask
    sample = sample_latent(logits, noise="gaussian", noise_scale=noise_scale)
    torch.testing.assert_close(sample.weights.sum(-1), torch.ones(50, dtype=dtype))
    assert sample.scores.isfinite().all()
    assert sample.weights.gather(1, sample.weights.argmax(-1, keepdim=True)).gt(0).all()
    zero = sample_latent(torch.zeros(2, 3), noise="gaussian")
    assert zero.scores.eq(0).all()


def test_gaussian_noise_of_a_large_mask_is_scaled_by_it():
    logits = torch.tensor([[0.0, -3e20, -4e20]])
    sample = sample_latent(logits, noise="gaussian", noise_scale=0.5)
    rms = 5e20 / math.sqrt(3)
    noise = normal_noise(0, torch.arange(1), 0, torch.arange(3))
    torch.testing.assert_close(sample.scores, logits + 0.5 * rms * noise)


# Concentrations 2.8, as is, and 0.8 and 0.4, boosted.
@pytest.mark.large
@pytest.mark.usefixtures("drawn_backend")
def test_dirichlet_weights_have_their_marginals(real):
    rows = 4000
    probabilities = torch.tensor([0.7, 0.2, 0.1], dtype=real)
    sample = sample_latent(
        probabilities.log().expand(rows, 3), noise="dirichlet", noise_scale=4.0, seed=5
    )
    torch.testing.assert_close(sample.weights, sample.scores.softmax(-1))
    assert torch.equal(sample.ids, torch.arange(3).expand(rows, 3))
    for j, share in enumerate((4 * probabilities + 1e-6).tolist()):
        # A Gamma entry, and a Dirichlet marginal, Beta(alpha_j, sum of the others).
        gamma = scipy.stats.kstest(sample.scores[:, j].exp().numpy(), "gamma", (share,))
        beta = scipy.stats.kstest(sample.weights[:, j].numpy(), "beta", (share, 4 - share))
        assert min(gamma.pvalue, beta.pvalue) > 1e-3


# Concentration 1, where the rejection step of the Gamma draw matters most, and 80000 numbers, so
# that leaving it out shows.
@pytest.mark.large
@pytest.mark.usefixtures("drawn_backend")
def test_gamma_draws_are_exact():
    sample = sample_latent(torch.zeros(20000, 4), noise="dirichlet", noise_scale=4.0, seed=6)
    draws = sample.scores.double().exp().flatten().numpy()
    assert scipy.stats.kstest(draws, "gamma", (1 + 1e-6,)).pvalue > 1e-3


# An entry that no round accepts is d itself. A round accepts with probability 0.95 here, so that
# of 80000 entries 200 would be left after two rounds.
@pytest.mark.large
@pytest.mark.usefixtures("drawn_backend")
def test_gamma_draws_are_all_decided(real):
    logits = torch.zeros(20000, 4, dtype=real)
    sample = sample_latent(logits, noise="dirichlet", noise_scale=4.0, seed=6)
    undecided = math.log(1 + 1e-6 - 1 / 3)
    assert not sample.scores.sub(undecided).abs().lt(2 * torch.finfo(real).eps).any()


@pytest.mark.parametrize("top_p", [1e-46, 5e-324])
def test_a_tiny_top_p_keeps_the_first(top_p):
    sample = sample_latent(torch.randn(4, 9), top_p=top_p)
    assert sample.count.eq(1).all()
    assert sample.weights[:, 0].eq(1).all()


def test_clamps_may_be_open_at_either_end(real):
    torch.manual_seed(seeded(3))
    logits = torch.randn(200, 7, dtype=real)
    noise = gumbel_noise(0, torch.arange(200), 0, torch.arange(7), dtype=real)
    for low, high in ((-1.5, math.inf), (-math.inf, 3)):
        sample = sample_latent(logits, noise_clamp=(low, high))
        expected = (logits + noise.clamp(low, high)).gather(1, sample.ids)
        torch.testing.assert_close(sample.scores, expected)


def test_dirichlet_of_tiny_concentrations_is_finite():
    # The second entry has no mass in float32, so its concentration is the floor of 1e-6, and
    # log Gamma about -1e6.
    sample = sample_latent(torch.tensor([[0.0, -200.0]]).expand(500, 2), noise="dirichlet")
    assert sample.scores.isfinite().all()
    assert (sample.scores[:, 1] < -1e4).sum() > 400
    assert sample.weights.sum(-1).allclose(torch.ones(500))


def test_categorical_draws_are_gumbel_max_draws(real):
    torch.manual_seed(seeded(6))
    logits = torch.randn(20, 50, dtype=real)
    sample = sample_latent(logits, noise="categorical", num_draws=3, top_k=6, seed=8)
    kept = logits.topk(6)
    for draw in range(3):
        noise = gumbel_noise(8, torch.arange(20), 0, kept.indices, draw=draw, dtype=real)
        picked = (kept.values + noise).argmax(-1, keepdim=True)
        assert torch.equal(sample.ids[:, draw], kept.indices.gather(1, picked)[:, 0])
    assert sample.weights.eq(1 / 3).all()
    assert torch.equal(sample.logits, logits.gather(1, sample.ids))
    assert torch.equal(sample.scores, sample.logits)
    assert sample.count.eq(3).all()
    assert torch.equal(sample.token, sample.ids[:, 0])
    assert torch.equal(sample.shadow, logits.argmax(-1))
    torch.testing.assert_close(sample.kept_lse, kept.values.logsumexp(-1))


# 20000 rows: chi-squared then sees a bias of about 1% in a probability of 0.1.
@pytest.mark.large
@pytest.mark.usefixtures("drawn_backend")
@pytest.mark.parametrize("source", ["token", "weights", "categorical"])
def test_draws_have_the_filtered_distribution(source):
    rows = 20000
    torch.manual_seed(seeded(7))
    logits = torch.randn(60)
    kept = expected_kept(logits.tolist(), 12, 0.9)
    assert 6 < len(kept) < 12
    noise = {"noise": "categorical", "num_draws": 3} if source == "categorical" else {"tau": 0.5}
    sample = sample_latent(logits.expand(rows, 60), top_k=12, top_p=0.9, seed=10, **noise)
    drawn = {
        "token": sample.token,
        "weights": sample.ids.gather(1, sample.weights.argmax(-1, keepdim=True)),
        "categorical": sample.ids,
    }[source].flatten()
    counts = torch.bincount(drawn, minlength=60)[kept]
    assert counts.sum() == len(drawn)
    expected = logits[kept].double().softmax(0) * len(drawn)
    assert scipy.stats.chisquare(counts.numpy(), expected.numpy()).pvalue > 1e-3


# 60000 rows: the standard error of E[z] is below 0.002, and the stated values are rounded to 0.001.
@pytest.mark.large
@pytest.mark.usefixtures("drawn_backend")
def test_expected_weights_are_not_the_probabilities():
    logits = torch.tensor([0.7, 0.2, 0.1]).log().expand(60000, 3)
    mean = sample_latent(logits, tau=0.5, seed=3).weights.double().mean(0)
    torch.testing.assert_close(
        mean, torch.tensor([0.660, 0.222, 0.119]).double(), rtol=0, atol=0.006
    )


@pytest.mark.parametrize("noise", NOISES)
def test_rows_do_not_depend_on_their_batch(noise):
    torch.manual_seed(seeded(8))
    logits = 2 * torch.randn(9, 700)
    keys = torch.randint(-(2**62), 2**62, (9,))
    draws = 3 if noise == "categorical" else 1

    def run(rows):
        return sample_latent(
            logits[rows], top_k=5, top_p=0.9, noise=noise, num_draws=draws, row_keys=keys[rows]
        )

    whole, rows = run(torch.arange(9)), torch.tensor([7, 2, 4])
    part, alone = run(rows), run(torch.tensor([7]))
    for name in ("ids", "weights", "scores", "logits", "count", "shadow", "token"):
        assert torch.equal(getattr(part, name), getattr(whole, name)[rows]), name
        assert torch.equal(getattr(alone, name), getattr(whole, name)[7:8]), name
    # Sums over the vocabulary may be formed in another order.
    for name in ("lse", "kept_lse", "entropy"):
        torch.testing.assert_close(getattr(part, name), getattr(whole, name)[rows])
    for first, second in zip(whole, run(torch.arange(9)), strict=True):
        assert torch.equal(first, second)


def test_noise_follows_the_row_key_and_the_step():
    logits = torch.randn(1, 30).expand(4, 30)
    sample = sample_latent(
        logits, row_keys=torch.tensor([1, 1, 2, 1]), step=torch.tensor([0, 0, 0, 1])
    )
    assert torch.equal(sample.scores[0], sample.scores[1])
    assert not torch.equal(sample.scores[0], sample.scores[2])
    assert not torch.equal(sample.scores[0], sample.scores[3])


def test_tau_zero_is_the_argmax_path():
    torch.manual_seed(seeded(9))
    logits = torch.randn(30, 12)
    hard, soft = sample_latent(logits, tau=0.0), sample_latent(logits, tau=0.5)
    assert torch.equal(hard.token, soft.token)
    assert torch.equal(hard.weights, (hard.ids == soft.token[:, None]).float())
    mixed = sample_latent(logits, tau=torch.tensor([0.0, 0.5]).repeat(15))
    assert torch.equal(mixed.weights[0::2], hard.weights[0::2])
    assert torch.equal(mixed.weights[1::2], soft.weights[1::2])
    tied = sample_latent(torch.zeros(2, 5), tau=0.0, noise="none")
    assert tied.weights.tolist() == [[1, 0, 0, 0, 0]] * 2


def test_small_tau_underflows_to_the_argmax_and_never_to_nan():
    torch.manual_seed(seeded(14))
    logits = torch.randn(50, 20)
    assert torch.equal(
        sample_latent(logits, tau=1e-38).weights, sample_latent(logits, tau=0.0).weights
    )


@pytest.mark.parametrize("noise", NOISES)
def test_a_single_survivor_has_all_the_weight(noise):
    logits = torch.full((3, 6), -math.inf)
    logits[:, 4] = torch.tensor([0.0, -50.0, 9.0])
    for filters in ({}, {"top_k": 1}, {"top_k": 3, "top_p": 0.1, "min_p": 1.0}):
        sample = sample_latent(logits, noise=noise, **filters)
        assert sample.count.eq(1).all()
        assert sample.weights.sum(-1).eq(1).all()
        assert sample.weights[:, 0].eq(1).all()
        assert sample.ids.eq(4).all()
        assert torch.equal(sample.lse, logits[:, 4])
        assert sample.entropy.eq(0).all()


@pytest.mark.parametrize("noise", NOISES)
def test_minus_infinities_never_make_nan(noise):
    torch.manual_seed(seeded(10))
    logits = torch.randn(8, 500).masked_fill(torch.rand(8, 500) < 0.98, -math.inf)
    logits[:, 3] = 0
    sample = sample_latent(logits, noise=noise, top_k=100)
    for field in sample:
        assert not field.double().isnan().any()
    real = sample.weights > 0
    assert logits.gather(1, sample.ids)[real].isfinite().all()
    torch.testing.assert_close(
        sample.entropy,
        torch.distributions.Categorical(probs=logits.softmax(-1)).entropy(),
        rtol=1e-5,
        atol=1e-5,
    )


def test_excluded_ids_are_never_kept_but_still_counted():
    torch.manual_seed(seeded(11))
    logits = torch.randn(20, 30)
    logits[:, 4] += 5
    before = logits.clone()
    sample = sample_latent(logits, top_k=3, exclude_ids=torch.tensor([4, 17]))
    free = sample_latent(logits, top_k=3)
    assert torch.equal(logits, before)
    assert not torch.isin(sample.ids, torch.tensor([4, 17])).any()
    assert torch.equal(sample.lse, free.lse)
    assert torch.equal(sample.entropy, free.entropy)
    for row in range(20):
        assert kept_ids(sample, row) == expected_kept(logits[row].tolist(), 3, excluded=(4, 17))
        assert int(sample.shadow[row]) == kept_ids(sample, row)[0]
    nothing = sample_latent(logits, top_k=3, exclude_ids=torch.tensor([], dtype=torch.int64))
    assert torch.equal(nothing.ids, free.ids)


def test_excluding_everything_is_an_error_with_its_row():
    logits = torch.zeros(3, 4)
    logits[1, :3] = -math.inf
    with pytest.raises(ValueError, match="exclude_ids: leaves nothing to sample in row 1"):
        sample_latent(logits, exclude_ids=torch.tensor([3]))
    with pytest.raises(IndexError, match=r"exclude_ids: expected values in \[0, 4\), got 4"):
        sample_latent(logits, exclude_ids=torch.tensor([4]))


BAD_ROWS = [[-math.inf] * 300, [math.nan] + [0.0] * 299, [0.0] * 299 + [math.inf]]


@pytest.mark.parametrize("bad", BAD_ROWS, ids=["all -inf", "NaN", "+inf"])
def test_bad_rows_raise_with_their_index(bad):
    logits = torch.zeros(4, 300)
    logits[2] = torch.tensor(bad)
    with pytest.raises(ValueError, match="logits: row 2 is all -inf, or holds NaN or"):
        sample_latent(logits, top_k=2)


def switch_checks_off(monkeypatch):
    monkeypatch.setattr(checks, "checks_enabled", lambda device: False)


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("bad", BAD_ROWS, ids=["all -inf", "NaN", "+inf"])
def test_unchecked_bad_rows_spoil_themselves_only(bad, noise, monkeypatch):
    switch_checks_off(monkeypatch)
    torch.manual_seed(seeded(12))
    logits = torch.randn(4, 300)
    good = sample_latent(logits, top_k=2, noise=noise)
    logits[2] = torch.tensor(bad)
    sample = sample_latent(logits, top_k=2, noise=noise)
    others = torch.tensor([0, 1, 3])
    for ours, expected in zip(sample, good, strict=True):
        assert torch.equal(ours[others], expected[others])
    for name in ("weights", "scores", "logits", "lse", "kept_lse", "entropy"):
        assert getattr(sample, name)[2].isnan().all(), name
    for name in ("ids", "shadow", "token"):
        assert ((getattr(sample, name) >= 0) & (getattr(sample, name) < 300)).all()


@pytest.mark.parametrize("tau", [0.0, 0.5])
@pytest.mark.parametrize("noise", NOISES)
def test_unchecked_emptied_rows_spoil_themselves_only(noise, tau, monkeypatch):
    switch_checks_off(monkeypatch)
    torch.manual_seed(seeded(12))
    logits, excluded = torch.randn(4, 300), torch.tensor([7])
    good = sample_latent(logits, top_k=2, noise=noise, tau=tau, exclude_ids=excluded)
    logits[2] = -math.inf
    logits[2, 7] = 1.5
    sample = sample_latent(logits, top_k=2, noise=noise, tau=tau, exclude_ids=excluded)
    others = torch.tensor([0, 1, 3])
    for ours, expected in zip(sample, good, strict=True):
        assert torch.equal(ours[others], expected[others])
    for name in ("weights", "scores", "logits", "kept_lse"):
        assert getattr(sample, name)[2].isnan().all(), name
    assert sample.lse[2] == 1.5
    assert sample.entropy[2] == 0
    for name in ("ids", "shadow", "token"):
        assert ((getattr(sample, name) >= 0) & (getattr(sample, name) < 300)).all()


@pytest.mark.parametrize("noise", NOISES)
def test_no_rows(noise):
    for vocab in (3, 1000):
        sample = sample_latent(torch.zeros(0, vocab), top_k=2, noise=noise)
        assert sample.ids.shape == (0, 1 if noise == "categorical" else 2)
        assert sample.token.shape == (0,)


def test_layout_and_precision_of_the_input_change_nothing():
    torch.manual_seed(seeded(13))
    logits = torch.randn(6, 400)
    base = sample_latent(logits, top_k=5)
    strided = torch.empty(400, 12)[:, ::2].T.copy_(logits)
    for ours, expected in zip(sample_latent(strided, top_k=5), base, strict=True):
        assert torch.equal(ours, expected)
    for dtype in HALF_DTYPES:
        half = sample_latent(logits.to(dtype), top_k=5)
        assert half.weights.dtype == torch.float32
        for ours, expected in zip(
            half, sample_latent(logits.to(dtype).float(), top_k=5), strict=True
        ):
            assert torch.equal(ours, expected)


def test_temperature_per_row():
    logits, temperature = torch.randn(3, 9), torch.tensor([0.5, 1.0, 3.0])
    sample = sample_latent(logits, temperature=temperature)
    torch.testing.assert_close(sample.lse, (logits / temperature[:, None]).logsumexp(-1))
    again = sample_latent(logits[2:], temperature=3.0, row_keys=torch.tensor([2]))
    assert torch.equal(again.ids, sample.ids[2:])
    torch.testing.assert_close(again.scores, sample.scores[2:])


def test_nothing_is_differentiable():
    logits = torch.randn(2, 5, requires_grad=True)
    assert not any(field.requires_grad for field in sample_latent(logits))


@pytest.mark.parametrize("noise", NOISES)
def test_opcheck(noise, backend):
    one = torch.ones(1, dtype=torch.float64)
    torch.library.opcheck(
        torch.ops.lepo_kernels.sample_latent.default,
        (
            torch.randn(3, 8),
            one,
            one,
            4,
            0.9,
            0.01,
            noise,
            1.0,
            -math.inf,
            math.inf,
            2 if noise == "categorical" else 1,
            torch.tensor([1]),
            torch.tensor(0),
            torch.arange(3),
            torch.tensor([0]),
            *(1.0, 1.0, 0, 0),
            backend,
        ),
    )


def test_compiled_draw_is_the_eager_draw_at_every_seed_and_step():
    logits = torch.randn(4, 20)

    def draw(seed, step):
        sample = sample_latent(logits, top_k=5, top_p=0.9, tau=0.5, seed=seed, step=step)
        return sample.ids, sample.weights, sample.count

    compiled = torch.compile(draw, fullgraph=True, backend="aot_eager")
    for seed, step in ((0, torch.tensor(0)), (1, torch.tensor(7)), (2, torch.tensor(2))):
        for ours, eager in zip(compiled(seed, step), draw(seed, step), strict=True):
            assert torch.equal(ours, eager)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"logits": torch.zeros(3)}, ValueError, r"logits: expected shape \[N, V\], got \[3\]"),
        ({"logits": torch.zeros(3, 4).long()}, TypeError, "logits: expected dtype float32"),
        ({"logits": torch.zeros(3, 0)}, ValueError, "logits.shape.1.: expected an int in"),
        ({"tau": -1.0}, ValueError, "tau: expected a number in"),
        ({"tau": torch.tensor([1.0, -1.0])}, ValueError, "tau: expected finite numbers >= 0"),
        ({"temperature": 0.0}, ValueError, r"temperature: expected a number in \(0"),
        (
            {"temperature": torch.tensor(0.0)},
            ValueError,
            "temperature: expected finite numbers > 0",
        ),
        ({"temperature": torch.ones(3)}, ValueError, r"temperature: expected shape \[2\]"),
        ({"top_k": 0}, ValueError, "top_k: expected an int in"),
        ({"top_k": 2.0}, TypeError, "top_k: expected an int"),
        ({"top_p": 0.0}, ValueError, r"top_p: expected a number in \(0, 1\]"),
        ({"top_p": 1.1}, ValueError, r"top_p: expected a number in \(0, 1\]"),
        ({"min_p": -0.1}, ValueError, r"min_p: expected a number in \[0, 1\]"),
        ({"noise": "laplace"}, ValueError, "noise: expected one of 'none', 'gumbel'"),
        ({"noise_scale": 0.0}, ValueError, "noise_scale: expected a number in"),
        ({"tau": 1e39}, ValueError, "tau: expected a number that float32"),
        ({"temperature": 1e-40}, ValueError, "temperature: expected a number in"),
        ({"noise_scale": 1e39}, ValueError, "noise_scale: expected a number that float32"),
        ({"step": torch.tensor(-1)}, ValueError, "step: expected values in"),
        ({"noise_clamp": 3.0}, TypeError, "noise_clamp: expected a pair"),
        ({"noise_clamp": (1, 2, 3)}, TypeError, "noise_clamp: expected a pair"),
        ({"noise_clamp": ("a", 1)}, TypeError, r"noise_clamp\[0\]: expected a number"),
        ({"noise_clamp": (0, None)}, TypeError, r"noise_clamp\[1\]: expected a number"),
        ({"noise_clamp": (math.nan, 1)}, ValueError, r"noise_clamp\[0\]: expected a number"),
        ({"noise_clamp": (math.inf, math.inf)}, ValueError, r"noise_clamp\[0\]: expected a num"),
        ({"noise_clamp": (-math.inf, -math.inf)}, ValueError, r"noise_clamp\[1\]: expected a"),
        ({"noise_clamp": (1.0, -1.0)}, ValueError, r"noise_clamp\[1\]: expected a number in"),
        ({"noise_clamp": (0, 1), "noise": "none"}, ValueError, "noise_clamp: expected None unless"),
        ({"num_draws": 2}, ValueError, "num_draws: expected 1 unless noise='categorical'"),
        ({"num_draws": 65, "noise": "categorical"}, ValueError, "num_draws: expected an int in"),
        ({"exclude_ids": torch.zeros(1)}, TypeError, "exclude_ids: expected dtype int64"),
        ({"row_keys": torch.arange(3)}, ValueError, r"row_keys: expected shape \[2\], got \[3\]"),
    ],
)
def test_errors_name_the_argument(change, error, message):
    with pytest.raises(error, match=message):
        sample_latent(**({"logits": torch.zeros(2, 5)} | change))
