"""The fused loss against what it fuses: selected log-probabilities, then the objective."""

import gc
import math
import warnings

import pytest
import torch

import lepo_kernels
from lepo_kernels import dispatch, lepo_loss, lepo_objective, linear_log_probs
from lepo_kernels.backends.cpu import lepo_loss as cpu_kernel
from lepo_kernels.backends.gpu import loss_blocks
from lepo_kernels.formulas.latent_scores import LATENT_SCORES, ScoredRows
from lepo_kernels.formulas.ratios import score_of
from lepo_kernels.methods import methods
from tests.ops.helpers import (
    LOW_DTYPES,
    LargestTensor,
    transposed,
)
from tests.seeds import seeded
from tests.tolerances import assert_no_worse_than_plain, rounding, sum_error

pytestmark = [
    pytest.mark.usefixtures("backend"),
    pytest.mark.parametrize("backend", dispatch.KERNELS["lepo_loss"][1], indirect=True),
]

# 10 rows in blocks of 4, 4 and 2, or 4, 3 and 3; the vocabulary is one part of the head and a
# ragged one.
N, D, PART = 10, 6, 1024
V = PART + 37


@pytest.fixture
def _small_blocks(monkeypatch):
    monkeypatch.setattr(cpu_kernel, "_BLOCK_BYTES", 4 * 4 * V)
    monkeypatch.setattr(cpu_kernel, "_LEAST_ROWS", 1)
    monkeypatch.setattr(cpu_kernel, "_COLUMNS", dict.fromkeys(cpu_kernel._COLUMNS, PART))
    monkeypatch.setattr(loss_blocks, "sizes", lambda *shape: loss_blocks.Sizes(4, 4))


@pytest.fixture
def _same_products(backend, monkeypatch):
    # Both are made of torch's products then. Triton's own, of tiles, add up in another order; that
    # both strategies agree with the reference is tested where they are.
    if backend == "triton":
        from lepo_kernels.backends.triton.head import strategies

        monkeypatch.setattr(strategies, "choice", lambda *shape: "chunks")


def make(kept=4, dtype=torch.float32, seed=0):
    torch.manual_seed(seeded(seed))
    leaves = [torch.randn(N, D), torch.randn(V, D), torch.randn(V)]
    leaves = [x.to(dtype).requires_grad_() for x in leaves]
    latent = torch.arange(N) % 3 != 1
    weights = torch.rand(N, kept).softmax(-1)
    weights[~latent] = torch.eye(kept)[0]
    weights[0, -1] = weights[0, -1] if kept == 1 else 0  # padding
    ids = torch.randint(0, V, (N, kept))
    ids[3], ids[4, 0] = ids[3, 0], V - 1  # duplicates; the last id
    advantages = torch.randn(N)
    advantages[2] = 0
    row_weights = torch.rand(N)
    row_weights[[5, 8]] = 0
    return leaves, (ids, weights, latent, advantages, row_weights)


def off_policy(rows, kept):
    return {"old_log_prob": -7 + torch.randn(rows)}, {"ref_log_probs": -7 + torch.randn(rows, kept)}


def composed(hidden, lm_head, ids, *facts, bias=None, softcap=None, inv_temperature=1.0, **rest):
    scored = linear_log_probs(
        hidden, lm_head, ids, bias=bias, softcap=softcap, inv_temperature=inv_temperature
    )
    return lepo_objective(scored.logits, scored.lse, *facts, **rest)


def run(function, leaves, facts, with_bias, **options):
    """The fields of the loss and all gradients, the upstream gradient not being 1."""
    hidden, lm_head, bias = leaves
    trained = leaves if with_bias else leaves[:2]
    result = function(hidden, lm_head, *facts, bias=bias if with_bias else None, **options)
    return *result, *torch.autograd.grad(1.7 * result.loss, trained)


def assert_agrees(kept, with_old, beta, latent_kl, delta, with_head_options):
    leaves, facts = make(kept)
    old, ref = off_policy(N, kept)
    options = {"delta": delta, "latent_kl": latent_kl, "epsilon": 0.1, "epsilon_high": 0.2}
    options |= old if with_old else {}
    # None: no reference; 0: the KL is a metric alone.
    options |= {} if beta is None else {"beta": beta, **ref}
    if with_head_options:
        options |= {"softcap": 4.0, "inv_temperature": torch.rand(N) + 0.5}
    compare(leaves, facts, options, with_head_options)


