"""The dense Gumbel-softmax mixture against the dense expression and torch's own autograd."""

import math

import pytest
import torch

from lepo_kernels import gumbel_noise, gumbel_softmax_embedding
from lepo_kernels.backends.reference import gumbel_softmax_embedding as kernel
from lepo_kernels.backends.reference import numerics
from tests.ops.helpers import LOW_DTYPES, LargestTensor, assert_no_worse_than_plain, transposed


def plain(logits, embedding, tau, temperature=1.0, seed=0, row_keys=None, step=0):
    """The same with all noise and weights at hand, in the dtype of the inputs."""
    rows, vocab = logits.shape
    keys = torch.arange(rows) if row_keys is None else row_keys
    wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
    noise = gumbel_noise(seed, keys, step, torch.arange(vocab), dtype=wide)
    a = logits / temperature
    z = torch.softmax((a + noise.to(a.dtype)) / tau, -1)
    log_pi = torch.log_softmax(a, -1)
    log_prob = (z.detach() * log_pi.masked_fill(log_pi == -math.inf, 0)).sum(-1)
    return z.to(embedding.dtype) @ embedding, log_prob


def make(rows=5, vocab=11, width=3, dtype=torch.float64, seed=0):
    torch.manual_seed(seed)
    logits = torch.randn(rows, vocab, dtype=dtype, requires_grad=True)
    embedding = torch.randn(vocab, width, dtype=dtype, requires_grad=True)
    return logits, embedding


def loss_of(outputs):
    mixed, log_prob = outputs
    return mixed.double().square().sum() + (log_prob.double() * torch.arange(len(log_prob))).sum()


# Chunks of one row, of 2 with a last one of 1, and of all 5; V = 2 and 7 leave cut noise blocks.
@pytest.mark.parametrize("chunk_rows", [1, 2, 5])
@pytest.mark.parametrize("vocab", [2, 7, 1000])
def test_values_and_gradients_match_the_dense_expression(vocab, chunk_rows, monkeypatch):
    monkeypatch.setattr(numerics, "_CHUNK_ENTRIES", chunk_rows * vocab)
    inputs = make(vocab=vocab)
    options = {
        "tau": 0.6,
        "temperature": 1.4,
        "seed": 5,
        "row_keys": torch.tensor([3, -1, 2**40, 8, 0]),
        "step": torch.tensor([1, 2, 3, 4, 5]),
    }
    ours, expected = gumbel_softmax_embedding(*inputs, **options), plain(*inputs, **options)
    for x, y in zip(ours, expected, strict=True):
        torch.testing.assert_close(x, y)
    for x, y in zip(
        torch.autograd.grad(loss_of(ours), inputs),
        torch.autograd.grad(loss_of(expected), inputs),
        strict=True,
    ):
        torch.testing.assert_close(x, y)


def test_gradcheck():
    logits, embedding = make()

    def mixture(logits, embedding):
        return gumbel_softmax_embedding(logits, embedding, 0.7, temperature=0.8).embedding

    assert torch.autograd.gradcheck(mixture, (logits, embedding))


def test_log_prob_takes_the_weights_for_constants():
    logits, embedding = make()
    ours = gumbel_softmax_embedding(logits, embedding, 0.5, seed=2)
    dlogits, dembedding = torch.autograd.grad(
        ours.log_prob.sum(), (logits, embedding), allow_unused=True
    )
    noise = gumbel_noise(2, torch.arange(5), 0, torch.arange(11), dtype=torch.float64)
    z = ((logits + noise) / 0.5).softmax(-1)
    torch.testing.assert_close(dlogits, z - logits.softmax(-1))
    assert dembedding is None or dembedding.eq(0).all()


