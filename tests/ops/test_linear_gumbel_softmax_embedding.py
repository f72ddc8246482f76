"""The Gumbel-softmax mixture from hidden states, against the dense expression and autograd.

What the mixture of logits promises has its tests in test_gumbel_softmax_embedding.py; these are of
the logits in front of it. What takes the fixture ``backend`` is the contract.
"""

import itertools
import math

import pytest
import torch

from lepo_kernels import (
    dispatch,
    gumbel_noise,
    gumbel_softmax_embedding,
    linear_gumbel_softmax_embedding,
)
from lepo_kernels.backends import checks
from tests.ops.head_magnitudes import logit_magnitudes
from tests.ops.helpers import LOW_DTYPES, LargestTensor, kernel_of, transposed
from tests.ops.test_gumbel_softmax_embedding import (
    in_float64,
    joined,
    loss_of,
    magnitudes,
    plain,
)
from tests.seeds import seeded
from tests.tolerances import assert_no_worse_than_plain, assert_within, sum_error

KEYS = torch.tensor([3, -1, 2**40, 8, 0, 7])
NOISE = {"seed": 5, "row_keys": KEYS, "step": torch.arange(6), "first_id": 12}
OPTIONS = {
    "tau": torch.tensor([0.6, 0.2, 3.0, 1.0, 0.5, 0.9]),
    "temperature": torch.tensor([1.4, 1.0, 0.7, 2.0, 1.0, 0.9]),
    **NOISE,
}


def make(rows=6, hidden=4, vocab=11, width=3, dtype=torch.float32, table_dtype=None, seed=0):
    """Hidden states, head, table and bias."""
    torch.manual_seed(seeded(seed))
    table_dtype = table_dtype or dtype
    shapes = ((rows, hidden), dtype), ((vocab, hidden), dtype), ((vocab, width), table_dtype)
    inputs = [torch.randn(shape).to(kind).requires_grad_() for shape, kind in shapes]
    return (*inputs, torch.randn(vocab).to(dtype).requires_grad_())


def head(hidden, lm_head, bias=None, softcap=None):
    logits = hidden @ lm_head.T
    if bias is not None:
        logits = logits + bias
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def dense(hidden, lm_head, embedding, bias=None, *, softcap=None, tau=0.5, **options):
    """The same from precomputed logits, noise and weights."""
    table = lm_head if embedding is None else embedding
    return plain(head(hidden, lm_head, bias, softcap), table, tau, **options)


def fused(hidden, lm_head, embedding, bias=None, *, tau=0.5, **options):
    return linear_gumbel_softmax_embedding(hidden, lm_head, embedding, tau, bias=bias, **options)


def everything(function, inputs, **options):
    """Mixtures, log-probabilities, log-densities, and the gradients of two losses."""
    outputs = function(*inputs, **options)
    leaves = [x for x in inputs if x is not None and x.requires_grad]
    upstream = torch.linspace(-1, 1, len(outputs[2])).to(outputs[2].dtype)
    return (
        *outputs,
        *torch.autograd.grad(loss_of(outputs), leaves, retain_graph=True),
        *torch.autograd.grad(outputs[2], leaves, upstream, allow_unused=True),
    )


def assert_same(ours, expected, **slack):
    for x, y in zip(ours, expected, strict=True):
        if x is None or y is None:
            # Autograd knows that the dense expression does not depend on a table, ours has zeros.
            assert all(z is None or z.eq(0).all() for z in (x, y))
        else:
            torch.testing.assert_close(x, y, **slack)


def noise_of(vocab, rows, *, seed=0, row_keys=None, step=0, first_id=0):
    """The magnitudes of the noise [N, V] that such options stand for."""
    keys = torch.arange(rows) if row_keys is None else row_keys
    ids = first_id + torch.arange(vocab)
    return gumbel_noise(seed, keys, step, ids, dtype=torch.float64).abs()