def compare(leaves, facts, options, with_bias):
    """The fused loss and its gradients are as near to float64 as what it fuses."""
    beta = options.get("beta")
    ours = run(lepo_loss, leaves, facts, with_bias, **options)
    expected = run(composed, leaves, facts, with_bias, **options)
    wide = [x.detach().double().requires_grad_() for x in leaves]
    with lepo_kernels.backend("reference"):
        oracle = run(composed, wide, facts, with_bias, **options)
    assert [x.dtype for x in ours] == [x.dtype for x in expected]
    loss, log_prob, kl, ratio, clipped = oracle[:5]
    assert torch.equal(ours[4], clipped)
    # The loss is a sum over rows that cancels; all else is about as large as its terms.
    scores = facts[3].abs() * torch.maximum(ratio, log_prob.abs()) + (beta or 0) * kl
    sizes = [(facts[4] * scores).sum().reshape(loss.shape), *[None] * (len(oracle) - 1)]
    for place in (0, 1, 2, 3, *range(5, len(oracle))):
        parts = (x[place] for x in (ours, expected, oracle))
        assert_no_worse_than_plain(*parts, torch.float32, V, sizes[place])


# What each of a method's scores may make of a latent row: with a ratio and a KL of scores, and as
# LEPO has it; duplicates and padding included.
@pytest.mark.usefixtures("_small_blocks", "_same_products")
@pytest.mark.parametrize(
    "score", sorted({*LATENT_SCORES, *(method.latent_score for method in methods())})
)
@pytest.mark.parametrize("latent_ratio", [False, True])
def test_it_serves_every_latent_score(score, latent_ratio):
    leaves, facts = make()
    ids, weights, latent, *_ = facts
    with torch.no_grad():
        scored = linear_log_probs(*leaves[:2], ids)
    log_probs = scored.logits - scored.lse[:, None]
    # As noise that is clamped to (-1.5, 3) leaves them.
    recorded = log_probs + 4.5 * torch.rand(N, 4) - 1.5
    recorded[0, -1], recorded[~latent] = -math.inf, -math.inf
    rows = ScoredRows(weights, recorded, torch.zeros(N))
    log_prob = (weights * log_probs).sum(-1)
    old = score_of(score, log_prob, scored.logits, scored.lse, latent, rows)
    options = {
        "latent_score": score,
        "latent_ratio": latent_ratio,
        "recorded": recorded,
        "old_log_prob": old + torch.randn_like(old) / 8,
        "ref_log_probs": log_probs + torch.randn(N, 4) / 8,
        "beta": 0.3,
        "latent_kl": "score",
        "delta": 1.5,
    }
    compare(leaves, facts, options, False)


@pytest.mark.large
@pytest.mark.usefixtures("_small_blocks", "_same_products")
@pytest.mark.parametrize("kept", [1, 4])
@pytest.mark.parametrize("with_old", [False, True])
@pytest.mark.parametrize(
    ("beta", "latent_kl"), [(None, "k3"), (0.0, "k3"), (0.4, "k3"), (0.4, "exact")]
)
@pytest.mark.parametrize("delta", [None, 1.5])
@pytest.mark.parametrize("with_head_options", [False, True])
def test_it_agrees_with_what_it_fuses(kept, with_old, beta, latent_kl, delta, with_head_options):
    assert_agrees(kept, with_old, beta, latent_kl, delta, with_head_options)


# The least that the loss and the head may have; and all that both may have.
@pytest.mark.usefixtures("_small_blocks")
@pytest.mark.parametrize(
    "options", [(1, False, None, "k3", None, False), (4, True, 0.4, "exact", 1.5, True)]
)
def test_it_agrees_with_few_and_with_all_options(options):
    assert_agrees(*options)


