"""LEPO's loss against a transcription of its formulas in plain Python numbers, row by row."""

import math
from fractions import Fraction

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from lepo_kernels import lepo_loss, lepo_objective
from tests.seeds import seeded

# 6 rows: latent and discrete in turn, so that a mix-up of the two shows. 3 ids per row, the last of
# them padding on some rows; 11 ids in the vocabulary; 5 dimensions.
N, K, V, D = 6, 3, 11, 5
LATENT = torch.tensor([True, False, True, False, False, True])
ADVANTAGES = torch.tensor([0.7, -1.3, -0.4, 0.9, 2.0, 0.0], dtype=torch.float64)
ROW_WEIGHTS = torch.tensor([0.1, 0.2, 0.3, 0.0, 0.15, 0.25], dtype=torch.float64)


@pytest.fixture
def case():
    generator = torch.Generator().manual_seed(seeded(3))

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    ids = torch.stack([torch.randperm(V, generator=generator)[:K] for _ in range(N)])
    weights = torch.softmax(draw(N, K), -1)
    weights[2] = torch.tensor([0.25, 0.75, 0.0])
    weights[~LATENT] = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    hidden, head = draw(N, D), draw(V, D)
    current = torch.log_softmax(hidden @ head.T, -1)
    old = torch.log_softmax(hidden @ head.T + 0.3 * draw(N, V), -1)
    # Clipped from below, as A < 0, and from above, whatever is drawn.
    old[1], old[4] = current[1] + 0.3, current[4] - 0.3
    ref = torch.log_softmax(hidden @ head.T + 0.3 * draw(N, V), -1)
    return {
        "hidden": hidden.requires_grad_(),
        "head": head.requires_grad_(),
        "ids": ids,
        "weights": weights,
        "old": (old.gather(1, ids) * weights).sum(-1),
        "ref": ref.gather(1, ids),
    }


def transcribed(case, *, off_policy, beta, latent_kl, eps, eps_high, delta, inv_temperature):
    """The loss as an expression of dense log-softmaxes, one row at a time."""
    total = 0.0
    for n in range(N):
        log_pi = torch.log_softmax(inv_temperature * (case["head"] @ case["hidden"][n]), -1)
        kept = [k for k in range(K) if case["weights"][n, k] != 0]
        w = [float(case["weights"][n, k]) for k in kept]
        lp = [log_pi[case["ids"][n, k]] for k in kept]
        ref = [float(case["ref"][n, k]) for k in kept]
        advantage = float(ADVANTAGES[n])
        score = sum(wk * lk for wk, lk in zip(w, lp, strict=True))
        if LATENT[n]:
            loss = -advantage * score
        else:
            old = float(case["old"][n]) if off_policy else float(score.detach())
            rho = torch.exp(score - old)
            first = rho if delta is None else torch.clamp(rho, max=delta)
            second = torch.clamp(rho, 1 - eps, 1 + eps_high)
            loss = -torch.minimum(first * advantage, second * advantage)
        k3 = sum(
            wk * (torch.exp(rk - lk) - (rk - lk) - 1) for wk, rk, lk in zip(w, ref, lp, strict=True)
        )
        if LATENT[n] and latent_kl == "exact":
            mass = sum(torch.exp(lk) for lk in lp)
            ref_mass = sum(math.exp(rk) for rk in ref)
            kl = sum(
                torch.exp(lk) / mass * (lk - torch.log(mass) - rk + math.log(ref_mass))
                for lk, rk in zip(lp, ref, strict=True)
            )
        else:
            kl = k3
        total = total + float(ROW_WEIGHTS[n]) * (loss + beta * kl)
    return total


