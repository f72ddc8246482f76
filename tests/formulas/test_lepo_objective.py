"""LEPO's objective on numbers that show what it does with a row."""

import math
from fractions import Fraction

import pytest
import torch

from lepo_kernels import lepo_objective


def objective(logits, lse, **changes):
    settings = {
        "weights": torch.tensor([[1.0, 0.0]] * 3),
        "latent": torch.tensor([False, False, True]),
        "advantages": torch.tensor([1.0, -1.0, 1.0]),
        "row_weights": torch.ones(3),
        **changes,
    }
    return lepo_objective(logits, lse, **settings)


LOGITS = torch.tensor([[-1.0, -2.0], [-1.0, -2.0], [-0.5, -1.5]])
LSE = torch.zeros(3)


def test_clipping_acts_on_either_side_and_stops_the_gradient():
    logits = LOGITS.clone().requires_grad_()
    # Ratios e and 1/e: the first is clipped from above (A > 0), the second from below (A < 0).
    result = objective(logits, LSE, old_log_prob=torch.tensor([-2.0, 0.0, 5.0]))
    assert result.clipped.tolist() == [1, -1, 0]
    result.loss.backward()
    assert logits.grad[:2].abs().max() == 0
    assert logits.grad[2].abs().max() > 0


def test_each_side_is_clipped_to_its_own_range():
    result = objective(
        LOGITS,
        LSE,
        old_log_prob=torch.tensor([-2.0, 0.0, 5.0]),
        row_weights=torch.tensor([1.0, 10.0, 0.0]),
        epsilon=0.1,
        epsilon_high=0.3,
    )
    # Ratios e and 1/e with advantages 1 and -1: -(1 + 0.3) and 10 (1 - 0.1).
    assert float(result.loss) == pytest.approx(-1.3 + 10 * 0.9)


def test_a_row_left_out_adds_nothing_even_if_its_score_is_infinite():
    logits = LOGITS.clone()
    logits[1, 0] = float("-inf")
    logits.requires_grad_()
    result = objective(logits, LSE, row_weights=torch.tensor([1.0, 0.0, 1.0]))
    result.loss.backward()
    assert torch.isfinite(result.loss)
    assert logits.grad[1].tolist() == [0.0, 0.0]


def one_row(logit, latent, **changes):
    """A single row of one id; its loss and the gradient of its logit."""
    logits = torch.tensor([[logit]], requires_grad=True)
    result = lepo_objective(
        logits,
        torch.zeros(1),
        torch.ones(1, 1),
        torch.tensor([latent]),
        torch.tensor([changes.pop("advantage", 1.0)]),
        torch.ones(1),
        **changes,
    )
    result.loss.backward()
    return float(result.loss.detach()), float(logits.grad), result


@pytest.mark.parametrize(("advantage", "delta", "loss"), [(1.0, None, -1.2), (-1.0, 3.0, 3.0)])
def test_a_ratio_beyond_float32_is_clipped_without_nan(advantage, delta, loss):
    old = torch.tensor([-100.0])
    got = one_row(-1.0, False, advantage=advantage, delta=delta, old_log_prob=old)
    assert got[:2] == (pytest.approx(loss), 0.0)


def test_exact_kl_of_far_apart_policies_has_a_finite_gradient():
    logits = torch.tensor([[-1.0, -100.0]], requires_grad=True)
    result = lepo_objective(
        logits,
        torch.zeros(1),
        torch.full((1, 2), 0.5),
        torch.tensor([True]),
        torch.ones(1),
        torch.ones(1),
        ref_log_probs=torch.full((1, 2), -1.0),
        beta=0.1,
        latent_kl="exact",
    )
    result.loss.backward()
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("ref", [float("-inf"), 200.0])  # infinite KL; exp() overflows
def test_kl_as_a_metric_alone_does_not_touch_the_loss(ref):
    loss, gradient, result = one_row(-1.0, True, ref_log_probs=torch.tensor([[ref]]))
    assert (loss, gradient) == (1.0, -1.0)
    assert float(result.kl) > 1e3


def test_only_logits_and_lse_have_a_gradient():
    inputs = {
        "weights": torch.tensor([[0.5, 0.5]] * 3),
        "advantages": torch.tensor([1.0, -1.0, 1.0]),
        "row_weights": torch.ones(3),
        "old_log_prob": torch.full((3,), -1.5),
        "ref_log_probs": torch.full((3, 2), -1.0),
    }
    for tensor in inputs.values():
        tensor.requires_grad_()
    logits = LOGITS.clone().requires_grad_()
    objective(logits, LSE, beta=0.1, **inputs).loss.backward()
    assert logits.grad.abs().min() > 0
    assert all(tensor.grad is None for tensor in inputs.values())


