"""Bounds whose derivative at an edge is that of the inside, whatever torch's own has."""

import math

import pytest
import torch

from lepo_kernels.formulas.kinks import clip
from lepo_kernels.formulas.ratios import LARGEST_EXPONENT, ratio_of
from lepo_kernels.formulas.scores import gumbel_log_density

LOW, HIGH = -0.5, 1.25
OUTSIDE = (-math.inf, -0.75, 1.5, math.inf)
INSIDE = (LOW, 0.0, 1.0, HIGH)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_edge_belongs_to_the_inside(dtype):
    x = torch.tensor(OUTSIDE + INSIDE, dtype=dtype, requires_grad=True)
    bounded = clip(x, LOW, HIGH)
    assert torch.equal(bounded, x.clamp(LOW, HIGH))
    (slope,) = torch.autograd.grad(bounded.sum(), x)
    assert slope.tolist() == [0.0] * len(OUTSIDE) + [1.0] * len(INSIDE)


def test_a_bound_may_be_left_out_and_nan_stays():
    x = torch.tensor([-1e30, 1e30, math.nan])
    assert clip(x).tolist()[:2] == x.tolist()[:2]
    assert clip(x, high=0.0).tolist()[:2] == [x[0].item(), 0.0]
    assert clip(x, low=0.0).tolist()[:2] == [0.0, x[1].item()]
    assert clip(x, -1.0, 1.0)[2].isnan()


def test_a_ratio_moves_up_to_the_largest_exponent_and_not_beyond():
    over = math.nextafter(LARGEST_EXPONENT, math.inf)
    log_prob = torch.tensor([LARGEST_EXPONENT, over], dtype=torch.float64, requires_grad=True)
    ratio = ratio_of(log_prob, torch.zeros_like(log_prob), torch.tensor([True, True]))
    (slope,) = torch.autograd.grad(ratio.sum(), log_prob)
    assert slope.tolist() == [float(ratio.detach()[0]), 0.0]


# Of two even entries, d = score + log 2: exactly on an edge, and just outside of it.
@pytest.mark.parametrize(("beside", "moves"), [(0.0, True), (2.0**-40, False)])
@pytest.mark.parametrize("side", ["low", "high"])
def test_a_clamped_gumbel_density_moves_at_its_edges(side, beside, moves):
    logits = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
    scores = torch.tensor([[0.5, 5.0]], dtype=torch.float64)
    edge = float((scores - logits.detach().log_softmax(-1))[0, 0])
    clamp = (edge + beside, 3.0) if side == "low" else (-3.0, edge - beside)
    (slope,) = torch.autograd.grad(gumbel_log_density(logits, scores, clamp=clamp).sum(), logits)
    assert bool(slope.ne(0).any()) == moves