def sizes_of(inputs, softcap=None, tau=0.5, temperature=1.0, **noise):
    """Magnitudes of what `everything` sums up; a logit's error moves its weight by as much."""
    hidden, lm_head, embedding, *bias = (None if x is None else x.detach() for x in inputs)
    bias = bias[0] if bias else None
    wide = [x if x is None else x.double() for x in (hidden, lm_head, bias)]
    logits = head(*wide, softcap).requires_grad_()
    table = (lm_head if embedding is None else embedding).double()
    options = {"tau": tau, "temperature": temperature, **noise}
    outputs = magnitudes((logits, table), **options)
    mixed, log_prob, density, dlogits, dtable = outputs
    # Of the density: d log_density / da = 1 - m s, of which the sum is at most 2 + |1 - m s|.
    upstream = torch.linspace(-1, 1, len(hidden), dtype=torch.float64)
    found = plain(logits, table, **options)[2]
    (pull,) = torch.autograd.grad(found, logits, upstream)
    off = logit_magnitudes(hidden, lm_head, bias)
    tau, temperature = (torch.as_tensor(x).double().reshape(-1, 1) for x in (tau, temperature))
    pull = (pull.abs() + 2 * upstream.abs()[:, None] / temperature) * (logits > -math.inf)
    # What a row's weights are off by relative to them, in units of a sum over the vocabulary: its
    # largest logit, a shorter sum, and noise, for the weight itself and for all of them.
    shorter = sum_error(hidden.shape[1]) / sum_error(len(table))
    off = shorter * off
    drawn = shorter * noise_of(len(table), len(hidden), **noise)
    moved = 1 + 2 * (off / temperature + drawn).amax(1, keepdim=True) / tau.clamp(max=1)
    slope = 1 if softcap is None else 1 + 2 * off / softcap
    row = moved[:, 0]
    sizes = [mixed * moved, log_prob * row, density * row]
    for dlogits_size, dtable_size in (
        (dlogits * moved * slope, dtable * row.max()),
        (pull * moved * slope, torch.zeros_like(dtable)),
    ):
        dhidden = dlogits_size @ lm_head.double().abs()
        dlm_head = dlogits_size.T @ hidden.double().abs()
        if embedding is None:
            sizes += [dhidden, dlm_head + dtable_size]
        else:
            sizes += [dhidden, dlm_head, dtable_size]
        sizes += [] if bias is None else [dlogits_size.sum(0)]
    return sizes


def assert_exact(ours, inputs, **options):
    """``ours`` is `everything` of float32 or float64 inputs, as good as its sums can be."""
    oracle = everything(dense, in_float64_or_none(inputs), **options)
    sizes = sizes_of(inputs, **options)
    for x, y, size in zip(ours, oracle, sizes, strict=True):
        if x is None or y is None:
            # Autograd knows that the dense expression does not depend on a table, ours has zeros.
            assert all(z is None or z.eq(0).all() for z in (x, y))
        else:
            assert_within(x, y, len(inputs[1]), size)


def in_float64_or_none(inputs):
    return tuple(None if x is None else in_float64((x,))[0] for x in inputs)


def assert_as_good_as_dense(inputs, **options):
    ours = everything(fused, inputs, **options)
    dtype = inputs[0].dtype
    options.pop("chunk_size", None)
    rounded = everything(dense, inputs, **options)
    oracle = everything(dense, in_float64(inputs), **options)
    for x, y, z, size in zip(ours, rounded, oracle, sizes_of(inputs, **options), strict=True):
        if z is None:
            assert x is None or x.eq(0).all()
        else:
            assert_no_worse_than_plain(x, y, z, dtype, len(inputs[1]), size)


# V = 97, no multiple of 4, so that a cut noise block counts.
@pytest.mark.parametrize("dtype", LOW_DTYPES)
def test_error_is_no_worse_than_plain_torch(dtype, backend):
    assert_as_good_as_dense(make(vocab=97, dtype=dtype), chunk_size=4)


# One entry; two tiles of the mixture; the parts of 2048 that a head is cut into, and one more.
@pytest.mark.parametrize("vocab", [1, 1030, 2048, 2053])
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_shapes(vocab, softcap, backend):
    assert_as_good_as_dense(make(vocab=vocab), softcap=softcap, chunk_size=4, **OPTIONS)