def test_metrics_are_those_of_the_formulas():
    result = objective(
        LOGITS,
        LSE,
        # The ratio leaves the range on the side where its advantage wants it back: not clipped.
        old_log_prob=torch.tensor([0.0, -2.0, 5.0]),
        ref_log_probs=torch.tensor([[-1.5, 0.0], [-1.0, 0.0], [-0.5, 0.0]]),
    )
    assert result.log_prob.tolist() == [-1.0, -1.0, -0.5]
    assert result.ratio.tolist() == pytest.approx([math.exp(-1), math.e, 1.0])
    assert result.clipped.tolist() == [0, 0, 0]
    assert result.kl.tolist() == pytest.approx([math.exp(-0.5) - 0.5, 0.0, 0.0], abs=1e-6)


def test_metrics_of_a_row_left_out_say_nothing():
    lse = torch.tensor([0.0, float("inf"), 0.0], requires_grad=True)
    result = objective(
        LOGITS,
        lse,
        row_weights=torch.tensor([0.0, 0.0, 1.0]),
        old_log_prob=torch.tensor([-3.0, -3.0, 0.0]),
        ref_log_probs=torch.zeros(3, 2),
    )
    result.loss.backward()
    assert result.ratio.tolist() == [1.0, 1.0, 1.0]
    assert result.clipped.tolist() == [0, 0, 0]
    assert result.log_prob[:2].tolist() == result.kl[:2].tolist() == [0.0, 0.0]
    assert lse.grad.tolist() == [0.0, 0.0, 1.0]


def test_a_row_of_advantage_0_is_left_out_unless_its_kl_is_asked_for():
    logits = LOGITS.clone()
    logits[1, 0] = float("-inf")
    logits.requires_grad_()
    settings = {
        "advantages": torch.tensor([1.0, 0.0, 1.0]),
        "old_log_prob": torch.tensor([-1.5, -3.0, 0.0]),
    }
    result = objective(logits, LSE, **settings)
    result.loss.backward()
    assert torch.isfinite(result.loss)
    assert logits.grad[1].tolist() == [0.0, 0.0]
    assert [float(x[1]) for x in result[1:]] == [0.0, 0.0, 1.0, 0.0]
    ref = torch.full((3, 2), -2.0)
    used = objective(LOGITS, LSE, ref_log_probs=ref, **settings)
    assert float(used.log_prob[1]) == -1.0
    assert float(used.kl[1]) == pytest.approx(math.exp(-1))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"weights": torch.ones(3, 3)}, ValueError, r"weights: expected shape \[3, 2\]"),
        ({"latent": torch.zeros(3)}, TypeError, "latent: expected dtype bool"),
        ({"advantages": torch.zeros(2)}, ValueError, "advantages: expected shape"),
        ({"row_weights": torch.zeros(3, dtype=torch.int64)}, TypeError, "row_weights"),
        ({"old_log_prob": torch.zeros(4)}, ValueError, "old_log_prob"),
        ({"ref_log_probs": torch.zeros(3, 1)}, ValueError, "ref_log_probs"),
        ({"beta": 0.1}, ValueError, "ref_log_probs: needed when beta is not 0"),
        ({"beta": -1.0}, ValueError, "beta: expected a number in"),
        ({"epsilon": 0.0}, ValueError, "epsilon: expected a number in"),
        ({"delta": 1.2}, ValueError, "delta: expected a number in"),
        ({"latent_kl": "k2"}, ValueError, "latent_kl: expected one of"),
    ],
)
def test_bad_arguments_are_named(changes, error, message):
    with pytest.raises(error, match=message):
        objective(LOGITS, LSE, **changes)


def test_any_kind_of_number_will_do():
    numbers = {"beta": 0.5, "epsilon": 0.25, "epsilon_high": 0.5, "delta": 1.75}
    tensors = {"old_log_prob": torch.tensor([-2.0, 0.0, 5.0]), "ref_log_probs": LOGITS - 1}
    fractions = {name: Fraction(value) for name, value in numbers.items()}
    expected = objective(LOGITS, LSE, **tensors, **numbers).loss
    assert objective(LOGITS, LSE, **tensors, **fractions).loss == expected
    with pytest.raises(ValueError, match=r"delta: expected a number in \(1.5, inf\), got 1"):
        objective(LOGITS, LSE, **tensors, **(fractions | {"delta": Fraction(1)}))