@pytest.mark.usefixtures("_small_blocks")
@pytest.mark.parametrize("dtype", LOW_DTYPES)
def test_error_is_no_worse_than_plain_torch(dtype):
    leaves, facts = make(dtype=dtype)
    with torch.no_grad():
        leaves[1].div_(4)  # a log-sum-exp below 8, which float32 knows to 2.5e-7

    def plain(hidden, lm_head, ids, *facts, bias):
        logits = hidden @ lm_head.T + bias
        return lepo_objective(logits.gather(1, ids), logits.logsumexp(-1), *facts)

    ours = run(lepo_loss, leaves, facts, True)
    rounded = run(plain, leaves, facts, True)
    oracle = run(plain, [x.detach().double().requires_grad_() for x in leaves], facts, True)
    assert [x.dtype for x in ours[-3:]] == [dtype] * 3
    for position in (1, 5, 6, 7):
        assert_no_worse_than_plain(*(x[position] for x in (ours, rounded, oracle)), dtype, V)
    # The loss is a sum of terms that cancel: what their scores may be off by adds up.
    terms = (facts[3] * facts[4]).abs() @ ours[1].abs()
    ours_error, plain_error = ((x[0] - oracle[0]).abs() for x in (ours, rounded))
    allowed = (2 * rounding(dtype) + sum_error(V)) * terms
    assert ours_error <= 2 * plain_error + allowed


@pytest.mark.large
def test_gradcheck():
    leaves, facts = make()
    old, ref = off_policy(N, 4)

    def loss(hidden, lm_head, bias):
        # Far from the clipping's edges, where the loss has no derivative.
        return lepo_loss(
            hidden, lm_head, *facts, **old, **ref, bias=bias, softcap=5.0, beta=0.2,
            latent_kl="exact", epsilon=0.99, epsilon_high=1e3,
        ).loss  # fmt: skip

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Input #. requires gradient and is not a double")
        # The loss is near 10: float32 knows a difference over 2e-2 to 1e-4. The fast mode takes
        # one random direction of the head.
        assert torch.autograd.gradcheck(
            loss, leaves, eps=1e-2, atol=2e-2, rtol=1e-2, fast_mode=True
        )


@pytest.mark.usefixtures("_small_blocks")
def test_rows_that_are_left_out_are_not_looked_at():
    leaves, facts = make()
    hidden = leaves[0]
    idle = [2, 5, 8]
    with torch.no_grad():
        hidden[idle] = math.nan
    result = lepo_loss(hidden, leaves[1], *facts, old_log_prob=torch.zeros(N))
    dhidden, dhead = torch.autograd.grad(result.loss, leaves[:2])
    assert dhidden[idle].eq(0).all()
    assert dhead.isfinite().all()
    for field, value in zip(result._fields[1:], (0, 0, 1, 0), strict=True):
        assert getattr(result, field)[idle].eq(value).all(), field
    # A row of advantage 0 has a KL to the reference.
    with pytest.raises(ValueError, match="logits of hidden: row 2 is all -inf, or holds NaN"):
        lepo_loss(hidden, leaves[1], *facts, ref_log_probs=torch.zeros(N, 4))


@pytest.mark.parametrize("grad", [False, True])
def test_a_bad_row_is_named_by_its_own_number(grad):
    leaves, facts = make()
    with torch.no_grad():
        leaves[0][7] = math.nan  # the fifth of the rows that are used
    with (
        torch.set_grad_enabled(grad),
        pytest.raises(ValueError, match="logits of hidden: row 7 is all -inf, or holds NaN"),
    ):
        lepo_loss(*leaves[:2], *facts)


def test_ids_of_all_rows_are_checked():
    leaves, facts = make()
    facts[0][5, 1] = V  # of a row that is left out
    with pytest.raises(IndexError, match=rf"ids: expected values in \[0, {V}\), got {V}"):
        lepo_loss(*leaves[:2], *facts)


@pytest.mark.parametrize("rows", ["none", "none used"])
def test_without_rows_the_gradients_are_zeros(rows):
    leaves, facts = make()
    if rows == "none":
        leaves[0] = leaves[0].detach()[:0].requires_grad_()
        facts = [x[:0] for x in facts]
    else:
        facts = (*facts[:3], torch.zeros(N), facts[4])
    result = lepo_loss(*leaves[:2], *facts, bias=leaves[2])
    assert float(result.loss.detach()) == 0
    for x, leaf in zip(torch.autograd.grad(result.loss, leaves), leaves, strict=True):
        assert x.shape == leaf.shape
        assert x.eq(0).all()