# V = 97, no multiple of 4, so that a cut noise block counts; D = 16.
@pytest.mark.parametrize("dtype", LOW_DTYPES)
def test_error_is_no_worse_than_plain_torch(dtype):
    torch.manual_seed(1)
    logits = (2 * torch.randn(33, 97)).to(dtype).requires_grad_()
    embedding = torch.randn(97, 16).to(dtype).requires_grad_()

    def run(function, logits, embedding):
        mixed, log_prob = function(logits, embedding, 0.5)
        loss = mixed.sum() + log_prob.sum()
        return mixed, log_prob, *torch.autograd.grad(loss, (logits, embedding))

    ours, rounded = (run(f, logits, embedding) for f in (gumbel_softmax_embedding, plain))
    assert [x.dtype for x in ours] == [dtype, torch.float32, dtype, dtype]
    oracle = run(plain, *(x.detach().double().requires_grad_() for x in (logits, embedding)))
    for x, y, z in zip(ours, rounded, oracle, strict=True):
        assert_no_worse_than_plain(x, y, z, dtype)


def test_tau_zero_takes_the_row_of_the_argmax():
    logits, embedding = make(rows=20)
    noise = gumbel_noise(0, torch.arange(20), 0, torch.arange(11), dtype=torch.float64)
    best = (logits + noise).argmax(-1)
    ours = gumbel_softmax_embedding(logits, embedding, 0.0)
    assert torch.equal(ours.embedding, embedding[best])
    torch.testing.assert_close(ours.log_prob, logits.log_softmax(-1).gather(1, best[:, None])[:, 0])
    dlogits, dembedding = torch.autograd.grad(ours.embedding.sum(), (logits, embedding))
    assert dlogits.eq(0).all()
    counts = torch.bincount(best, minlength=11).double()
    assert torch.equal(dembedding, counts[:, None].expand(11, 3))
    mixed = gumbel_softmax_embedding(logits, embedding, torch.tensor([0.0, 0.5]).repeat(10))
    torch.testing.assert_close(mixed.embedding[0::2], ours.embedding[0::2])
    torch.testing.assert_close(mixed.embedding[1::2], plain(logits, embedding, 0.5)[0][1::2])


# Below what float32 can divide by, and below what it can hold at all.
@pytest.mark.parametrize("tau", [1e-39, 1e-50])
def test_a_tau_too_small_for_float32_is_zero(tau):
    inputs = make(dtype=torch.float32)
    ours, hard = (gumbel_softmax_embedding(*inputs, t) for t in (tau, 0.0))
    for x, y in zip(ours, hard, strict=True):
        assert torch.equal(x, y)
    for x, y in zip(
        torch.autograd.grad(loss_of(ours), inputs),
        torch.autograd.grad(loss_of(hard), inputs),
        strict=True,
    ):
        assert torch.equal(x, y)


def test_minus_infinities_never_make_nan():
    logits, embedding = make()
    with torch.no_grad():
        logits[:, 3:] = -math.inf
        logits[0, :2] = -math.inf  # a single survivor
    ours, expected = (f(logits, embedding, 0.5) for f in (gumbel_softmax_embedding, plain))
    for x, y in zip(ours, expected, strict=True):
        torch.testing.assert_close(x, y)
    assert ours.log_prob[0] == 0
    dlogits, _ = torch.autograd.grad(loss_of(ours), (logits, embedding))
    assert dlogits[:, 3:].eq(0).all()
    assert dlogits[0].eq(0).all()
    assert dlogits.isfinite().all()


@pytest.mark.parametrize("bad", [-math.inf, math.nan, math.inf])
def test_bad_rows(bad, monkeypatch):
    logits, embedding = (x.detach() for x in make())
    good = gumbel_softmax_embedding(logits, embedding, 0.5)
    logits[3] = bad
    with pytest.raises(ValueError, match="logits: row 3 is all -inf, or holds NaN or"):
        gumbel_softmax_embedding(logits, embedding, 0.5)
    monkeypatch.setattr(numerics, "checks_enabled", lambda device: False)
    ours = gumbel_softmax_embedding(logits, embedding, 0.5)
    for x, y in zip(ours, good, strict=True):
        assert x[3].isnan().all()
        torch.testing.assert_close(x[[0, 1, 2, 4]], y[[0, 1, 2, 4]])