# Chunks of 1, of 4 with a last one of 2, of exactly all, and of more than all 6 rows.
@pytest.mark.parametrize("chunk_size", [1, 4, 6, 100, None])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("with_bias", [False, True])
def test_values_and_gradients_match_the_dense_expression(
    chunk_size, softcap, with_bias, real, backend
):
    inputs = make(dtype=real)[: 3 + with_bias]
    options = {x: y.to(real) if x in ("tau", "temperature") else y for x, y in OPTIONS.items()}
    ours = everything(fused, inputs, softcap=softcap, chunk_size=chunk_size, **options)
    assert_exact(ours, inputs, softcap=softcap, **options)


@pytest.mark.parametrize("table_dtype", [*LOW_DTYPES, torch.float64])
def test_the_table_has_its_own_dtype(table_dtype):
    inputs = make(table_dtype=table_dtype)
    ours = everything(fused, inputs, **OPTIONS)
    hidden, lm_head, table, bias = inputs
    mixed = gumbel_softmax_embedding(head(hidden, lm_head, bias), table, **OPTIONS)
    assert_same(ours[:3], mixed, rtol=1e-2 if table_dtype.itemsize == 2 else 1e-5, atol=1e-5)
    assert [x.dtype for x in ours[3:7]] == [x.dtype for x in inputs]


def test_it_is_the_mixture_of_the_logits(backend):
    inputs = make(vocab=1030)

    def of_logits(hidden, lm_head, table, bias, **options):
        return gumbel_softmax_embedding(head(hidden, lm_head, bias, 3.0), table, **options)

    ours = everything(fused, inputs, softcap=3.0, chunk_size=4, **OPTIONS)
    sizes = sizes_of(inputs, softcap=3.0, **OPTIONS)
    # Two float32 results.
    for x, y, size in zip(ours, everything(of_logits, inputs, **OPTIONS), sizes, strict=True):
        if x is None or y is None:
            assert all(z is None or z.eq(0).all() for z in (x, y))
        else:
            assert_within(x, y, 1030, 2 * size)


@pytest.mark.parametrize("dtype", LOW_DTYPES)
def test_tied_is_untied_with_the_same_tensor(dtype, backend):
    hidden, lm_head, _, bias = make(vocab=2053, dtype=dtype)
    tied = everything(fused, (hidden, lm_head, None, bias), chunk_size=4, **OPTIONS)
    outputs = fused(hidden, lm_head, lm_head, bias, chunk_size=4, **OPTIONS)
    untied = everything(lambda *_, **__: outputs, (hidden, lm_head, None, bias))
    # Two rounded gradients are added there, two sums here.
    slack = {} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 2e-2}
    assert_same(tied, untied, **slack)
    if dtype == torch.float32:
        assert_exact(tied, (hidden, lm_head, None, bias), **OPTIONS)


def test_a_frozen_use_of_a_tied_head_is_not_in_its_gradient(backend):
    hidden, lm_head, _, _ = make()
    ours = fused(hidden, lm_head, lm_head.detach())
    apart = fused(hidden, lm_head.detach(), lm_head)
    both = fused(hidden, lm_head, None)
    grads = [torch.autograd.grad(loss_of(x), lm_head)[0] for x in (ours, apart, both)]
    torch.testing.assert_close(grads[0] + grads[1], grads[2])


# The mixture's, the log-probability's and the log-density's gradient, in one function each.
@pytest.mark.parametrize("tied", [False, True])
def test_gradcheck(tied):
    hidden, lm_head, table, bias = make(dtype=torch.float64)

    def mixture(hidden, lm_head, bias, *tables):
        table = tables[0] if tables else None
        return fused(hidden, lm_head, table, bias, softcap=3.0, chunk_size=4, tau=0.7).embedding

    inputs = (hidden, lm_head, bias) if tied else (hidden, lm_head, bias, table)
    assert torch.autograd.gradcheck(mixture, inputs)


def test_minus_infinities_by_the_bias(backend):
    hidden, lm_head, table, _ = make(vocab=3000)
    bias = torch.zeros(3000)
    bias[5:1200] = bias[2048:] = -math.inf  # a part of the head that holds nothing else
    bias.requires_grad_()
    inputs = (hidden, lm_head, table, bias)
    ours = everything(fused, inputs, **OPTIONS)
    assert_exact(ours, inputs, **OPTIONS)
    for dhidden, dlm_head, _, dbias in (ours[3:7], ours[7:]):
        assert dhidden.isfinite().all()
        for x in (dlm_head, dbias):
            assert x[5:1200].eq(0).all()
            assert x[2048:].eq(0).all()


