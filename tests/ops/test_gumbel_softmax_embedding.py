"""The dense Gumbel-softmax mixture against the dense expression and torch's own autograd.

What takes the fixture ``backend`` is the contract, and runs on every backend.
"""

import itertools
import math

import pytest
import torch

from lepo_kernels import dispatch, gumbel_noise, gumbel_softmax_embedding
from lepo_kernels.backends import checks
from lepo_kernels.backends.reference import numerics
from lepo_kernels.backends.reference.gumbel_softmax_embedding import log_density_of
from lepo_kernels.formulas.scores import exp_concrete_log_density
from tests.ops.helpers import LOW_DTYPES, LargestTensor, kernel_of, transposed
from tests.seeds import seeded
from tests.tolerances import assert_no_worse_than_plain


def plain(logits, embedding, tau, temperature=1.0, seed=0, row_keys=None, step=0, first_id=0):
    """The same from precomputed noise and weights, in the dtype of the inputs."""
    rows, vocab = logits.shape
    keys = torch.arange(rows) if row_keys is None else row_keys
    wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
    noise = gumbel_noise(seed, keys, step, first_id + torch.arange(vocab), dtype=wide)
    tau, temperature = (
        x[:, None].to(logits.dtype) if isinstance(x, torch.Tensor) else x
        for x in (tau, temperature)
    )
    a = logits / temperature
    z = torch.softmax((a + noise.to(a.dtype)) / tau, -1)
    log_pi = torch.log_softmax(a, -1)
    log_prob = (z.detach() * log_pi.masked_fill(log_pi == -math.inf, 0)).sum(-1)
    return z.to(embedding.dtype) @ embedding, log_prob, plain_log_density(a, noise, tau)


def plain_log_density(a, noise, tau):
    """By the expression for any scores, at ``a + noise``. A constant per entry cancels there."""
    kept = a > -math.inf
    constant = a.detach().masked_fill(~kept, 0)
    scores = noise.to(a.dtype).masked_fill(~kept, -math.inf)
    density = exp_concrete_log_density(a - constant, scores, 1.0)
    log_tau = torch.as_tensor(tau, dtype=torch.float64).log().reshape(-1)
    return (density + (kept.sum(-1) - 1) * log_tau).to(noise.dtype)


def make(rows=5, vocab=11, width=3, dtype=torch.float32, seed=0, scale=1.0):
    torch.manual_seed(seeded(seed))
    logits = (scale * torch.randn(rows, vocab)).to(dtype).requires_grad_()
    embedding = torch.randn(vocab, width).to(dtype).requires_grad_()
    return logits, embedding


def loss_of(outputs):
    """Gives every entry of the first two outputs an upstream gradient of its own.

    The gradient of a log-density is much larger than the others, and would hide their errors.
    """
    mixed, log_prob, _ = outputs
    ramp = torch.linspace(-1, 1, mixed.numel(), dtype=torch.float64).reshape(mixed.shape)
    return (mixed.double() * ramp).sum() + (log_prob.double() * torch.arange(len(log_prob))).sum()


def everything(function, inputs, *args, **kwargs):
    """Mixtures, log-probabilities, log-densities and both gradients of the loss."""
    outputs = function(*inputs, *args, **kwargs)
    return *outputs, *torch.autograd.grad(loss_of(outputs), inputs)


def in_float64(inputs):
    return tuple(x.detach().double().requires_grad_() for x in inputs)


def magnitudes(inputs, tau, temperature=1.0, seed=0, row_keys=None, step=0, first_id=0):
    """What `everything` sums up, in magnitude: how large its terms are, whatever cancels."""
    logits, embedding = (x.detach().double() for x in inputs)
    rows, vocab = logits.shape
    keys = torch.arange(rows) if row_keys is None else row_keys
    noise = gumbel_noise(seed, keys, step, first_id + torch.arange(vocab), dtype=torch.float64)
    tau, temperature = (torch.as_tensor(x).double().reshape(-1, 1) for x in (tau, temperature))
    a = logits / temperature
    z, lse = ((a + noise) / tau).softmax(-1), a.logsumexp(-1, keepdim=True)
    finite = a.masked_fill(a == -math.inf, 0)
    mixed, log_prob = z @ embedding.abs(), (z * (finite.abs() + lse.abs())).sum(-1)
    ramp = torch.linspace(-1, 1, mixed.numel(), dtype=torch.float64).reshape(mixed.shape).abs()
    pull = ramp @ embedding.abs().T + (mixed * ramp).sum(-1, keepdim=True)
    share = torch.arange(rows)[:, None] * (z + a.softmax(-1))
    dlogits = (z * pull / tau + share) / temperature
    # A log-density is a sum of m numbers of about 1 for a row of m entries.
    density = (a > -math.inf).sum(-1).double()
    return mixed, log_prob, density, dlogits, z.T @ ramp


