"""LEPO's loss against a transcription of its formulas in plain Python numbers, row by row."""

import math

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from lepo_kernels import lepo_loss
from tests.seeds import seeded
from tests.tolerances import assert_no_worse_than_plain

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
    """The loss as an expression of dense log-softmaxes, one row at a time, and its magnitude."""
    total, size = 0.0, 0.0
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
        term = float(ROW_WEIGHTS[n]) * (loss + beta * kl)
        total = total + term
        # Log-probabilities are off by their logits' errors, ratios by as much relative to them.
        logits = inv_temperature * (case["head"].abs() @ case["hidden"][n].abs()).max().detach()
        slope = float(ROW_WEIGHTS[n]) * (abs(advantage) + beta)
        size = size + term.detach().abs() + (slope + term.detach().abs()) * logits
    return total, size


@pytest.mark.parametrize("off_policy", [False, True])
@pytest.mark.parametrize(("beta", "latent_kl"), [(0.0, "k3"), (0.5, "k3"), (0.5, "exact")])
@pytest.mark.parametrize("delta", [None, 1.5])
@pytest.mark.parametrize("inv_temperature", [1.0, 0.7])
def test_loss_and_gradient_equal_the_formulas(
    case, off_policy, beta, latent_kl, delta, inv_temperature, backend
):
    dtype = torch.float64 if backend == "reference" else torch.float32
    hidden, head = (case[x].detach().to(dtype).requires_grad_() for x in ("hidden", "head"))
    # Narrow, unequal ranges: some rows are clipped from either side.
    options = {
        "off_policy": off_policy,
        "beta": beta,
        "latent_kl": latent_kl,
        "inv_temperature": inv_temperature,
        "eps": 0.05,
        "eps_high": 0.1,
        "delta": delta,
    }
    expected, size = transcribed(case, **options)
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
    results = (result.loss, *got), (expected.detach(), *wanted)
    if dtype == torch.float64:
        for one, other in zip(*results, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
    else:
        rounded = [case[x].detach().float().requires_grad_() for x in ("hidden", "head")]
        plain, _ = transcribed(case | {"hidden": rounded[0], "head": rounded[1]}, **options)
        plain_results = (plain, *torch.autograd.grad(plain, rounded))
        for one, same, other, terms in zip(
            results[0], plain_results, results[1], (size, None, None), strict=True
        ):
            assert_no_worse_than_plain(one, same, other, torch.float32, V, terms)
    if off_policy and inv_temperature == 1.0:  # what the old log-probs are of
        assert result.clipped[[1, 4]].tolist() == [-1, 1]
    assert not result.clipped[LATENT].any()


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