def test_tau_zero_takes_the_row_of_the_argmax(backend):
    # Two parts of 2048, peaks in both, and a rest.
    hidden, lm_head, table, bias = make(vocab=4100)
    with torch.no_grad():
        hidden[0] = torch.tensor([4.0, 0, 0, 0])
        hidden[2] = torch.tensor([0, 4.0, 0, 0])
        # Logits of 80 / T in two rows, one in each part: no noise comes up to them.
        hidden[1::2, :2] /= 20  # those of the others stay as they were
        lm_head[100, :2], lm_head[3000, :2] = torch.tensor([[20.0, -20.0], [-20.0, 20.0]])
    tau = torch.tensor([0.0, 0.5, 0.0, 0.5, 0.0, 0.5])
    ours = fused(hidden, lm_head, table, bias, **(OPTIONS | {"tau": tau}))
    logits = gumbel_softmax_embedding(
        head(hidden, lm_head, bias), torch.eye(4100), **(OPTIONS | {"tau": 0.0})
    )
    best = logits.embedding.argmax(-1)
    assert best[[0, 2]].tolist() == [100, 3000]
    assert torch.equal(ours.embedding[::2], table[best[::2]])
    (dtable,) = torch.autograd.grad(ours.embedding[::2].sum(), table, retain_graph=True)
    assert torch.equal(dtable, logits.embedding[::2].sum(0)[:, None].expand(4100, 3))
    assert ours.log_density[::2].eq(-math.inf).all()
    assert ours.log_density[1::2].isfinite().all()
    (dhidden,) = torch.autograd.grad(ours.embedding.sum(), hidden, retain_graph=True)
    assert dhidden[::2].eq(0).all()
    assert dhidden[1::2].ne(0).all()
    (dhidden,) = torch.autograd.grad(ours.log_density, hidden, torch.ones(6))
    assert dhidden[::2].eq(0).all()
    assert dhidden[1::2].ne(0).all()


# A logit of 1e7 is rounded to 1: were it formed anew a little larger, its weight would be e^1e4.
@pytest.mark.parametrize("tau", [1e-4, 1e-30])
def test_a_peak_that_is_rounded_otherwise_makes_no_large_weight(tau, backend):
    hidden, lm_head, table, _ = make(64, 96, 2053)
    hidden = (1e6 * hidden.detach()).requires_grad_()
    ours = everything(fused, (hidden, lm_head, table), tau=tau, chunk_size=64)
    for x in ours[3:6]:
        assert x.isfinite().all()
    weights = torch.autograd.grad(
        fused(hidden, lm_head, table, tau=tau).embedding[::7].sum(), table
    )[0][:, 0]
    # Ten rows, each with a weight of 1 in all.
    assert weights.max() <= 10
    torch.testing.assert_close(weights.sum(), torch.tensor(10.0))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_bad_rows(bad, backend, monkeypatch):
    hidden, lm_head, table, _ = (x.detach() for x in make(vocab=3000))
    lm_head = lm_head.abs()
    good = fused(hidden.abs(), lm_head, table, chunk_size=2)
    hidden = hidden.abs()
    hidden[3] = bad
    with pytest.raises(ValueError, match="logits of hidden: row 3 is all -inf, or holds NaN or"):
        fused(hidden, lm_head, table, chunk_size=2)
    monkeypatch.setattr(checks, "checks_enabled", lambda device: False)
    ours = fused(hidden, lm_head, table, chunk_size=2)
    for x, y in zip(ours, good, strict=True):
        assert x[3].isnan().all()
        torch.testing.assert_close(x[[0, 1, 2, 4, 5]], y[[0, 1, 2, 4, 5]])


def test_no_rows(backend):
    hidden, lm_head, table, bias = make()
    ours = fused(hidden[:0], lm_head, table, bias)
    assert ours.embedding.shape == (0, 3)
    assert ours.log_prob.shape == ours.log_density.shape == (0,)
    (ours.embedding.sum() + ours.log_prob.sum()).backward()
    for x in (lm_head, table, bias):
        assert x.grad.eq(0).all()