@pytest.mark.parametrize("off_policy", [False, True])
@pytest.mark.parametrize(("beta", "latent_kl"), [(0.0, "k3"), (0.5, "k3"), (0.5, "exact")])
@pytest.mark.parametrize("delta", [None, 1.5])
@pytest.mark.parametrize("inv_temperature", [1.0, 0.7])
def test_loss_and_gradient_equal_the_formulas(
    case, off_policy, beta, latent_kl, delta, inv_temperature, backend
):
    # Losses and gradients are near 1; float32 knows the old log-probs to 1e-7.
    dtype, slack = (torch.float64, 1e-12) if backend == "reference" else (torch.float32, 3e-6)
    hidden, head = (case[x].detach().to(dtype).requires_grad_() for x in ("hidden", "head"))
    # Narrow, unequal ranges: some rows are clipped from either side.
    options = {"eps": 0.05, "eps_high": 0.1, "delta": delta}
    expected = transcribed(
        case,
        off_policy=off_policy,
        beta=beta,
        latent_kl=latent_kl,
        inv_temperature=inv_temperature,
        **options,
    )
    wanted = torch.autograd.grad(expected, (case["hidden"], case["head"]))
    result = lepo_loss(
        hidden,
        head,
        case["ids"],
        case["weights"],
        LATENT,
        ADVANTAGES,
        ROW_WEIGHTS,
        old_log_prob=case["old"] if off_policy else None,
        ref_log_probs=case["ref"] if beta else None,
        beta=beta,
        epsilon=0.05,
        epsilon_high=0.1,
        delta=delta,
        latent_kl=latent_kl,
        inv_temperature=inv_temperature,
    )
    got = torch.autograd.grad(result.loss, (hidden, head))
    for one, other in zip((result.loss, *got), (expected.detach(), *wanted), strict=True):
        torch.testing.assert_close(one.double(), other, rtol=0, atol=slack)
    if off_policy and inv_temperature == 1.0:  # what the old log-probs are of
        assert result.clipped[[1, 4]].tolist() == [-1, 1]
    assert not result.clipped[LATENT].any()


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


def test_tau_to_zero_with_only_latent_steps_gives_grpos_gradient(case):
    # A one-hot mixture at every step is a sampled token at every step, on-policy.
    one_hot = torch.zeros(N, K, dtype=torch.float64)
    one_hot[:, 0] = 1
    gradients = []
    for latent in (torch.ones(N, dtype=torch.bool), torch.zeros(N, dtype=torch.bool)):
        loss = lepo_loss(
            case["hidden"], case["head"], case["ids"], one_hot, latent, ADVANTAGES, ROW_WEIGHTS
        ).loss
        gradients.append(torch.autograd.grad(loss, (case["hidden"], case["head"])))
    for soft, hard in zip(*gradients, strict=True):
        torch.testing.assert_close(soft, hard, rtol=0, atol=1e-13)


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


def test_gradcheck_of_hidden_head_and_bias(case):
    bias = torch.linspace(-1, 1, V, dtype=torch.float64, requires_grad=True)

    def loss(hidden, head, bias):
        return lepo_loss(
            hidden,
            head,
            case["ids"],
            case["weights"],
            LATENT,
            ADVANTAGES,
            ROW_WEIGHTS,
            # Far from the clipping's edges, where the loss has no derivative.
            old_log_prob=case["old"],
            ref_log_probs=case["ref"],
            beta=0.3,
            epsilon=0.9,
            epsilon_high=50.0,
            latent_kl="exact",
            bias=bias,
            softcap=5.0,
            inv_temperature=0.7,
        ).loss

    assert torch.autograd.gradcheck(loss, (case["hidden"], case["head"], bias))


def test_it_compiles_without_a_graph_break(case):
    def loss(hidden, head):
        return lepo_loss(
            hidden,
            head,
            case["ids"],
            case["weights"],
            LATENT,
            ADVANTAGES,
            ROW_WEIGHTS,
            old_log_prob=case["old"],
            ref_log_probs=case["ref"],
            beta=0.3,
        ).loss

    gradients = []
    for function in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        value = function(case["hidden"], case["head"])
        gradients.append((value, *torch.autograd.grad(value, (case["hidden"], case["head"]))))
    for eager, compiled in zip(*gradients, strict=True):
        torch.testing.assert_close(eager, compiled, rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("backend")
def test_fake_tensors_know_the_shapes():
    with FakeTensorMode():
        result = lepo_loss(
            torch.empty(N, D),
            torch.empty(V, D),
            torch.empty(N, K, dtype=torch.int64),
            torch.empty(N, K),
            torch.empty(N, dtype=torch.bool),
            torch.empty(N),
            torch.empty(N),
        )
    assert result.loss.shape == ()
    assert {tensor.shape for tensor in result[1:]} == {(N,)}


def test_any_kind_of_number_will_do():
    numbers = {"beta": 0.5, "epsilon": 0.25, "epsilon_high": 0.5, "delta": 1.75}
    tensors = {"old_log_prob": torch.tensor([-2.0, 0.0, 5.0]), "ref_log_probs": LOGITS - 1}
    fractions = {name: Fraction(value) for name, value in numbers.items()}
    expected = objective(LOGITS, LSE, **tensors, **numbers).loss
    assert objective(LOGITS, LSE, **tensors, **fractions).loss == expected
    with pytest.raises(ValueError, match=r"delta: expected a number in \(1.5, inf\), got 1"):
        objective(LOGITS, LSE, **tensors, **(fractions | {"delta": Fraction(1)}))
