"""Scores against torch.distributions, written-out densities, and the gradients of their papers."""

import math

import pytest
import torch
from torch.distributions import (
    Categorical,
    Gumbel,
    Independent,
    Normal,
    RelaxedOneHotCategorical,
)
from torch.distributions.relaxed_categorical import ExpRelaxedCategorical

from lepo_kernels import (
    concrete_log_density,
    exp_concrete_log_density,
    gaussian_log_density,
    gumbel_log_density,
    hard_log_prob,
    latent_grpo_log_density,
    multiplex_log_probs,
    sample_latent,
    soft_log_prob,
)
from tests.seeds import seeded

INF = math.inf


def policy(rows=6, vocab=9, kept=4, seed=0):
    """Policy logits over a vocabulary, and what the head op gives of them: ids, a, LSE."""
    torch.manual_seed(seeded(seed))
    dense = (2 * torch.randn(rows, vocab, dtype=torch.float64)).requires_grad_()
    ids = torch.stack([torch.randperm(vocab)[:kept] for _ in range(rows)])
    return dense, ids, dense.gather(1, ids), dense.logsumexp(-1)


def drawn(rows=6, kept=4, seed=1):
    """Stored scores of a rollout whose rows keep 4, 3, 2, 1 and again 4 entries, and none."""
    torch.manual_seed(seeded(seed))
    scores = torch.randn(rows, kept, dtype=torch.float64)
    for row, count in enumerate([4, 3, 2, 1, 4, 0][:rows]):
        scores[row, count:] = -INF
    return scores


def grad_of(score, inputs):
    return torch.autograd.grad(score.sum(), inputs, retain_graph=True)


def test_hard_and_multiplex_log_probs():
    dense, ids, a, lse = policy()
    distribution = Categorical(logits=dense)
    torch.testing.assert_close(hard_log_prob(a[:, 0], lse), distribution.log_prob(ids[:, 0]))
    slots = multiplex_log_probs(a, lse)
    for k in range(4):
        torch.testing.assert_close(slots[:, k], distribution.log_prob(ids[:, k]))


def test_soft_log_prob_and_its_gradient():
    dense, ids, a, lse = policy()
    weights = torch.rand(6, 4, dtype=torch.float64, requires_grad=True)
    score = soft_log_prob(a, lse, weights)
    log_pi = dense.log_softmax(-1)
    for n in range(6):
        expected = sum(weights[n, k] * log_pi[n, ids[n, k]] for k in range(4))
        torch.testing.assert_close(score[n], expected)
    alpha, gamma = grad_of(score, (a, lse))
    assert torch.equal(alpha, weights.detach())
    torch.testing.assert_close(gamma, -weights.detach().sum(-1))
    # The weights are constants, whatever graph they came with.
    assert torch.autograd.grad(score.sum(), weights, allow_unused=True) == (None,)


def test_soft_log_prob_skips_entries_of_weight_zero():
    a = torch.tensor([[1.0, -INF, 2.0], [-INF, -INF, -INF]], requires_grad=True)
    lse = torch.tensor([3.0, 0.0], requires_grad=True)
    weights = torch.tensor([[0.5, 0.0, 0.5], [0.0, 0.0, 0.0]])
    score = soft_log_prob(a, lse, weights)
    assert score.tolist() == [-1.5, 0.0]
    alpha, gamma = grad_of(score, (a, lse))
    assert torch.equal(alpha, weights)
    assert gamma.tolist() == [-1.0, 0.0]


def test_gumbel_log_density_is_that_of_shifted_gumbels():
    _, _, a, _ = policy(5)
    q = drawn(5)
    score = gumbel_log_density(a, q, min_log_prob=-INF)
    for n, count in enumerate([4, 3, 2, 1, 4]):
        location = a[n, :count].log_softmax(-1)
        expected = Gumbel(location, torch.ones(count).double()).log_prob(q[n, :count]).mean()
        torch.testing.assert_close(score[n], expected)


@pytest.mark.parametrize("epsilon", [0.0, 0.05])
def test_gumbel_log_density_gradient_is_the_papers(epsilon):
    _, _, a, _ = policy(1)
    q = torch.tensor([[0.3, -0.5, 4.0, -2.0]], dtype=torch.float64)
    p = a[0].detach().softmax(-1)
    log_prob = (p + epsilon).log()
    d = q[0] - log_prob
    low, high, floor = float(d.min()) + 0.1, 3.0, float(log_prob.min()) + 1e-6
    assert (d > high).any()  # one clamped from above, one from below, one entry under the floor
    counts = log_prob > floor
    u = (1 - (-d).exp()) / counts.sum() * (counts & (d > low) & (d < high))
    u = u * p / (p + epsilon)
    score = gumbel_log_density(a, q, min_log_prob=floor, clamp=(low, high), epsilon=epsilon)
    torch.testing.assert_close(grad_of(score, a)[0][0], u - p * u.sum())
    clamped = d.clamp(low, high)
    torch.testing.assert_close(score[0], (-clamped - (-clamped).exp())[counts].mean())