def test_noise_does_not_depend_on_the_batch(backend):
    hidden, lm_head, table, bias = make()
    rows = torch.tensor([4, 1])
    whole = fused(hidden, lm_head, table, bias, tau=0.5, chunk_size=4, **NOISE)
    options = NOISE | {"row_keys": KEYS[rows], "step": rows}
    part = fused(hidden[rows], lm_head, table, bias, tau=0.5, chunk_size=1, **options)
    for x, y in zip(part, whole, strict=True):
        torch.testing.assert_close(x, y[rows])
    again = fused(hidden, lm_head, table, bias, tau=0.5, chunk_size=4, **NOISE)
    for x, y in zip(again, whole, strict=True):
        assert torch.equal(x, y)


def test_inputs_of_any_layout(backend):
    inputs = make(vocab=2053)
    expected = everything(fused, inputs, **OPTIONS)
    turned = [transposed(x).requires_grad_() for x in inputs[:3]]
    sparse_bias = inputs[3].detach().repeat_interleave(2)[::2].requires_grad_()
    ours = everything(fused, (*turned, sparse_bias), **OPTIONS)
    for x in ours:
        assert x.is_contiguous()
    for x, y, z in zip(
        ours, expected, everything(dense, in_float64(inputs), **OPTIONS), strict=True
    ):
        if z is None:
            assert torch.equal(x, y)
        else:
            # What the layout decides is the order of products alone.
            assert_no_worse_than_plain(x, y, z, torch.float32, 2053)


def raw_arguments(hidden, lm_head, table, bias, chunk_size=4):
    one, zero = torch.ones(1, dtype=torch.float64), torch.tensor(0)
    noise = (one, one, zero, torch.arange(len(hidden)), zero[None], 8)
    return (hidden, lm_head, bias, None, table, *noise, chunk_size)


def test_rows_without_gradient_are_not_computed_in_backward(backend, monkeypatch):
    hidden, lm_head, table, bias = (x.detach() for x in make(vocab=2053))
    hidden[[0, 2, 3]] = math.nan  # would spread into the gradients of head and table
    upstream = torch.zeros(6, 3), torch.zeros(6), torch.zeros(6)
    upstream[0][1, 2] = upstream[1][4] = upstream[2][5] = 1
    monkeypatch.setattr(checks, "checks_enabled", lambda device: False)
    shared = raw_arguments(hidden, lm_head, table, bias)
    forward = kernel_of("linear_gumbel_softmax_embedding", backend)
    mixed, _, _, *known = forward(*shared, False)
    kernel = kernel_of("linear_gumbel_softmax_embedding_backward", backend)
    dhidden, *rest = kernel(*upstream, *shared, mixed, *known, True, True, True, True)
    assert dhidden[[0, 2, 3]].eq(0).all()
    assert dhidden[[1, 4, 5]].ne(0).all()
    for x in rest:
        assert x.isfinite().all()


# All but one of hidden states, head, table and bias are frozen; then all but two.
@pytest.mark.parametrize("trained", [{0}, {1}, {2}, {3}, {0, 2}, {1, 3}])
def test_frozen_inputs_get_no_gradient(trained, backend, monkeypatch):
    inputs = make()
    all_of_them = torch.autograd.grad(loss_of(fused(*inputs)), inputs)
    for position, x in enumerate(inputs):
        x.requires_grad_(position in trained)
    needs = []
    original = dispatch.load

    def load(op, name):
        kernel = original(op, name)
        if not op.endswith("backward"):
            return kernel
        return lambda *args: needs.append((*args[-2], args[-1])) or kernel(*args)

    monkeypatch.setattr(dispatch, "load", load)
    loss_of(fused(*inputs)).backward()
    assert needs == [tuple(i in trained for i in (0, 1, 3, 2))]
    for position, x in enumerate(inputs):
        assert (x.grad is not None) == (position in trained)
        if x.grad is not None:
            torch.testing.assert_close(x.grad, all_of_them[position])


@pytest.mark.parametrize("tied", [False, True])
def test_a_loss_without_a_mixture_needs_no_table(tied, backend):
    hidden, lm_head, table, _ = make(vocab=2053)
    ours = fused(hidden, lm_head, None if tied else table)
    leaves = (hidden, lm_head) if tied else (hidden, lm_head, table)
    grads = torch.autograd.grad(ours.log_prob.sum() + ours.log_density.sum(), leaves)
    expected = fused(hidden, lm_head, torch.zeros(2053, 1))
    wanted = torch.autograd.grad(expected.log_prob.sum() + expected.log_density.sum(), leaves[:2])
    assert_same(grads[:2], wanted)
    assert tied or grads[2].eq(0).all()


