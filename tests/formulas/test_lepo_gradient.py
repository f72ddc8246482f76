"""The written-out derivative of the objective against autograd through the objective."""

import math

import pytest
import torch

from lepo_kernels import lepo_objective
from lepo_kernels.formulas.latent_scores import LATENT_SCORES
from lepo_kernels.formulas.lepo_gradient import lepo_gradient
from lepo_kernels.formulas.loss_rows import LossSettings, RowFacts
from lepo_kernels.methods import methods
from tests.seeds import seeded

# Distances of the log-probability from the old one: the same; inside; on the edges of the clipping
# and of the dual clip; outside on either side; beyond what exp is bounded to.
DISTANCES = (0.0, 0.125, 0.25, -0.25, 0.75, 0.5, 2.0, -2.0, 100.0, -800.0)
LOW, HIGH, CAP = torch.tensor([-0.25, 0.25, 0.75], dtype=torch.float64).exp().tolist()
# Both differences are exact.
# Those of the methods are there once these are.
SCORES = sorted({*LATENT_SCORES, *(method.latent_score for method in methods())})
# LEPO's own score, as where none is named.
PUBLISHED = {
    "latent_score": "soft_log_prob",
    "latent_ratio": False,
    "recorded": None,
    "sequences": None,
    "surrogate": "ppo",
    "kl_times_ratio": False,
}
EDGES = {"epsilon": 1 - LOW, "epsilon_high": HIGH - 1, "delta": CAP}


def case(kept):
    """Every distance with advantages of either sign and 0, on discrete and on latent rows."""
    torch.manual_seed(seeded(kept))
    grid = [(d, a, x) for d in DISTANCES for a in (0.7, -1.3, 0.0) for x in (False, True)]
    rows = len(grid)
    latent = torch.tensor([x for _, _, x in grid])
    weights = torch.rand(rows, kept, dtype=torch.float64).softmax(-1)
    weights[~latent] = torch.eye(kept, dtype=torch.float64)[0]
    logits = torch.randn(rows, kept, dtype=torch.float64)
    lse = 5 + torch.rand(rows, dtype=torch.float64)
    # Dyadic numbers, so that the distances are exact.
    logits[:, 0], lse = logits[:, 0].mul(8).round() / 8, lse.mul(8).round() / 8
    if kept > 1:
        weights[::2, -1] = 0
        logits[::4, -1] = -math.inf  # of a padded id
    score = (weights * (logits - lse[:, None])).masked_fill(weights == 0, 0).sum(-1)
    row_weights = torch.rand(rows, dtype=torch.float64)
    row_weights[::7] = 0
    facts = {
        "weights": weights,
        "latent": latent,
        "advantages": torch.tensor([a for _, a, _ in grid], dtype=torch.float64),
        "row_weights": row_weights,
    }
    old = score - torch.tensor([d for d, _, _ in grid], dtype=torch.float64)
    ref = (logits - lse[:, None]).nan_to_num(neginf=-3.0) + torch.randn_like(logits)
    ref[3] += 200  # an exponential beyond what exp is bounded to
    return logits, lse, facts, old, ref


def structured(**options):
    """The keywords of `lepo_objective` as the structures that it makes of them."""
    options = {**PUBLISHED, **options}
    return (
        RowFacts(*(options[name] for name in RowFacts._fields)),
        LossSettings(*(options[name] for name in LossSettings._fields)),
    )


@pytest.mark.parametrize("kept", [1, 4])
@pytest.mark.parametrize("with_old", [False, True])
@pytest.mark.parametrize(
    ("beta", "latent_kl"), [(None, "k3"), (0.0, "k3"), (0.4, "k3"), (0.4, "exact")]
)
@pytest.mark.parametrize("with_delta", [False, True])
def test_it_is_what_autograd_gives(kept, with_old, beta, latent_kl, with_delta):
    logits, lse, facts, old, ref = case(kept)
    settings = {
        **EDGES,
        "old_log_prob": old if with_old else None,
        "ref_log_probs": None if beta is None else ref,
        "beta": beta or 0.0,
        "latent_kl": latent_kl,
        "delta": EDGES["delta"] if with_delta else None,
    }
    leaves = [x.requires_grad_() for x in (logits, lse)]
    expected = torch.autograd.grad(lepo_objective(logits, lse, **facts, **settings).loss, leaves)
    with torch.no_grad():
        ours = lepo_gradient(logits, lse, *structured(**facts, **settings))
    assert expected[0].isfinite().all()
    for x, y in zip(ours, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-12)


def noisy(logits, lse, kept):
    """Scores as a rollout records them, far above and below the policy's; some rows are short."""
    recorded = (logits - lse[:, None]).detach().nan_to_num(neginf=-3.0)
    recorded = recorded + torch.randn_like(recorded) * 2
    if kept > 1:
        recorded[::3, -1] = -math.inf
    return recorded