def test_gumbel_log_density_counts_only_likely_entries():
    probabilities = torch.tensor([[0.9, 0.06, 0.04]], dtype=torch.float64)
    # exp(-3) = 0.0498 lies between the two small ones.
    q = torch.tensor([[0.1, -3.0, 50.0]], dtype=torch.float64)
    d = q - probabilities.log()
    expected = (-d - (-d).exp())[0, :2].mean()
    torch.testing.assert_close(gumbel_log_density(probabilities.log(), q)[0], expected)
    # A floor above every entry leaves nothing: score and gradient 0.
    a = probabilities.log().requires_grad_()
    score = gumbel_log_density(a, q, min_log_prob=0.0)
    assert score.tolist() == [0.0]
    assert grad_of(score, a)[0].eq(0).all()


def test_gumbel_log_density_of_an_entry_that_does_not_count_never_overflows():
    a = torch.tensor([[0.0, -8.0]], requires_grad=True)
    q = torch.tensor([[0.0, -200.0]])  # d = -192: exp(-d) is inf in float32
    score = gumbel_log_density(a, q)
    assert score.isfinite().all()
    assert grad_of(score, a)[0].isfinite().all()


def test_latent_grpo_log_density_and_its_bounded_gradient():
    _, _, a, lse = policy(2, kept=3)
    lp = (a - lse[:, None]).detach()
    gap = torch.tensor([-2.0, 0.5, -0.1], dtype=torch.float64)
    q = lp + gap
    score = latent_grpo_log_density(a, lse, q, torch.tensor([1.0, -1.0]))
    alpha, gamma = grad_of(score, (a, lse))
    up = (1 - (-gap).exp()) / 3
    down = torch.tensor([math.exp(-2) - 1, 1 - math.exp(-0.5), math.exp(-0.1) - 1]).double() / 3
    torch.testing.assert_close(alpha, torch.stack((up, down)))
    torch.testing.assert_close(gamma, -alpha.sum(-1))
    # The published pair of numbers.
    torch.testing.assert_close(3 * up[0], torch.tensor(-6.39).double(), atol=0.005, rtol=0)
    torch.testing.assert_close(3 * down[0], torch.tensor(-0.86).double(), atol=0.005, rtol=0)
    # The value is the density whatever the advantage is, so that ratios are of one function.
    density = Gumbel(lp[0], 1.0).log_prob(q[0]).mean()
    torch.testing.assert_close(score, density.expand(2))
    # Mirrored where the advantage is not positive, zero included.
    zero, _ = grad_of(latent_grpo_log_density(a, lse, q, torch.zeros(2)), (a, lse))
    torch.testing.assert_close(zero, down.expand(2, 3))


def test_latent_grpo_log_density_averages_over_the_kept():
    _, _, a, lse = policy()
    score = latent_grpo_log_density(a, lse, drawn(), torch.ones(6))
    for n, count in enumerate([4, 3, 2, 1, 4]):
        location = (a[n] - lse[n])[:count]
        expected = Gumbel(location, 1.0).log_prob(drawn()[n, :count]).mean()
        torch.testing.assert_close(score[n], expected)
    assert score[5] == 0


@pytest.mark.parametrize("tau", [0.1, 0.5, 2.0])
def test_concrete_densities_match_torch_distributions(tau):
    _, _, a, _ = policy(5)
    q = drawn(5)
    ours, on_simplex = (f(a, q, tau) for f in (exp_concrete_log_density, concrete_log_density))
    for n, count in enumerate([4, 3, 2, 1, 4]):
        y = (q[n, :count] / tau).log_softmax(-1)
        kept = a[n, :count]
        expected = ExpRelaxedCategorical(torch.tensor(tau).double(), logits=kept).log_prob(y)
        torch.testing.assert_close(ours[n], expected)
        expected = RelaxedOneHotCategorical(
            torch.tensor(tau).double(), logits=kept, validate_args=False
        ).log_prob(y.exp())
        torch.testing.assert_close(on_simplex[n], expected)
    alpha = grad_of(ours, a)[0]
    torch.testing.assert_close(grad_of(on_simplex, a)[0], alpha)
    for n, count in enumerate([4, 3, 2, 1, 4]):
        expected = 1 - count * (a[n] - q[n])[:count].softmax(-1)
        torch.testing.assert_close(alpha[n, :count], expected.detach())
        assert alpha[n, count:].eq(0).all()