@pytest.mark.large
def test_chunks_bound_the_memory(backend):
    # Wider than any product's result, and than head and table.
    hidden, lm_head, table, _ = make(64, 2, 3000, 2)
    with torch.no_grad(), LargestTensor() as largest:
        fused(hidden, lm_head, table, chunk_size=3)
    # Four words per block of four ids.
    assert largest.numel <= 3 * 3000
    with LargestTensor() as largest:
        loss_of(fused(hidden, lm_head, table, chunk_size=3)).backward()
    assert largest.numel <= 3 * 3000


def test_autocast_casts_the_head_and_nothing_else(backend):
    hidden, lm_head, table, bias = inputs = make()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = fused(*inputs)
        tied = fused(hidden, lm_head, None, bias)
        grads = torch.autograd.grad(loss_of(ours), inputs)
    low = [x.detach().bfloat16().requires_grad_() for x in (hidden, lm_head, bias)]
    low_inputs = (low[0], low[1], table, low[2])
    expected = fused(*low_inputs)
    assert ours.embedding.dtype == torch.float32
    assert tied.embedding.dtype == torch.bfloat16
    for x, y in zip(ours, expected, strict=True):
        assert torch.equal(x, y)
    for x, y in zip(grads, torch.autograd.grad(loss_of(expected), low_inputs), strict=True):
        assert x.dtype == torch.float32
        assert torch.equal(x, y.float())


# Parts of a head of 2048 and a rest, and of less.
@pytest.mark.parametrize("cuts", [(0, 2060, 3100), (0, 8, 1020, 3100)])
def test_shards_of_the_vocabulary_make_the_whole(cuts, backend):
    hidden, lm_head, table, bias = (x.detach() for x in make(vocab=3100))
    bias[:8] = -math.inf
    tau = torch.tensor([0.5, 0.1, 0.3, 2.0, 1.0, 0.0], dtype=torch.float64)
    options = (tau, torch.ones(1, dtype=torch.float64), torch.tensor(3), KEYS, torch.tensor([7]))
    ops = torch.ops.lepo_kernels
    whole = (hidden, lm_head, bias, 30.0, table, *options, 8, 4)
    whole_outputs = ops.linear_gumbel_softmax_embedding(*whole, False, backend)
    shards = [
        (hidden, lm_head[x:y], bias[x:y], 30.0, table[x:y], *options, 8 + x, 4)
        for x, y in itertools.pairwise(cuts)
    ]
    outputs = [ops.linear_gumbel_softmax_embedding(*shard, True, backend) for shard in shards]
    ours = joined(outputs, cuts[:-1], tau)
    for x, y in zip(ours, whole_outputs, strict=True):
        torch.testing.assert_close(x.float(), y.float(), rtol=1e-5, atol=1e-5)
    upstream = (torch.randn(6, 3), torch.randn(6), torch.randn(6))
    needs = (True, True, True, True, backend)
    expected = ops.linear_gumbel_softmax_embedding_backward(
        *upstream, *whole, whole_outputs[0], *whole_outputs[3:], *needs
    )
    mixed, _, _, deviation, statistics = ours
    grads = []
    for shard, (start, stop) in zip(shards, itertools.pairwise(cuts), strict=True):
        peak, local = statistics[:, 4] - start, statistics.clone()
        local[:, 4] = peak.where((peak >= 0) & (peak < stop - start), -1)
        known = (mixed.float(), deviation.float(), local)
        grads.append(
            ops.linear_gumbel_softmax_embedding_backward(*upstream, *shard, *known, *needs)
        )
    dhidden, *rest = zip(*grads, strict=True)
    joined_grads = (torch.stack(dhidden).sum(0), *map(torch.cat, rest))
    assert_same(joined_grads, expected, rtol=1e-4, atol=1e-4)