@pytest.mark.parametrize("trained", [set(), {0}, {1}, {2}, {0, 1}, {0, 1, 2}])
def test_only_gradients_that_will_be_asked_for_are_formed(trained, monkeypatch):
    leaves, facts = make()
    for position, x in enumerate(leaves):
        x.requires_grad_(position in trained)
    formed = []
    load = dispatch.load

    def spying(op, name):
        def call(*args):
            outputs = load(op, name)(*args)
            formed.append([x.numel() > 0 for x in outputs[5:]])
            return outputs

        return call

    monkeypatch.setattr(dispatch, "load", spying)
    loss = lepo_loss(*leaves[:2], *facts, bias=leaves[2]).loss
    with torch.no_grad():
        quiet = lepo_loss(*leaves[:2], *facts, bias=leaves[2]).loss
    torch.testing.assert_close(quiet, loss.detach())
    assert formed == [[position in trained for position in range(3)], [False] * 3]
    assert loss.requires_grad == bool(trained)
    if trained:
        loss.backward()
    for position, x in enumerate(leaves):
        assert (x.grad is not None) == (position in trained)


def test_the_gradient_of_the_head_is_handed_over_without_a_copy(monkeypatch):
    leaves, facts = make()
    made = []
    load = dispatch.load

    def spying(op, name):
        def call(*args):
            outputs = load(op, name)(*args)
            made.append((op, outputs[6].data_ptr()))
            return outputs

        return call

    monkeypatch.setattr(dispatch, "load", spying)
    lepo_loss(*leaves[:2], *facts).loss.backward()
    gc.collect()
    assert made == [("lepo_loss", leaves[1].grad.data_ptr())]


def test_the_backward_pass_makes_nothing():
    leaves, facts = make()
    loss = lepo_loss(*leaves[:2], *facts).loss
    with LargestTensor() as largest:
        torch.autograd.grad(loss, leaves[:2])
    assert largest.numel <= 1  # the gradient of the loss


def test_any_gradient_of_the_loss():
    leaves, facts = make()
    loss = lepo_loss(*leaves[:2], *facts).loss
    # One that is itself trained, and one that says nothing.
    upstream = torch.tensor(1.0, requires_grad=True)
    (whole,) = torch.autograd.grad(loss, leaves[1], upstream, retain_graph=True)
    (none,) = torch.autograd.grad(loss, leaves[1], torch.tensor(0.0), retain_graph=True)
    (twice,) = torch.autograd.grad(loss, leaves[1], torch.tensor(2.0))
    assert torch.equal(twice, 2 * whole)
    assert none.eq(0).all()