def test_concrete_scores_of_one_survivor_or_none_are_zero():
    for function in (exp_concrete_log_density, concrete_log_density):
        a = torch.tensor([[3.3, -INF], [7.0, 0.1]], requires_grad=True)
        q = torch.tensor([[-12.7, -INF], [-INF, -INF]])
        score = function(a, q, 0.3)
        assert score.tolist() == [0.0, 0.0]
        assert grad_of(score, a)[0].eq(0).all()


def test_rows_of_no_entries_score_zero():
    a, row = torch.zeros(3, 0, requires_grad=True), torch.ones(3)
    for score in (
        soft_log_prob(a, row, a),
        gumbel_log_density(a, a),
        gumbel_log_density(a, a, epsilon=1e-6, clamp=(-1, 1)),
        latent_grpo_log_density(a, row, a, row),
        exp_concrete_log_density(a, a, 0.3),
        concrete_log_density(a, a, 0.3),
    ):
        assert score.tolist() == [0.0, 0.0, 0.0]
        assert grad_of(score, a)[0].shape == (3, 0)
    assert multiplex_log_probs(a, row).shape == (3, 0)


def test_concrete_density_survives_weights_that_underflow():
    # Gaps of 100 at tau = 0.1: log z is -1000, and z is 0 in every dtype.
    a = torch.tensor([[1.0, 0.0, -1.0]], requires_grad=True)
    q = torch.tensor([[100.0, 0.0, -100.0]])
    score = exp_concrete_log_density(a, q, 0.1)
    assert score.isfinite().all()
    assert grad_of(score, a)[0].isfinite().all()
    expected = 1 - 3 * (a - q)[0].softmax(-1)
    torch.testing.assert_close(grad_of(score, a)[0][0], expected.detach())


def test_densities_take_what_the_draw_stores():
    """End to end: the average of d log p / da over draws of the same policy is 0."""
    logits = torch.tensor([1.5, 0.3, -0.4, -2.0], dtype=torch.float64)
    rows = 20000  # alpha has a standard deviation below 2: four standard errors are 0.06
    sample = sample_latent(logits.expand(rows, 4), tau=0.5, seed=1)
    a = sample.logits.clone().requires_grad_()
    normalised = sample.scores - sample.kept_lse[:, None]
    scores = {
        "exp_concrete": exp_concrete_log_density(a, sample.scores, 0.5),
        "gumbel": 4 * gumbel_log_density(a, normalised, min_log_prob=-INF),
        "latent_grpo": 4 * latent_grpo_log_density(a, sample.lse, normalised, torch.ones(rows)),
    }
    for name, score in scores.items():
        mean = grad_of(score, a)[0].mean(0)
        torch.testing.assert_close(mean, torch.zeros(4).double(), atol=0.06, rtol=0, msg=name)


def test_gaussian_log_density():
    torch.manual_seed(seeded(2))
    embedding = torch.randn(5, 8, dtype=torch.float64, requires_grad=True)
    mean = torch.randn(5, 8, dtype=torch.float64, requires_grad=True)
    score = gaussian_log_density(embedding, mean, 0.33)
    expected = Independent(Normal(mean, 0.33), 1).log_prob(embedding.detach())
    torch.testing.assert_close(score, expected)
    torch.testing.assert_close(grad_of(score, mean)[0], ((embedding - mean) / 0.33**2).detach())
    assert torch.autograd.grad(score.sum(), embedding, allow_unused=True) == (None,)


def named_scores():
    """Every score as a function of (a, lse), on rows of all support sizes."""
    q, weights = drawn(), torch.rand(6, 4, dtype=torch.float64)
    mask = torch.rand(6, 4) < 0.8
    ones = torch.ones(6)
    return {
        "hard": lambda a, lse: hard_log_prob(a[:, 0], lse),
        "soft": lambda a, lse: soft_log_prob(a, lse, weights),
        "multiplex": multiplex_log_probs,
        "gumbel": lambda a, lse: gumbel_log_density(a, q, mask=mask, epsilon=0.01),
        "gumbel_clamped": lambda a, lse: gumbel_log_density(a, q, clamp=(-1.5, 3)),
        # Elsewhere its gradient is not that of its value, on purpose.
        "latent_grpo": lambda a, lse: latent_grpo_log_density(a, lse, q, ones, mask=mask),
        "exp_concrete": lambda a, lse: exp_concrete_log_density(a, q, 0.5, mask=mask),
        "concrete": lambda a, lse: concrete_log_density(a, q, 0.5, mask=mask),
        "gaussian": lambda a, lse: gaussian_log_density(weights, a, 0.5),
    }