def test_no_rows():
    logits, embedding = make()
    ours = gumbel_softmax_embedding(logits[:0], embedding, 0.5)
    assert ours.embedding.shape == (0, 3)
    assert ours.log_prob.shape == (0,)
    ours.embedding.sum().backward()
    assert embedding.grad.eq(0).all()


def test_a_row_does_not_depend_on_its_batch():
    logits, embedding = make(rows=6)
    keys, rows = torch.tensor([9, 4, -2, 0, 7, 1]), torch.tensor([4, 1])
    whole = gumbel_softmax_embedding(logits, embedding, 0.5, row_keys=keys)
    part = gumbel_softmax_embedding(logits[rows], embedding, 0.5, row_keys=keys[rows])
    for x, y in zip(part, whole, strict=True):
        torch.testing.assert_close(x, y[rows])
    again = gumbel_softmax_embedding(logits, embedding, 0.5, row_keys=keys)
    for x, y in zip(again, whole, strict=True):
        assert torch.equal(x, y)
    strided = logits.detach().T.contiguous().T
    for x, y in zip(
        gumbel_softmax_embedding(strided, embedding, 0.5, row_keys=keys), whole, strict=True
    ):
        torch.testing.assert_close(x, y)


def test_noise_and_weights_exist_for_one_chunk_at_a_time(monkeypatch):
    logits, embedding = make(rows=64, vocab=50)
    monkeypatch.setattr(numerics, "_CHUNK_ENTRIES", 4 * 50)
    with torch.no_grad(), LargestTensor() as largest:
        gumbel_softmax_embedding(logits, embedding, 0.5)
    # Four words per block of four ids, the last block whole: 52 per row.
    assert largest.numel <= max(4 * 52, 64 * 3)


def test_rows_without_gradient_are_not_computed_in_backward():
    logits, embedding = (x.detach() for x in make())
    logits[[0, 2, 3]] = math.nan  # would spread into the gradient of the table
    grad, grad_log_prob = torch.zeros(5, 3).double(), torch.zeros(5).double()
    grad[1, 2], grad_log_prob[4] = 1, 1
    one, zero = torch.ones(1).double(), torch.tensor(0)
    dlogits, dembedding = kernel.gumbel_softmax_embedding_backward(
        grad, grad_log_prob, logits, embedding, one, one, zero, torch.arange(5), zero[None],
        True, True,
    )  # fmt: skip
    assert dlogits[[0, 2, 3]].eq(0).all()
    assert dlogits[[1, 4]].ne(0).all()
    assert dembedding.isfinite().all()


@pytest.mark.parametrize("trained", [{0}, {1}])
def test_frozen_inputs_get_no_gradient(trained, monkeypatch):
    inputs = make()
    for position, x in enumerate(inputs):
        x.requires_grad_(position in trained)
    needs = []
    original = kernel.gumbel_softmax_embedding_backward
    monkeypatch.setattr(
        "lepo_kernels.dispatch.load",
        lambda op, name: (
            lambda *args: (
                needs.append(args[-2:]) or original(*args)
                if op.endswith("backward")
                else kernel.gumbel_softmax_embedding(*args)
            )
        ),
    )
    loss_of(gumbel_softmax_embedding(*inputs, 0.5)).backward()
    assert needs == [(0 in trained, 1 in trained)]
    for position, x in enumerate(inputs):
        assert (x.grad is not None) == (position in trained)