def test_a_second_backward_through_the_same_graph():
    leaves, facts = make()
    loss = lepo_loss(*leaves[:2], *facts).loss
    loss.backward(retain_graph=True)
    first = [x.grad.clone() for x in leaves[:2]]
    loss.backward(retain_graph=True)
    for x, y in zip(leaves[:2], first, strict=True):
        assert torch.equal(x.grad, 2 * y)
    (handed,) = torch.autograd.grad(loss, leaves[1], retain_graph=True)
    assert torch.equal(handed, first[1])
    # Who changes a gradient that the graph still holds is told so.
    handed.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_second_derivatives_are_refused_and_metrics_are_constants():
    leaves, facts = make()
    result = lepo_loss(*leaves[:2], *facts)
    assert not any(x.requires_grad for x in result[1:])
    (first,) = torch.autograd.grad(result.loss, leaves[1], create_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives are not offered"):
        torch.autograd.grad(first.sum(), leaves[0], allow_unused=True)


def test_same_bits_run_to_run():
    leaves, facts = make()
    for x, y in zip(*(run(lepo_loss, leaves, facts, True) for _ in range(2)), strict=True):
        assert torch.equal(x, y)


def test_autocast_is_that_of_the_head():
    leaves, facts = make()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = run(lepo_loss, leaves, facts, True)
    narrow = [x.detach().bfloat16().requires_grad_() for x in leaves]
    expected = run(lepo_loss, narrow, facts, True)
    for x, y in zip(ours, expected, strict=True):
        assert torch.equal(x, y.to(x.dtype))
    assert ours[-1].dtype == torch.float32


def test_opcheck(backend):
    leaves, (ids, *facts) = make()
    old, ref = off_policy(N, 4)
    scale = torch.rand(N) + 0.5
    settings = (0.1, 0.2, 0.3, None, "exact", "latent_grpo_log_density", True, "ppo", True)
    recorded = -torch.rand(N, 4)
    ops = torch.ops.lepo_kernels
    torch.library.opcheck(
        ops.lepo_loss.default,
        (*leaves, 3.0, ids, scale, *facts, old["old_log_prob"], ref["ref_log_probs"],
         recorded, None, *settings, True, True, True, backend),
    )  # fmt: skip
    detached = [x.detach() for x in leaves]
    torch.library.opcheck(
        ops.lepo_loss.default,
        (*detached[:2], None, None, ids, scale[:1], *facts, *[None] * 4, 0.0, 0.2, 0.3,
         None, "exact", "soft_log_prob", False, "ppo", False, False, False, False, backend),
    )  # fmt: skip
    torch.library.opcheck(
        ops.lepo_loss_backward.default,
        (torch.tensor(2.0), *detached, *detached, 3.0, backend),
        test_utils=("test_schema", "test_faketensor"),
    )


# All rows used, and some: as they lie, and taken out.
@pytest.mark.parametrize("advantage", [0.0, 1.0])
def test_opcheck_of_transposed_inputs(advantage, backend):
    (hidden, lm_head, _), (ids, *facts, advantages, row_weights) = make()
    advantages[2], row_weights = advantage, torch.ones(N)
    torch.library.opcheck(
        torch.ops.lepo_kernels.lepo_loss.default,
        (transposed(hidden), transposed(lm_head), None, None, ids, torch.ones(1), *facts,
         advantages, row_weights, *[None] * 4, 0.0, 0.2, 0.2, None, "k3",
         "soft_log_prob", False, "ppo", False, True, True, False, backend),
        test_utils=("test_schema", "test_faketensor"),
    )  # fmt: skip


def test_compiled_is_eager_bitwise():
    leaves, facts = make()

    def loss(hidden, lm_head, bias):
        return 0.5 * lepo_loss(hidden, lm_head, *facts, bias=bias, epsilon=0.1).loss

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    ours, eager = compiled(*leaves), loss(*leaves)
    assert torch.equal(ours, eager)
    for x, y in zip(
        torch.autograd.grad(ours, leaves), torch.autograd.grad(eager, leaves), strict=True
    ):
        assert torch.equal(x, y)


@pytest.mark.usefixtures("_small_blocks")
def test_no_more_than_a_block_of_logits_is_held():
    leaves, facts = make()
    with LargestTensor() as largest:
        lepo_loss(*leaves[:2], *facts).loss.backward()
    assert largest.numel <= max(4 * V, V * D)


def test_float64_is_served_by_the_parts(monkeypatch, backend):
    leaves, facts = make(dtype=torch.float64)
    # Undone here: the fixture, which sets the override, is done before the test's own patches are.
    with monkeypatch.context() as patch:
        patch.setattr(dispatch, "_override", None)
        patch.setattr(cpu_kernel, "lepo_loss", None)
        assert lepo_loss(*leaves[:2], *facts).loss.dtype == torch.float64
    with pytest.raises(lepo_kernels.BackendUnavailableError, match="float64 is served by"):
        lepo_loss(*leaves[:2], *facts, backend=backend)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"weights": torch.ones(N, 3)}, ValueError, r"weights: expected shape \[10, 4\]"),
        ({"latent": torch.zeros(N)}, TypeError, "latent: expected dtype bool"),
        ({"beta": 0.1}, ValueError, "ref_log_probs: needed when beta is not 0"),
        ({"delta": 1.0}, ValueError, "delta: expected a number in"),
        ({"softcap": 0.0}, ValueError, "softcap: expected a number in"),
        ({"inv_temperature": torch.zeros(N)}, ValueError, "inv_temperature: expected finite"),
    ],
)
def test_errors_name_the_argument(change, error, message):
    leaves, facts = make()
    names = ("ids", "weights", "latent", "advantages", "row_weights")
    arguments = dict(zip(names, facts, strict=True)) | change
    with pytest.raises(error, match=message):
        lepo_loss(*leaves[:2], **arguments)


# Gradients that float16 cannot hold before, or only after, the loss is scaled.
@pytest.mark.parametrize(("row_weight", "scale"), [(2.0**-26, 2.0**20), (2.0**18, 2.0**-10)])
def test_a_scaled_float16_loss_is_scaled_before_its_gradients_are_rounded(row_weight, scale):
    hidden = torch.ones(1, 1, dtype=torch.float16)
    head = torch.zeros(2, 1, dtype=torch.float16, requires_grad=True)
    loss = lepo_loss(
        hidden,
        head,
        torch.tensor([[0]]),
        torch.ones(1, 1),
        torch.tensor([True]),
        torch.ones(1),
        torch.tensor([row_weight]),
    ).loss
    (loss * scale).backward()
    half = row_weight * scale / 2
    assert head.grad.tolist() == [[-half], [half]]