def assert_as_good_as_plain(inputs, *args, **kwargs):
    """Elementwise, for outputs and gradients, against the dense expression in float64."""
    ours = everything(gumbel_softmax_embedding, inputs, *args, **kwargs)
    rounded = everything(plain, inputs, *args, **kwargs)
    oracle = everything(plain, in_float64(inputs), *args, **kwargs)
    logits, embedding = (x.dtype for x in inputs)
    assert [x.dtype for x in ours] == [
        embedding,
        torch.float32,
        torch.float32,
        logits,
        embedding,
    ]
    sizes = magnitudes(inputs, *args, **kwargs)
    for x, y, z, size in zip(ours, rounded, oracle, sizes, strict=True):
        assert_no_worse_than_plain(x, y, z, x.dtype, max(inputs[0].shape), size)


OPTIONS = {
    "tau": torch.tensor([0.6, 0.2, 3.0, 1.0, 0.5]),
    "temperature": torch.tensor([1.4, 1.0, 0.3, 2.0, 1.0]),
    "seed": 5,
    "row_keys": torch.tensor([3, -1, 2**40, 8, 0]),
    "step": torch.tensor([1, 2, 3, 4, 5]),
}


# V = 97, no multiple of 4, so that a cut noise block counts; D = 16.
@pytest.mark.parametrize("table_dtype", LOW_DTYPES)
@pytest.mark.parametrize("dtype", LOW_DTYPES)
def test_error_is_no_worse_than_plain_torch(dtype, table_dtype, backend):
    logits, _ = make(33, 97, dtype=dtype, scale=2)
    _, embedding = make(1, 97, 16, dtype=table_dtype, seed=1)
    if dtype == table_dtype:
        assert_as_good_as_plain((logits, embedding), 0.5)
        return
    # Plain torch knows no product of two dtypes: the coarser of them is its part.
    ours = everything(gumbel_softmax_embedding, (logits, embedding), 0.5)
    coarse = torch.bfloat16 if torch.bfloat16 in (dtype, table_dtype) else torch.float16
    same = tuple(x.detach().to(coarse).requires_grad_() for x in (logits, embedding))
    rounded = everything(plain, same, 0.5)
    oracle = everything(plain, in_float64((logits, embedding)), 0.5)
    assert [x.dtype for x in ours] == [
        table_dtype,
        torch.float32,
        torch.float32,
        dtype,
        table_dtype,
    ]
    # The upstream gradient of a half-precision mixture is rounded, too.
    sizes = magnitudes((logits, embedding), 0.5)
    for x, y, z, size in zip(ours, rounded, oracle, sizes, strict=True):
        assert_no_worse_than_plain(x, y, z, coarse, 97, size)


def large(*sizes):
    return pytest.param(*sizes, marks=pytest.mark.large)


@pytest.mark.parametrize(
    ("rows", "vocab", "width"),
    [
        (1, 1, 1),  # the smallest of all
        (8, 2, 1),  # less than a block of noise; of eight rows, some are not one-hot
        (64, 7, 3),  # a cut block of noise, many rows
        (3, 1000, 5),  # less than a tile of 1024
        (3, 1025, 5),  # one entry in the second tile
        large(1030, 130, 2),  # more rows than a block of 1024
        (2, 30, 8192),  # a wide table
        large(1, 49152, 2),  # the vocabulary of SmolLM2: one row, several chunks
        large(3, 128256, 2),  # of Llama 3
        large(1, 151936, 2),  # of Qwen 2.5
        large(1, 262144, 2),  # of Gemma 3
    ],
)
def test_shapes(rows, vocab, width, backend):
    assert_as_good_as_plain(make(rows, vocab, width), 0.5)


# The product of large shapes. The largest noise of so many entries is about 13, which float32 holds
# to 1e-6: tau = 2 keeps that from being most of the error, on either side. A positive table keeps
# mixtures as large as what they are summed from. What such long sums lose to chance falls on other
# entries on either side, so it is the largest errors that are compared.
@pytest.mark.slow
@pytest.mark.usefixtures("fast_backend")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocab", [49152, 128256, 151936, 262144])
def test_large_shapes(vocab, dtype):
    logits, embedding = make(64, vocab, 8, dtype=dtype)
    inputs = (logits, embedding.detach().abs_().requires_grad_())
    ours = everything(gumbel_softmax_embedding, inputs, 2.0)
    rounded = everything(plain, inputs, 2.0)
    oracle = everything(plain, in_float64(inputs), 2.0)
    for x, y, z in zip(ours, rounded, oracle, strict=True):
        units = 4 if x.dtype == torch.float32 else 1
        allowed = (y - z).abs().max() + units * torch.finfo(x.dtype).eps * z.abs().max()
        assert (x - z).abs().max() <= allowed


def test_every_row_has_its_own_options(backend):
    assert_as_good_as_plain(make(vocab=1100), **OPTIONS)


