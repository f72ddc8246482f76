"""A decoding step is the draw and the mixture, to the bit; and the table learns from it."""

import math
import warnings

import pytest
import torch

from lepo_kernels import latent_step, mix_embeddings, sample_latent
from lepo_kernels.backends import checks
from tests.ops.helpers import LOW_DTYPES, transposed
from tests.seeds import seeded

pytestmark = pytest.mark.usefixtures("backend")

NOISES = ("none", "gumbel", "gaussian", "dirichlet", "categorical")


def make(rows=4, vocab=300, width=17, dtype=torch.float32):
    torch.manual_seed(seeded(0))
    logits, table = 2 * torch.randn(rows, vocab), torch.randn(vocab, width)
    return logits.to(dtype), table.to(dtype)


def apart(logits, embedding, **draw):
    sample = sample_latent(logits, **draw)
    return (*sample, mix_embeddings(sample.ids, sample.weights, embedding))


def assert_equal(step, expected):
    ours = (*step.sample, step.embedding)
    for x, y in zip(ours, expected, strict=True):
        assert x.dtype == y.dtype
        assert torch.equal(x, y)


# V = 7: rows are sorted whole; 1000: selected from. D = 1, a rest of a vector and whole ones: 17,
# 64. Tables of one more row than there are logits.
@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize(("vocab", "width"), [(7, 1), (1000, 17), (1000, 64)])
def test_a_step_is_the_draw_and_its_mixture(noise, vocab, width):
    logits, table = make(5, vocab, width)
    table = torch.cat([table, table[:1]])
    draw = {
        "tau": torch.tensor([0.5, 0.0, 0.3, 1.0, 2.0]),
        "temperature": 0.8,
        "top_k": 6,
        "top_p": 0.9,
        "min_p": 0.01,
        "noise": noise,
        "noise_scale": 0.7,
        "noise_clamp": (-1.0, 3.0) if noise == "gumbel" else None,
        "num_draws": 3 if noise == "categorical" else 1,
        "exclude_ids": torch.tensor([2, 4]),
        "seed": 2**63 + 5,
        "row_keys": torch.tensor([7, -1, 2**50, 0, 7]),
        "step": torch.tensor([3, 1, 2**32 - 1, 0, 9]),
    }
    assert_equal(latent_step(logits, table, **draw), apart(logits, table, **draw))


@pytest.mark.parametrize("table_dtype", LOW_DTYPES)
@pytest.mark.parametrize("logits_dtype", LOW_DTYPES)
def test_any_pair_of_dtypes(logits_dtype, table_dtype):
    logits, table = make()
    logits, table = logits.to(logits_dtype), table.to(table_dtype)
    expected = apart(logits, table, top_k=9, seed=3)
    assert_equal(latent_step(logits, table, top_k=9, seed=3), expected)


def test_defaults_are_those_of_the_draw():
    logits, table = make()
    assert_equal(latent_step(logits, table), apart(logits, table))


@pytest.mark.parametrize("lay_out", [transposed, lambda x: x[:, 1:]])
def test_any_layout(lay_out):
    logits, table = (lay_out(x) for x in make(rows=3, width=9))
    expected = apart(logits.contiguous(), table.contiguous(), top_k=5)
    ours = latent_step(logits, table, top_k=5)
    torch.testing.assert_close(ours.embedding, expected[-1])
    assert torch.equal(ours.sample.ids, expected[0])


# No rows; no columns in the table.
@pytest.mark.parametrize(("rows", "width"), [(0, 5), (3, 0), (0, 0)])
def test_empty_calls(rows, width):
    logits, table = make(rows, 9, width)
    table.requires_grad_()
    step = latent_step(logits, table, top_k=2)
    assert step.embedding.shape == (rows, width)
    assert step.sample.ids.shape == (rows, 2)
    (grad,) = torch.autograd.grad(step.embedding.sum(), table)
    assert grad.shape == table.shape
    assert (grad == 0).all()


def test_the_gradient_is_the_mixtures():
    logits, table = make()
    logits.requires_grad_()
    table.requires_grad_()
    ours = latent_step(logits, table, top_k=9, tau=0.5)
    assert not any(field.requires_grad for field in ours.sample)
    expected = mix_embeddings(ours.sample.ids, ours.sample.weights, table)
    (grad,) = torch.autograd.grad(ours.embedding.square().sum(), table)
    assert torch.equal(grad, torch.autograd.grad(expected.square().sum(), table)[0])
    # The draw is a constant to the logits.
    again = latent_step(logits, table, top_k=9, tau=0.5).embedding.sum()
    assert torch.autograd.grad(again, logits, allow_unused=True) == (None,)


def test_a_frozen_table_asks_for_no_gradient():
    logits, table = make()
    assert not latent_step(logits.requires_grad_(), table).embedding.requires_grad