def test_autocast_does_not_reach_the_kernel():
    inputs = make(dtype=torch.float32)
    base = gumbel_softmax_embedding(*inputs, 0.5)
    base_grads = torch.autograd.grad(loss_of(base), inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = gumbel_softmax_embedding(*inputs, 0.5)
        grads = torch.autograd.grad(loss_of(ours), inputs)
    for x, y in zip((*ours, *grads), (*base, *base_grads), strict=True):
        assert torch.equal(x, y)


def test_double_backward_is_refused():
    logits, embedding = make()
    ours = gumbel_softmax_embedding(logits, embedding, 0.5)
    (first,) = torch.autograd.grad(loss_of(ours), logits, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives are not offered"):
        first.sum().backward()


def test_opcheck():
    logits, embedding = make(rows=2)
    one, zero = torch.ones(1, dtype=torch.float64), torch.tensor(0)
    shared = (logits, embedding, one, one, zero, torch.arange(2), zero[None])
    ops = torch.ops.lepo_kernels
    torch.library.opcheck(ops.gumbel_softmax_embedding.default, (*shared, "reference"))
    torch.library.opcheck(
        ops.gumbel_softmax_embedding_backward.default,
        (
            torch.ones(2, 3).double(),
            torch.ones(2).double(),
            *(x.detach() for x in shared),
            True,
            False,
            "reference",
        ),
        test_utils=("test_schema", "test_faketensor"),
    )


def test_opcheck_of_transposed_inputs():
    logits, embedding = (transposed(x) for x in make(rows=2))
    one, zero = torch.ones(1, dtype=torch.float64), torch.tensor(0)
    shared = (logits, embedding, one, one, zero, torch.arange(2), zero[None])
    ops, upstream = torch.ops.lepo_kernels, transposed(torch.randn(2, 3).double())
    torch.library.opcheck(ops.gumbel_softmax_embedding.default, (*shared, "reference"))
    torch.library.opcheck(
        ops.gumbel_softmax_embedding_backward.default,
        (upstream, torch.ones(2).double(), *shared, True, True, "reference"),
        test_utils=("test_schema", "test_faketensor"),
    )


def test_compiled_is_eager_bitwise():
    inputs = make(dtype=torch.float32)

    def step(logits, embedding, seed):
        return loss_of(gumbel_softmax_embedding(logits, embedding, 0.5, seed=seed))

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for seed in (torch.tensor(0), torch.tensor(4)):
        ours, eager = compiled(*inputs, seed), step(*inputs, seed)
        assert torch.equal(ours, eager)
        for x, y in zip(
            torch.autograd.grad(ours, inputs), torch.autograd.grad(eager, inputs), strict=True
        ):
            assert torch.equal(x, y)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"logits": torch.zeros(3)}, ValueError, r"logits: expected shape \[N, V\]"),
        ({"logits": torch.zeros(2, 0)}, ValueError, "logits.shape.1.: expected an int in"),
        ({"embedding": torch.zeros(4, 3)}, ValueError, r"embedding: expected shape \[5, D\]"),
        ({"embedding": torch.zeros(5, 3).int()}, TypeError, "embedding: expected dtype float32"),
        ({"tau": -0.1}, ValueError, "tau: expected a number in"),
        ({"tau": 1e39}, ValueError, "tau: expected a number in"),
        ({"tau": torch.full((), 1e39, dtype=torch.double)}, ValueError, "tau: expected finite"),
        ({"temperature": 1e-40}, ValueError, "temperature: expected a number in"),
        ({"temperature": 1e39}, ValueError, "temperature: expected a number in"),
        (
            {"temperature": torch.tensor(1e-40, dtype=torch.float64)},
            ValueError,
            "temperature: expected finite numbers",
        ),
        ({"step": torch.tensor(2**32)}, ValueError, "step: expected values in"),
        ({"tau": "hot"}, TypeError, "tau: expected a number, got str"),
        ({"temperature": torch.tensor(-1.0)}, ValueError, "temperature: expected finite numbers"),
        ({"row_keys": torch.arange(3)}, ValueError, r"row_keys: expected shape \[2\]"),
    ],
)
def test_errors_name_the_argument(change, error, message):
    arguments = {"logits": torch.zeros(2, 5), "embedding": torch.zeros(5, 3), "tau": 0.5}
    with pytest.raises(error, match=message):
        gumbel_softmax_embedding(**(arguments | change))