# Nearly flat, ordinary, and one-hot rows, where a gradient is a difference of close numbers. Four
# rows: the table's gradient is their sum, and of more rows it may be much smaller than its terms.
@pytest.mark.parametrize("tau", [0.01, 0.3, 3.0])
@pytest.mark.parametrize("scale", [1e-4, 10.0, 1e4])
def test_peaked_and_flat_rows(scale, tau, backend):
    assert_as_good_as_plain(make(4, 1100, 8, scale=scale), tau)


def test_nearly_one_hot_rows_have_gradients_of_full_relative_accuracy(backend):
    logits, embedding = make(20, 40, 1)
    with torch.no_grad():
        logits[:, 7] += 22  # all others weigh about exp(-20 / 1.2) = 6e-8 each
        embedding.abs_()
    exact = in_float64((logits, embedding))
    ours = gumbel_softmax_embedding(logits, embedding, 1.2).embedding.sum()
    (dlogits,) = torch.autograd.grad(ours, logits)
    (expected,) = torch.autograd.grad(plain(*exact, 1.2)[0].sum(), exact[0])
    # e and E_peak differ in their last two digits: their difference would leave errors of percents.
    torch.testing.assert_close(dlogits.double(), expected, rtol=1e-4, atol=1e-12)


# Chunks of one row, of 2 with a last one of 1, and of all 5; V = 2 and 7 leave cut noise blocks.
@pytest.mark.parametrize("chunk_rows", [1, 2, 5])
@pytest.mark.parametrize("vocab", [2, 7, 1000])
def test_reference_in_float64_is_the_dense_expression(vocab, chunk_rows, monkeypatch):
    monkeypatch.setattr(numerics, "_CHUNK_ENTRIES", chunk_rows * vocab)
    inputs = make(vocab=vocab, dtype=torch.float64)
    options = OPTIONS | {"tau": OPTIONS["tau"].double()}
    options |= {"temperature": OPTIONS["temperature"].double()}
    ours = everything(gumbel_softmax_embedding, inputs, **options)
    expected = everything(plain, inputs, **options)
    for x, y in zip(ours, expected, strict=True):
        torch.testing.assert_close(x, y)


def mixture(logits, embedding):
    return gumbel_softmax_embedding(logits, embedding, 0.7, temperature=0.8).embedding


def test_gradcheck():
    assert torch.autograd.gradcheck(mixture, make(dtype=torch.float64))


# Hundreds of calls.
@pytest.mark.large
@pytest.mark.filterwarnings("ignore:Input #. requires gradient and is not a double")
def test_gradcheck_in_float32(backend):
    # A step of 1e-2 leaves rounding of 2^-24 / 1e-2 = 6e-6 and a cubic term of about 1e-4 times the
    # third derivative, which tau = 0.7 and T = 0.8 make a few times larger than 1.
    assert torch.autograd.gradcheck(mixture, make(3, 6, 2), eps=1e-2, atol=2e-3, rtol=1e-2)


def test_log_prob_takes_the_weights_for_constants(backend):
    logits, embedding = make()
    ours = gumbel_softmax_embedding(logits, embedding, 0.5, seed=2)
    dlogits, dembedding = torch.autograd.grad(
        ours.log_prob.sum(), (logits, embedding), allow_unused=True
    )
    noise = gumbel_noise(2, torch.arange(5), 0, torch.arange(11), dtype=torch.float64)
    z = ((logits.double() + noise) / 0.5).softmax(-1)
    expected = z - logits.double().softmax(-1)
    torch.testing.assert_close(dlogits.double(), expected, rtol=1e-5, atol=1e-6)
    assert dembedding is None or dembedding.eq(0).all()


# Two entries, three tiles of 1024 of which the last one is cut, and the vocabulary of Gemma 3.
@pytest.mark.parametrize(
    ("rows", "vocab", "dtype"),
    [
        (8, 2, torch.float32),
        (3, 2049, torch.float32),
        (3, 2049, torch.bfloat16),
        (3, 2049, torch.float16),
        large(2, 262144, torch.float32),
    ],
)
def test_log_density_is_that_of_the_scores(rows, vocab, dtype, backend):
    logits, embedding = make(rows, vocab, 1, dtype=dtype)
    exact = logits.detach().double().requires_grad_()
    # The float32 numbers: where the uniform ones are close to 1, those are a good deal off.
    noise = gumbel_noise(3, torch.arange(rows), 0, torch.arange(vocab)).double()
    tempered = exact / 0.7
    expected = exp_concrete_log_density(tempered, (tempered + noise).detach(), 0.4)
    ours = gumbel_softmax_embedding(logits, embedding, 0.4, temperature=0.7, seed=3).log_density
    # The errors of m float32 terms of about 1, and the rounding of the result.
    allowed = 1e-7 * vocab + 2.0**-24 * expected.abs().max()
    assert (ours.double() - expected).abs().max() <= allowed
    upstream = torch.linspace(-1, 1, rows)
    (dlogits,) = torch.autograd.grad(ours, logits, upstream)
    (wanted,) = torch.autograd.grad(expected, exact, upstream.double())
    assert dlogits.dtype == dtype
    # A number of about log V has a few roundings, of its own and of the logarithm that it is of.
    allowed = (torch.finfo(dtype).eps / 2 + 2.0**-20) * wanted.abs().max()
    assert (dlogits.double() - wanted).abs().max() <= allowed