@pytest.mark.parametrize("name", named_scores())
def test_gradcheck(name):
    _, _, a, lse = policy()
    a, lse = (x.detach().requires_grad_() for x in (a, lse))
    assert torch.autograd.gradcheck(named_scores()[name], (a, lse))
    assert torch.autograd.gradgradcheck(named_scores()[name], (a, lse))


@pytest.mark.parametrize("name", named_scores())
def test_compiles_whole_and_takes_low_precision(name):
    score = named_scores()[name]
    _, _, a, lse = policy()
    a, lse = a.detach(), lse.detach()
    compiled = torch.compile(score, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(a, lse), score(a, lse))
    low = score(a.bfloat16(), lse.bfloat16())
    assert low.isfinite().all()
    assert low.dtype in (torch.float32, torch.float64)  # never the input's


def test_a_mask_drops_entries():
    _, _, a, lse = policy(2)
    q = drawn(2)
    mask = torch.tensor([[True, False, True, True], [True, True, True, True]])
    pieces = [
        (lambda a, q, m: gumbel_log_density(a, q, mask=m, min_log_prob=-INF)),
        (lambda a, q, m: latent_grpo_log_density(a, lse[:1], q, torch.ones(1), mask=m)),
        (lambda a, q, m: exp_concrete_log_density(a, q, 0.5, mask=m)),
        (lambda a, q, m: concrete_log_density(a, q, 0.5, mask=m)),
    ]
    for function in pieces:
        masked = function(a[:1], q[:1], mask[:1])
        torch.testing.assert_close(masked, function(a[:1, [0, 2, 3]], q[:1, [0, 2, 3]], None))
    # Padding stays padding where the mask says otherwise.
    torch.testing.assert_close(
        exp_concrete_log_density(a, q, 0.5, mask=mask)[1],
        exp_concrete_log_density(a, q, 0.5)[1],
    )


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda a, v: hard_log_prob(a, v), ValueError, r"logits: expected shape \[N\]"),
        (lambda a, v: hard_log_prob(v, a), ValueError, r"lse: expected shape \[2\]"),
        (lambda a, v: multiplex_log_probs(v, v), ValueError, r"logits: expected shape \[N, K\]"),
        (lambda a, v: soft_log_prob(a, v, a[:, :2]), ValueError, r"weights: expected shape"),
        (lambda a, v: soft_log_prob(a, v, a.long()), TypeError, "weights: expected dtype"),
        (lambda a, v: gumbel_log_density(a, a[:, :2]), ValueError, "scores: expected shape"),
        (lambda a, v: gumbel_log_density(a, a, epsilon=-1), ValueError, "epsilon: expected"),
        (lambda a, v: gumbel_log_density(a, a, clamp=(1, 0)), ValueError, r"clamp\[1\]: expected"),
        (lambda a, v: gumbel_log_density(a, a, clamp=3), TypeError, "clamp: expected a pair"),
        (lambda a, v: gumbel_log_density(a, a, min_log_prob=None), TypeError, "min_log_prob: exp"),
        (lambda a, v: gumbel_log_density(a, a, min_log_prob=INF), ValueError, "min_log_prob: exp"),
        (
            lambda a, v: gumbel_log_density(a, a, min_log_prob=math.nan),
            ValueError,
            "min_log_prob: expected",
        ),
        (lambda a, v: gumbel_log_density(a, a, mask=a), TypeError, "mask: expected dtype bool"),
        (lambda a, v: latent_grpo_log_density(a, v, a, v[:1]), ValueError, "advantages: expected"),
        (lambda a, v: exp_concrete_log_density(a, a, 0.0), ValueError, r"tau: expected .* \(0"),
        (lambda a, v: concrete_log_density(a, a, -1.0), ValueError, r"tau: expected .* \(0"),
        (lambda a, v: gaussian_log_density(a, a, 0.0), ValueError, r"sigma: expected .* \(0"),
        (lambda a, v: gaussian_log_density(a[:1], a, 1.0), ValueError, "embedding: expected shape"),
    ],
)
def test_errors_name_the_argument(call, error, message):
    with pytest.raises(error, match=message):
        call(torch.zeros(2, 3), torch.zeros(2))