def test_double_backward_is_refused(backend):
    hidden, lm_head, table, _ = make()
    loss = fused(hidden, lm_head, table).embedding.square().sum()
    (first,) = torch.autograd.grad(loss, hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives are not offered"):
        first.sum().backward()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("layout", [lambda x: x, transposed], ids=["contiguous", "transposed"])
@pytest.mark.parametrize("dtype", LOW_DTYPES)
def test_opcheck(dtype, layout, tied, backend):
    hidden, lm_head, table, bias = make(2, dtype=dtype)
    inputs = [layout(x).detach().requires_grad_() for x in (hidden, lm_head, table)]
    shared = raw_arguments(*inputs[:2], None if tied else inputs[2], bias)
    ops = torch.ops.lepo_kernels
    # The comparison of eager and traced gradients has no tolerance for half precision.
    utils = ("test_schema", "test_autograd_registration", "test_faketensor")
    if dtype == torch.float32:
        utils += ("test_aot_dispatch_dynamic",)
    torch.library.opcheck(
        ops.linear_gumbel_softmax_embedding.default, (*shared, False, backend), test_utils=utils
    )
    frozen = [x.detach() if isinstance(x, torch.Tensor) else x for x in shared]
    mixed, _, _, *known = ops.linear_gumbel_softmax_embedding(*frozen, False, backend)
    upstream = (layout(torch.randn_like(mixed)), torch.ones(2), torch.ones(2))
    for needs in itertools.product((False, True), repeat=4):
        torch.library.opcheck(
            ops.linear_gumbel_softmax_embedding_backward.default,
            (*upstream, *frozen, mixed, *known, *needs, backend),
            test_utils=("test_schema", "test_faketensor"),
        )


@pytest.mark.parametrize("tied", [False, True])
def test_compiled_is_eager_bitwise(tied, backend):
    hidden, lm_head, table, bias = make()
    inputs = (hidden, lm_head, bias) if tied else (hidden, lm_head, bias, table)

    def step(seed, hidden, lm_head, bias, *tables):
        ours = fused(hidden, lm_head, tables[0] if tables else None, bias, softcap=3.0, seed=seed)
        return loss_of(ours) + ours.log_density.sum()

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for seed in (torch.tensor(0), torch.tensor(4)):
        ours, eager = compiled(seed, *inputs), step(seed, *inputs)
        assert torch.equal(ours, eager)
        grads = (torch.autograd.grad(x, inputs) for x in (ours, eager))
        for x, y in zip(*grads, strict=True):
            assert torch.equal(x, y)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"hidden": torch.zeros(3)}, ValueError, r"hidden: expected shape \[N, D\]"),
        ({"lm_head": torch.zeros(5, 4)}, ValueError, r"lm_head: expected shape \[V, 2\]"),
        ({"lm_head": torch.zeros(0, 2)}, ValueError, "lm_head.shape.0.: expected an int in"),
        ({"lm_head": torch.zeros(5, 2).half()}, TypeError, "lm_head: expected dtype float32"),
        ({"embedding": torch.zeros(4, 3)}, ValueError, r"embedding: expected shape \[5, D\]"),
        ({"embedding": torch.zeros(5, 3).int()}, TypeError, "embedding: expected dtype float32"),
        ({"bias": torch.zeros(4)}, ValueError, r"bias: expected shape \[5\], got \[4\]"),
        ({"softcap": 0.0}, ValueError, "softcap: expected a number in"),
        ({"tau": -0.1}, ValueError, "tau: expected a number in"),
        ({"tau": torch.tensor(-1.0)}, ValueError, "tau: expected finite"),
        ({"temperature": torch.tensor(-1.0)}, ValueError, "temperature: expected finite numbers"),
        ({"step": torch.tensor(2**32)}, ValueError, "step: expected values in"),
        ({"row_keys": torch.arange(3)}, ValueError, r"row_keys: expected shape \[2\]"),
        ({"first_id": 6}, ValueError, "first_id: expected a multiple of 4, got 6"),
        ({"chunk_size": 0}, ValueError, "chunk_size: expected an int in"),
    ],
)
def test_errors_name_the_argument(change, error, message, backend):
    good = {"hidden": torch.zeros(2, 2), "lm_head": torch.zeros(5, 2)}
    arguments = good | {"embedding": torch.zeros(5, 3), "tau": 0.5}
    with pytest.raises(error, match=message):
        linear_gumbel_softmax_embedding(**(arguments | change))