def test_log_density_has_its_gradient_beside_the_others(backend):
    inputs = make(vocab=1100)
    ours = gumbel_softmax_embedding(*inputs, **OPTIONS)
    parts = [
        torch.autograd.grad(loss, inputs, retain_graph=True)
        for loss in (loss_of(ours), ours.log_density.sum(), loss_of(ours) + ours.log_density.sum())
    ]
    for apart, beside, both in zip(*parts, strict=True):
        torch.testing.assert_close(both, apart + beside)
    assert parts[1][0].ne(0).all()
    assert parts[1][1].eq(0).all()


def test_entries_without_a_density(backend):
    logits, embedding = make(vocab=1100)
    with torch.no_grad():
        logits[1, 1:] = logits[2, 2:1090] = -math.inf
    tau = torch.tensor([0.0, 0.0, 0.0, 1e-39, 0.5], dtype=torch.float64)
    ours = gumbel_softmax_embedding(logits, embedding, tau).log_density
    assert ours[[0, 2, 3]].eq(-math.inf).all()
    assert ours[1] == 0  # one entry: a constant
    assert ours[4].isfinite()
    (dlogits,) = torch.autograd.grad(ours, logits, torch.ones(5))
    assert dlogits[:4].eq(0).all()
    assert dlogits[4].ne(0).all()
    soft = gumbel_softmax_embedding(logits, embedding, 0.5).log_density
    (dlogits,) = torch.autograd.grad(soft, logits, torch.ones(5))
    assert soft[1] == 0
    assert dlogits[1].eq(0).all()
    assert dlogits[2, 2:1090].eq(0).all()
    # A density of 12 entries sums up to their number, less that of the entries.
    torch.testing.assert_close(dlogits.sum(-1), torch.zeros(5), atol=1e-3, rtol=0)


@pytest.mark.parametrize("first_id", [4, 1020, 2**26 - 1100])
def test_noise_goes_by_id(first_id, backend):
    inputs = make(3, 1100)
    ours = everything(gumbel_softmax_embedding, inputs, 0.5, first_id=first_id)
    rounded = everything(plain, inputs, 0.5, first_id=first_id)
    oracle = everything(plain, in_float64(inputs), 0.5, first_id=first_id)
    sizes = magnitudes(inputs, 0.5, first_id=first_id)
    for x, y, z, size in zip(ours, rounded, oracle, sizes, strict=True):
        assert_no_worse_than_plain(x, y, z, x.dtype, max(inputs[0].shape), size)


def joined(shards, starts, tau):
    """The outputs of the whole, of those of the op on its shards, as the op's docstring has it."""
    mixed, log_prob, _, deviation, statistics = (torch.stack(x) for x in zip(*shards, strict=True))
    mixed, log_prob, deviation = mixed.double(), log_prob.double(), deviation.double()
    empty = statistics[..., 5] == 0
    q, z_scale, a, pi_scale, peak, support, inv_sum, log_sum = statistics.unbind(-1)
    q_top, a_top = (x.masked_fill(empty, -math.inf).amax(0) for x in (q, a))
    # Of equal numbers, argmax finds the first.
    p = q.masked_fill(empty, -math.inf).argmax(0)
    in_p = torch.arange(len(shards))[:, None] == p
    hard = tau.float() < torch.finfo(torch.float32).tiny
    share = torch.where(hard, 0.0, ((q - q_top) / tau).exp() / z_scale).masked_fill(empty, 0)
    share = torch.where(hard & in_p, 1.0, share)
    scale = 1 / share.sum(0)
    weight = share * scale
    mass = ((a - a_top).exp() / pi_scale).masked_fill(empty, 0).sum(0)
    parts = weight * (log_prob - pi_scale.log() + a - a_top)
    log_prob = parts.masked_fill(weight == 0, 0).sum(0) - mass.log()
    peak_id = (torch.as_tensor(starts)[:, None] + peak).gather(0, p[None])[0]
    whole = torch.stack(
        (
            q_top,
            scale,
            a_top,
            1 / mass,
            peak_id,
            support.sum(0),
            1 / (1 / inv_sum).masked_fill(empty, 0).sum(0),
            log_sum.masked_fill(empty, 0).sum(0),
        ),
        dim=-1,
    )

    def at_p(x):
        return x.masked_fill(~in_p[..., None], 0).sum(0)

    peaks = at_p(mixed - deviation)
    rest = torch.where(in_p[..., None], deviation, mixed) * weight[..., None]
    rest = rest.masked_fill(weight[..., None] == 0, 0).sum(0)
    beside = weight.masked_fill(in_p, 0).sum(0)
    mixed = rest + at_p(weight[..., None].expand_as(mixed)) * peaks
    log_density = log_density_of(whole, tau, torch.float32)
    return mixed, log_prob, log_density, rest - beside[:, None] * peaks, whole