# In float32, a step of 1e-2 makes rounding a relative error of about 1e-5 of the difference, and
# there is none of the step itself: the mixture is linear in the table.
def test_gradcheck(real):
    # Two calls for each entry of the table, which an interpreter takes its time for.
    logits, table = make(2, 5, 2, dtype=real)
    steps = {} if real == torch.float64 else {"eps": 1e-2, "atol": 1e-4, "rtol": 1e-3}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Input #. requires gradient and is not a double")
        assert torch.autograd.gradcheck(
            lambda e: latent_step(logits, e, top_k=3).embedding, (table.requires_grad_(),), **steps
        )


def test_double_backward_is_refused():
    logits, table = make()
    embedding = latent_step(logits, table.requires_grad_(), top_k=3).embedding
    (first,) = torch.autograd.grad(embedding.square().sum(), table, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives are not offered"):
        first.sum().backward()


def test_unchecked_bad_rows_spoil_themselves_only(monkeypatch):
    monkeypatch.setattr(checks, "checks_enabled", lambda device: False)
    logits, table = make()
    good = latent_step(logits, table, top_k=3)
    logits[2] = -math.inf
    step = latent_step(logits, table, top_k=3)
    others = torch.tensor([0, 1, 3])
    assert torch.equal(step.embedding[others], good.embedding[others])
    assert step.embedding[2].isnan().all()


@pytest.mark.parametrize("noise", NOISES)
def test_opcheck(noise, backend):
    logits, table = make(3, 8, 5)
    one = torch.ones(1, dtype=torch.float64)
    draws = 2 if noise == "categorical" else 1
    filters = (4, 0.9, 0.01, noise, 1.0, -math.inf, math.inf, draws, torch.tensor([1]))
    key = (torch.tensor(0), torch.arange(3), torch.tensor([0]))
    behind = (one, one, *filters, *key, 1.0, 1.0, 0, 0, backend)
    op = torch.ops.lepo_kernels.latent_step.default
    torch.library.opcheck(op, (logits, table, *behind))
    # Its comparison of gradients adds to a sum of ids in place; the compiled step is tested below.
    utils = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(op, (logits, table.requires_grad_(), *behind), test_utils=utils)


# A seed and a step that are tensors, and numbers: neither is compiled in.
def test_compiled_is_eager_bitwise_at_every_seed_and_step():
    logits, table = make(vocab=20)
    table.requires_grad_()

    def run(seed, step):
        made = latent_step(logits, table, top_k=5, top_p=0.9, tau=0.5, seed=seed, step=step)
        return made.sample.ids, made.sample.weights, made.embedding

    # What other backends compiled counts against the limit of recompilations.
    torch.compiler.reset()
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    for seed, step in ((0, torch.tensor(0)), (1, torch.tensor(7)), (torch.tensor(2), 2)):
        ours, eager = compiled(seed, step), run(seed, step)
        for x, y in zip(ours, eager, strict=True):
            assert torch.equal(x, y)
        grads = (torch.autograd.grad(x[-1].square().sum(), table)[0] for x in (ours, eager))
        assert torch.equal(*grads)


def test_seeds_may_be_tensors():
    logits, table = make()
    assert_equal(
        latent_step(logits, table, seed=torch.tensor(11), step=torch.tensor(4)),
        apart(logits, table, seed=11, step=4),
    )


def test_autocast_does_not_reach_the_kernels():
    logits, table = make()
    base = latent_step(logits, table, top_k=5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_equal(latent_step(logits, table, top_k=5), (*base.sample, base.embedding))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"embedding": [1.0]}, TypeError, "embedding: expected a Tensor, got list"),
        ({"embedding": torch.zeros(5)}, ValueError, r"embedding: expected shape \[V, D\]"),
        ({"embedding": torch.zeros(5, 3).int()}, TypeError, "embedding: expected dtype float32"),
        (
            {"embedding": torch.zeros(4, 3)},
            ValueError,
            "embedding: expected a row for each of the 5 columns of logits, got 4",
        ),
        ({"logits": torch.zeros(3)}, ValueError, r"logits: expected shape \[N, V\], got \[3\]"),
        ({"tau": -1.0}, ValueError, "tau: expected a number in"),
        ({"top_k": 0}, ValueError, "top_k: expected an int in"),
        ({"noise": "laplace"}, ValueError, "noise: expected one of 'none', 'gumbel'"),
        ({"num_draws": 2}, ValueError, "num_draws: expected 1 unless noise='categorical'"),
        ({"logits": torch.full((2, 5), math.nan)}, ValueError, "logits: row 0 is all -inf, or"),
    ],
)
def test_errors_name_the_argument(change, error, message):
    arguments = {"logits": torch.zeros(2, 5), "embedding": torch.zeros(5, 3)}
    with pytest.raises(error, match=message):
        latent_step(**(arguments | change))
