"""The written-out derivative of the objective against autograd through the objective."""

import math

import pytest
import torch

from lepo_kernels import lepo_objective
from lepo_kernels.formulas.lepo_gradient import lepo_gradient

# Distances of the log-probability from the old one: the same; inside; on the edges of the clipping
# and of the dual clip; outside on either side; beyond what exp is bounded to.
DISTANCES = (0.0, 0.125, 0.25, -0.25, 0.75, 0.5, 2.0, -2.0, 100.0, -800.0)
LOW, HIGH, CAP = torch.tensor([-0.25, 0.25, 0.75], dtype=torch.float64).exp().tolist()
# Both differences are exact.
EDGES = {"epsilon": 1 - LOW, "epsilon_high": HIGH - 1, "delta": CAP}


def case(kept):
    """Every distance with advantages of either sign and 0, on discrete and on latent rows."""
    torch.manual_seed(kept)
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
        ours = lepo_gradient(logits, lse, **facts, **settings)
    assert expected[0].isfinite().all()
    for x, y in zip(ours, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-12)