# Shards of two tiles and one of 1024, a cut last one; of less than a tile; and two.
@pytest.mark.parametrize("cuts", [(0, 2048, 3072, 3100), (0, 4, 1020, 3100), (0, 3096, 3100)])
def test_shards_of_the_vocabulary_make_the_whole(cuts, backend):
    logits, embedding = (x.detach() for x in make(6, 3100, 5, scale=3))
    logits[1, :4] = logits[2, 4:] = logits[3, 2048:3096] = -math.inf
    logits[4, [700, 3097]] = 1e30  # tied, in different shards or in the same
    tau = torch.tensor([0.5, 0.1, 0.3, 2.0, 1.0, 0.0], dtype=torch.float64)
    noise = (torch.tensor(3), torch.arange(6), torch.tensor([7]))
    ops = torch.ops.lepo_kernels
    options = (tau, torch.full((1,), 0.8, dtype=torch.float64), *noise)
    whole = ops.gumbel_softmax_embedding(logits, embedding, *options, 8, False, backend)
    parts = [slice(*x) for x in itertools.pairwise(cuts)]
    shards = [
        ops.gumbel_softmax_embedding(
            logits[:, part], embedding[part], *options, 8 + part.start, True, backend
        )
        for part in parts
    ]
    ours = joined(shards, cuts[:-1], tau)
    for x, y in zip(ours, whole, strict=True):
        torch.testing.assert_close(x.float(), y.float(), rtol=1e-5, atol=1e-6)
    assert torch.equal(ours[4][:, 4:6], whole[4][:, 4:6])
    torch.manual_seed(seeded(1))
    upstream = (torch.randn(6, 5), torch.randn(6), torch.randn(6))
    mixed, _, _, deviation, statistics = ours
    known = (mixed.float(), deviation.float())
    grads = []
    for part in parts:
        peak = statistics[:, 4] - part.start
        inside = (peak >= 0) & (peak < part.stop - part.start)
        local = statistics.clone()
        local[:, 4] = peak.where(inside, -1)
        grads.append(
            ops.gumbel_softmax_embedding_backward(
                *upstream, logits[:, part], embedding[part], *options, 8 + part.start,
                *known, local, True, True, backend,
            )
        )  # fmt: skip
    expected = ops.gumbel_softmax_embedding_backward(
        *upstream, logits, embedding, *options, 8, whole[0], *whole[3:], True, True, backend
    )
    dlogits, dembedding = zip(*grads, strict=True)
    torch.testing.assert_close(torch.cat(dlogits, 1), expected[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(torch.cat(dembedding), expected[1], rtol=1e-5, atol=1e-6)


def test_tau_zero_takes_the_row_of_the_argmax(backend):
    logits, embedding = make(rows=20)
    noise = gumbel_noise(0, torch.arange(20), 0, torch.arange(11), dtype=torch.float64)
    best = (logits + noise).argmax(-1)
    ours = gumbel_softmax_embedding(logits, embedding, 0.0)
    assert torch.equal(ours.embedding, embedding[best])
    log_pi = logits.double().log_softmax(-1).gather(1, best[:, None])[:, 0]
    torch.testing.assert_close(ours.log_prob.double(), log_pi, rtol=1e-5, atol=1e-6)
    dlogits, dembedding = torch.autograd.grad(ours.embedding.sum(), (logits, embedding))
    assert dlogits.eq(0).all()
    counts = torch.bincount(best, minlength=11).float()
    assert torch.equal(dembedding, counts[:, None].expand(11, 3))
    mixed = gumbel_softmax_embedding(logits, embedding, torch.tensor([0.0, 0.5]).repeat(10))
    torch.testing.assert_close(mixed.embedding[0::2], ours.embedding[0::2])
    torch.testing.assert_close(mixed.embedding[1::2], plain(logits, embedding, 0.5)[0][1::2])


def test_log_prob_has_its_gradient_at_tau_zero(backend):
    logits, embedding = make(vocab=1100)
    noise = gumbel_noise(0, torch.arange(5), 0, torch.arange(1100), dtype=torch.float64)
    hard = torch.nn.functional.one_hot((logits + noise).argmax(-1), 1100)
    ours = gumbel_softmax_embedding(logits, embedding, 0.0)
    (dlogits,) = torch.autograd.grad(ours.log_prob.sum(), logits)
    expected = hard - logits.double().softmax(-1)
    torch.testing.assert_close(dlogits.double(), expected, rtol=1e-5, atol=1e-6)


# In a vector of lanes, in another vector of the tile, in another tile of 1024, in another chunk.
@pytest.mark.large
@pytest.mark.parametrize("second", [701, 900, 2100, 40000])
def test_ties(second, backend):
    logits, embedding = make(2, 49152, 2)
    with torch.no_grad():
        # No noise is left in float32 beside 1e30, nor in float64.
        logits[:, [700, second]] = 1e30
    hard = gumbel_softmax_embedding(logits, embedding, 0.0)
    assert torch.equal(hard.embedding, embedding[700].expand(2, 2))
    torch.testing.assert_close(hard.log_prob, torch.full((2,), -math.log(2)))
    assert_as_good_as_plain((logits, embedding), 0.5)


# Below what float32 can divide by, and below what it can hold at all.
@pytest.mark.parametrize("tau", [1e-39, 1e-50])
def test_a_tau_too_small_for_float32_is_zero(tau, backend):
    ours, hard = (everything(gumbel_softmax_embedding, make(), t) for t in (tau, 0.0))
    for x, y in zip(ours, hard, strict=True):
        assert torch.equal(x, y)


def test_the_smallest_tau_that_is_not_zero(backend):
    inputs = make()
    ours, hard = (everything(gumbel_softmax_embedding, inputs, t) for t in (2e-38, 0.0))
    for i, (x, y) in enumerate(zip(ours, hard, strict=True)):
        if i != 2:  # the log-density, (m - 1) log tau and more
            torch.testing.assert_close(x, y)
    assert ours[2].isfinite().all()


def test_minus_infinities_never_make_nan(backend):
    logits, embedding = make(vocab=3000)  # three tiles, the last one all -inf
    with torch.no_grad():
        logits[:, 3:1500] = -math.inf
        logits[:, 1600:] = -math.inf
        logits[0, :2] = logits[0, 3:] = -math.inf  # a single survivor
    ours, expected = (f(logits, embedding, 0.5) for f in (gumbel_softmax_embedding, plain))
    for x, y in zip(ours, expected, strict=True):
        torch.testing.assert_close(x, y)
    assert ours.log_prob[0] == 0
    assert torch.equal(ours.embedding[0], embedding[2])
    dlogits, _ = torch.autograd.grad(loss_of(ours), (logits, embedding))
    assert dlogits[:, 3:1500].eq(0).all()
    assert dlogits[:, 1600:].eq(0).all()
    assert dlogits[0].eq(0).all()
    assert dlogits.isfinite().all()


# The row as a whole, or one entry of it: in the first tile of 1024 or in the last.
@pytest.mark.parametrize(
    ("bad", "where"),
    [
        (-math.inf, slice(None)),
        *((bad, where) for bad in (math.nan, math.inf) for where in (slice(None), 5, 2900)),
    ],
)
def test_bad_rows(bad, where, backend, monkeypatch):
    logits, embedding = (x.detach() for x in make(vocab=3000))
    good = gumbel_softmax_embedding(logits, embedding, 0.5)
    logits[3, where] = bad
    with pytest.raises(ValueError, match="logits: row 3 is all -inf, or holds NaN or"):
        gumbel_softmax_embedding(logits, embedding, 0.5)
    monkeypatch.setattr(checks, "checks_enabled", lambda device: False)
    ours = gumbel_softmax_embedding(logits, embedding, 0.5)
    for x, y in zip(ours, good, strict=True):
        assert x[3].isnan().all()
        torch.testing.assert_close(x[[0, 1, 2, 4]], y[[0, 1, 2, 4]])


def test_nan_beside_minus_infinities_is_seen(backend):
    logits, embedding = (x.detach() for x in make(vocab=3000))
    logits[2, :1024] = -math.inf  # a tile whose only other entry is NaN
    logits[2, 7] = math.nan
    with pytest.raises(ValueError, match="logits: row 2 is all -inf, or holds NaN or"):
        gumbel_softmax_embedding(logits, embedding, 0.5)


def test_no_rows(backend):
    logits, embedding = make()
    ours = gumbel_softmax_embedding(logits[:0], embedding, 0.5)
    assert ours.embedding.shape == (0, 3)
    assert ours.log_prob.shape == (0,)
    ours.embedding.sum().backward()
    assert embedding.grad.eq(0).all()


def test_a_row_does_not_depend_on_its_batch(backend):
    logits, embedding = make(rows=6)
    keys, rows = torch.tensor([9, 4, -2, 0, 7, 1]), torch.tensor([4, 1])
    whole = gumbel_softmax_embedding(logits, embedding, 0.5, row_keys=keys)
    part = gumbel_softmax_embedding(logits[rows], embedding, 0.5, row_keys=keys[rows])
    for x, y in zip(part, whole, strict=True):
        torch.testing.assert_close(x, y[rows])
    again = gumbel_softmax_embedding(logits, embedding, 0.5, row_keys=keys)
    for x, y in zip(again, whole, strict=True):
        assert torch.equal(x, y)


# V = 1030: rows of the slice end inside a vector. NaN around them must not be read.
@pytest.mark.parametrize("dtype", LOW_DTYPES)
def test_inputs_of_any_layout(dtype, backend):
    logits, embedding = make(vocab=1030, dtype=dtype)
    around = torch.full((5, 1050), math.nan, dtype=dtype)
    around[:, 3:1033] = logits.detach()
    sliced = around[:, 3:1033].requires_grad_()
    dense = everything(gumbel_softmax_embedding, (logits, embedding), 0.5)
    for x, y in (
        (sliced, embedding),
        (transposed(logits).requires_grad_(), transposed(embedding).requires_grad_()),
    ):
        ours = everything(gumbel_softmax_embedding, (x, y), 0.5)
        for part, expected in zip(ours, dense, strict=True):
            assert part.is_contiguous()
            torch.testing.assert_close(part, expected)


def test_one_row_for_all(backend):
    logits, embedding = make(rows=1)
    ours = gumbel_softmax_embedding(logits.expand(4, -1), embedding, 0.5)
    dense = gumbel_softmax_embedding(logits.repeat(4, 1), embedding, 0.5)
    for x, y in zip(ours, dense, strict=True):
        assert torch.equal(x, y)


def test_noise_and_weights_exist_for_one_chunk_at_a_time(monkeypatch):
    logits, embedding = make(rows=64, vocab=50, dtype=torch.float64)
    monkeypatch.setattr(numerics, "_CHUNK_ENTRIES", 4 * 50)
    with torch.no_grad(), LargestTensor() as largest:
        gumbel_softmax_embedding(logits, embedding, 0.5)
    # Four words per block of four ids, the last block whole: 52 per row. Eight statistics per row.
    assert largest.numel <= max(4 * 52, 64 * 8)


def raw_arguments(logits, embedding):
    one, zero = torch.ones(1, dtype=torch.float64), torch.tensor(0)
    return (logits, embedding, one, one, zero, torch.arange(len(logits)), zero[None], 0)


def test_rows_without_gradient_are_not_computed_in_backward(backend, monkeypatch):
    logits, embedding = (x.detach() for x in make(6))
    logits[[0, 2, 3]] = math.nan  # would spread into the gradient of the table
    upstream = torch.zeros(6, 3), torch.zeros(6), torch.zeros(6)
    upstream[0][1, 2] = upstream[1][4] = upstream[2][5] = 1
    monkeypatch.setattr(checks, "checks_enabled", lambda device: False)
    shared = raw_arguments(logits, embedding)
    mixed, _, _, *known = kernel_of("gumbel_softmax_embedding", backend)(*shared, False)
    kernel = kernel_of("gumbel_softmax_embedding_backward", backend)
    dlogits, dembedding = kernel(*upstream, *shared, mixed, *known, True, True)
    assert dlogits[[0, 2, 3]].eq(0).all()
    assert dlogits[[1, 4, 5]].ne(0).all()
    assert dembedding.isfinite().all()


@pytest.mark.parametrize("trained", [{0}, {1}])
def test_frozen_inputs_get_no_gradient(trained, backend, monkeypatch):
    inputs = make()
    both = everything(gumbel_softmax_embedding, inputs, 0.5)[3:]
    for position, x in enumerate(inputs):
        x.requires_grad_(position in trained)
    needs = []
    original = dispatch.load

    def load(op, name):
        kernel = original(op, name)
        if not op.endswith("backward"):
            return kernel
        return lambda *args: needs.append(args[-2:]) or kernel(*args)

    monkeypatch.setattr(dispatch, "load", load)
    loss_of(gumbel_softmax_embedding(*inputs, 0.5)).backward()
    assert needs == [(0 in trained, 1 in trained)]
    for position, x in enumerate(inputs):
        assert (x.grad is not None) == (position in trained)
        if x.grad is not None:
            torch.testing.assert_close(x.grad, both[position])


def test_autocast_does_not_reach_the_kernel(backend):
    inputs = make()
    base = everything(gumbel_softmax_embedding, inputs, 0.5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = everything(gumbel_softmax_embedding, inputs, 0.5)
    for x, y in zip(ours, base, strict=True):
        assert torch.equal(x, y)


# As where logits are formed anew, a little off: 1e30 beside a largest q of 0.99e30.
def test_no_weight_exceeds_that_of_the_peak(backend):
    logits, embedding = (x.detach() for x in make(2, 1100, 3))
    logits[:, [7, 1050]] = 1e30
    shared = raw_arguments(logits, embedding)
    mixed, _, _, deviation, statistics = kernel_of("gumbel_softmax_embedding", backend)(
        *shared, False
    )
    statistics[:, [0, 2]] *= 0.99
    kernel = kernel_of("gumbel_softmax_embedding_backward", backend)
    upstream = torch.ones(2, 3), torch.ones(2), torch.ones(2)
    dlogits, dembedding = kernel(*upstream, *shared, mixed, deviation, statistics, True, True)
    assert dlogits.isfinite().all()
    # Half of each row's weight.
    torch.testing.assert_close(dembedding[[7, 1050]], torch.ones(2, 3))


# The other way round: 1e30 beside a largest q of 1.01e30.
@pytest.mark.parametrize("tau", [0.5, 0.0])
def test_the_peak_keeps_its_weight(tau, backend):
    logits, embedding = (x.detach() for x in make(2, 1100, 3))
    logits[:, 7] = 1e30
    _, _, *rest = raw_arguments(logits, embedding)
    shared = (logits, embedding, torch.full((1,), tau, dtype=torch.float64), *rest[1:])
    mixed, _, _, deviation, statistics = kernel_of("gumbel_softmax_embedding", backend)(
        *shared, False
    )
    statistics[:, [0, 2]] *= 1.01
    kernel = kernel_of("gumbel_softmax_embedding_backward", backend)
    upstream = torch.ones(2, 3), torch.zeros(2), torch.zeros(2)
    _, dembedding = kernel(*upstream, *shared, mixed, deviation, statistics, True, True)
    expected = torch.zeros(1100, 3)
    expected[7] = 2
    assert torch.equal(dembedding, expected)


def test_double_backward_is_refused(backend):
    logits, embedding = make()
    ours = gumbel_softmax_embedding(logits, embedding, 0.5)
    loss = ours.embedding.square().sum()
    (first,) = torch.autograd.grad(loss, logits, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives are not offered"):
        first.sum().backward()


@pytest.mark.parametrize("layout", [lambda x: x, transposed], ids=["contiguous", "transposed"])
@pytest.mark.parametrize("dtype", LOW_DTYPES)
def test_opcheck(dtype, layout, backend):
    shared = raw_arguments(*(layout(x).detach().requires_grad_() for x in make(2, dtype=dtype)))
    ops = torch.ops.lepo_kernels
    # The comparison of eager and traced gradients has no tolerance for half precision.
    utils = ("test_schema", "test_autograd_registration", "test_faketensor")
    if dtype == torch.float32:
        utils += ("test_aot_dispatch_dynamic",)
    torch.library.opcheck(
        ops.gumbel_softmax_embedding.default, (*shared, False, backend), test_utils=utils
    )
    frozen = [x.detach() if isinstance(x, torch.Tensor) else x for x in shared]
    mixed, _, _, *known = ops.gumbel_softmax_embedding(*frozen, False, backend)
    upstream = (layout(torch.randn(2, 3)), torch.ones(2), torch.ones(2))
    for needs in ((True, True), (True, False), (False, True)):
        torch.library.opcheck(
            ops.gumbel_softmax_embedding_backward.default,
            (*upstream, *frozen, mixed, *known, *needs, backend),
            test_utils=("test_schema", "test_faketensor"),
        )


def test_compiled_is_eager_bitwise(backend):
    inputs = make()

    def step(logits, embedding, seed):
        ours = gumbel_softmax_embedding(logits, embedding, 0.5, seed=seed, first_id=8)
        return loss_of(ours) + ours.log_density.sum()

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
        ({"tau": 1e39}, ValueError, "tau: expected a number that float32"),
        ({"tau": torch.full((), 1e39, dtype=torch.double)}, ValueError, "tau: expected finite"),
        ({"temperature": 1e-40}, ValueError, "temperature: expected a number in"),
        ({"temperature": 1e39}, ValueError, "temperature: expected a number that float32"),
        (
            {"temperature": torch.tensor(1e-40, dtype=torch.float64)},
            ValueError,
            "temperature: expected finite numbers",
        ),
        ({"step": torch.tensor(2**32)}, ValueError, "step: expected values in"),
        ({"tau": "hot"}, TypeError, "tau: expected a number, got str"),
        ({"temperature": torch.tensor(-1.0)}, ValueError, "temperature: expected finite numbers"),
        ({"row_keys": torch.arange(3)}, ValueError, r"row_keys: expected shape \[2\]"),
        ({"first_id": 6}, ValueError, "first_id: expected a multiple of 4, got 6"),
        ({"first_id": -4}, ValueError, "first_id: expected an int in"),
        ({"first_id": 2**26 - 4}, ValueError, "first_id: expected an int in"),
        ({"first_id": 4.0}, TypeError, "first_id: expected an int, got float"),
    ],
)
def test_errors_name_the_argument(change, error, message, backend):
    arguments = {"logits": torch.zeros(2, 5), "embedding": torch.zeros(5, 3), "tau": 0.5}
    with pytest.raises(error, match=message):
        gumbel_softmax_embedding(**(arguments | change))