@pytest.mark.parametrize("kept", [1, 4])
@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("latent_ratio", [False, True])
@pytest.mark.parametrize("surrogate", ["ppo", "cispo"])
@pytest.mark.parametrize(
    ("beta", "latent_kl", "kl_times_ratio"),
    [(0.0, "k3", False), (0.4, "exact", True), (0.4, "score", False), (0.4, "k3", True)],
)
def test_of_every_latent_score_it_is_what_autograd_gives(
    kept, score, latent_ratio, surrogate, beta, latent_kl, kl_times_ratio
):
    logits, lse, facts, old, ref = case(kept)
    facts["recorded"] = noisy(logits, lse, kept)
    if LATENT_SCORES[score].slots:
        old = old[:, None] + torch.randn(len(old), kept, dtype=torch.float64) / 2
    # A reference that is near: the exponential of what a density differs by is huge elsewhere.
    ref = (logits - lse[:, None]).nan_to_num(neginf=-3.0) + torch.randn_like(logits) / 4
    settings = {
        **EDGES,
        "old_log_prob": old,
        "ref_log_probs": ref,
        "beta": beta,
        "latent_kl": latent_kl,
        "delta": EDGES["delta"],
        "latent_score": score,
        "latent_ratio": latent_ratio,
        "surrogate": surrogate,
        "kl_times_ratio": kl_times_ratio,
    }
    leaves = [x.requires_grad_() for x in (logits, lse)]
    expected = torch.autograd.grad(lepo_objective(logits, lse, **facts, **settings).loss, leaves)
    with torch.no_grad():
        ours = lepo_gradient(logits, lse, *structured(**facts, **settings))
    assert expected[0].isfinite().all()
    for x, y in zip(ours, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-10, atol=1e-10)


def corner(distance, advantage, beyond=0.0, with_delta=False):
    """One discrete row whose ratio is on an edge, which is moved inwards by ``beyond``.

    Returns the ratio, the derivatives of the loss by the logit, from autograd and written out, and
    what the row is said to be clipped by.
    """
    logits = torch.tensor([[-1.0]], dtype=torch.float64, requires_grad=True)
    lse = torch.zeros(1, dtype=torch.float64)
    facts = {
        "weights": torch.ones(1, 1, dtype=torch.float64),
        "latent": torch.tensor([False]),
        "advantages": torch.tensor([advantage], dtype=torch.float64),
        "row_weights": torch.ones(1, dtype=torch.float64),
    }
    old = torch.tensor([-1.0 - distance], dtype=torch.float64)
    # By the very operation that makes the ratio; 1 - rho and rho - 1 are exact from 1/2 to 2.
    ratio = float((torch.full((1,), -1.0, dtype=torch.float64) - old).exp())
    settings = {"epsilon": 0.125, "epsilon_high": 0.125, "delta": None}
    if with_delta:
        settings["delta"] = ratio - beyond
    elif distance > 0:
        settings["epsilon_high"] = ratio - 1 - beyond
    else:
        settings["epsilon"] = 1 - ratio - beyond
    settings |= {"old_log_prob": old, "ref_log_probs": None, "beta": 0.0, "latent_kl": "k3"}
    result = lepo_objective(logits, lse, **facts, **settings)
    (by_autograd,) = torch.autograd.grad(result.loss, logits)
    written_out, _ = lepo_gradient(logits.detach(), lse, *structured(**facts, **settings))
    return ratio, float(by_autograd), float(written_out), int(result.clipped)


# The corners of the loss: the upper edge for A > 0, the lower one and the dual clip for A < 0.
@pytest.mark.parametrize(
    ("distance", "advantage", "with_delta"),
    [(0.25, 0.7, False), (-0.25, -1.3, False), (0.75, -1.3, True)],
)
def test_at_a_corner_the_derivative_is_the_inner_one(distance, advantage, with_delta):
    ratio, *derivatives, clipped = corner(distance, advantage, with_delta=with_delta)
    assert derivatives == [pytest.approx(-advantage * ratio, rel=1e-15)] * 2
    assert clipped == 0
    # A step of 2^-40 beyond, and the loss stands still.
    _, *derivatives, clipped = corner(distance, advantage, 2.0**-40, with_delta)
    assert derivatives == [0.0, 0.0]
    assert clipped == (0 if with_delta else math.copysign(1, distance))


# Where the other branch is the smaller one the loss has no corner, at the edge or beyond it.
@pytest.mark.parametrize("beyond", [0.0, 2.0**-40])
@pytest.mark.parametrize(("distance", "advantage"), [(0.25, -1.3), (-0.25, 0.7)])
def test_an_edge_that_pulls_back_is_no_corner(distance, advantage, beyond):
    ratio, *derivatives, clipped = corner(distance, advantage, beyond)
    assert derivatives == [pytest.approx(-advantage * ratio, rel=1e-15)] * 2
    assert clipped == 0


def test_branches_that_round_to_the_same_product_do_not_tie():
    # The ratio is beyond its edge by one unit, so its row is clipped, though for many A the
    # products rho A and clip(rho) A are rounded to the same number.
    for advantage in torch.linspace(0.5, 1, 65, dtype=torch.float64).tolist():
        _, *derivatives, clipped = corner(0.25, advantage, 2.0**-52)
        assert derivatives == [0.0, 0.0]
        assert clipped == 1
