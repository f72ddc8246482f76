"""Selected log-probabilities against the dense expression and torch's own autograd."""

import math
import warnings

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lepo_kernels import dispatch, gather_log_probs, linear_log_probs
from lepo_kernels.backends import checks
from lepo_kernels.backends.cpu.products import products_for
from lepo_kernels.backends.reference import linear_log_probs as kernel
from lepo_kernels.backends.reference import numerics
from lepo_kernels.structures import Statistics, Upstream
from tests.ops.helpers import LOW_DTYPES, LargestTensor, kernel_of, transposed
from tests.seeds import seeded
from tests.tolerances import assert_no_worse_than_plain


def plain(hidden, lm_head, ids, bias=None, softcap=None, inv_temperature=1.0):
    """The same quantities from precomputed logits, in the dtype of the inputs."""
    logits = hidden @ lm_head.T
    if bias is not None:
        logits = logits + bias
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return plain_from_logits(logits, ids, inv_temperature)


def plain_from_logits(logits, ids, inv_temperature=1.0):
    if isinstance(inv_temperature, torch.Tensor):
        inv_temperature = inv_temperature[:, None]
    a = logits * inv_temperature
    log_pi = torch.log_softmax(a, -1)
    entropy = -(log_pi.exp() * log_pi.masked_fill(log_pi == -math.inf, 0)).sum(-1)
    return a.gather(1, ids.long()), torch.logsumexp(a, -1), entropy


def make(rows=7, width=3, vocab=11, kept=4, dtype=torch.float64, seed=0):
    torch.manual_seed(seeded(seed))
    hidden = torch.randn(rows, width, dtype=dtype, requires_grad=True)
    lm_head = torch.randn(vocab, width, dtype=dtype, requires_grad=True)
    bias = torch.randn(vocab, dtype=dtype, requires_grad=True)
    ids = torch.randint(0, vocab, (rows, kept))
    ids[:, 1] = ids[:, 0]  # duplicates
    return hidden, lm_head, bias, ids


def working_dtype(backend):
    """The widest dtype a backend computes in."""
    return torch.float64 if backend == "reference" else torch.float32


def assert_close_to_exact(ours, exact):
    """``exact`` is float64. Float32 sums of a few dozen terms near 1 lose some units of 1e-7."""
    slack = {} if ours.dtype == torch.float64 else {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(ours.double(), exact, **slack)


def doubled(*inputs):
    return [None if x is None else x.detach().double().requires_grad_() for x in inputs]


def weighted_sum(outputs, seed=1):
    """A scalar that gives every output an upstream gradient of its own."""
    generator = torch.Generator().manual_seed(seeded(seed))
    return sum(
        (x.double() * torch.randn(x.shape, generator=generator, dtype=torch.float64)).sum()
        for x in outputs
    )


# Chunks of 1, of 3 with a last one of 1, of exactly all, and of more than all 7 rows.
@pytest.mark.parametrize("chunk_size", [1, 3, 7, 100, None])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("with_bias", [False, True])
def test_values_and_gradients_match_the_dense_expression(chunk_size, softcap, with_bias, backend):
    hidden, lm_head, bias, ids = make(dtype=working_dtype(backend))
    inputs = (hidden, lm_head, bias)[: 2 + with_bias]
    exact_inputs = doubled(*inputs)
    scale = torch.rand(7, dtype=torch.float64) + 0.5
    options = {"softcap": softcap, "inv_temperature": scale}

    def named(inputs):
        return dict(zip(("hidden", "lm_head", "bias"), inputs, strict=False))

    ours = linear_log_probs(**named(inputs), ids=ids, chunk_size=chunk_size, **options)
    expected = plain(**named(exact_inputs), ids=ids, **options)
    for x, y in zip(ours, expected, strict=True):
        assert_close_to_exact(x, y)
    for x, y in zip(
        torch.autograd.grad(weighted_sum(ours), inputs),
        torch.autograd.grad(weighted_sum(expected), exact_inputs),
        strict=True,
    ):
        assert_close_to_exact(x, y)


# Hundreds of calls.
@pytest.mark.large
def test_gradcheck(backend):
    dtype = working_dtype(backend)
    hidden, lm_head, bias, ids = make(rows=4, dtype=dtype)
    # In float32 a difference of 1e-2 has a rounding error of 1e-5 or so, and one of the second
    # order of 1e-4; gradcheck would warn of the dtype.
    slack = {} if dtype == torch.float64 else {"eps": 1e-2, "atol": 2e-3, "rtol": 2e-3}

    def linear(hidden, lm_head, bias):
        return tuple(
            linear_log_probs(
                hidden, lm_head, ids, bias=bias, softcap=3.0, inv_temperature=0.7, chunk_size=3
            )
        )

    def gather(logits):
        return tuple(gather_log_probs(logits, ids, inv_temperature=0.7))

    logits = torch.randn(4, 11, dtype=dtype, requires_grad=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Input #. requires gradient and is not a double")
        assert torch.autograd.gradcheck(linear, (hidden, lm_head, bias), **slack)
        assert torch.autograd.gradcheck(gather, (logits,), **slack)


# V = 2 is the smallest, 7 a prime, 1000 a long row. K = 0 asks for lse alone.
@pytest.mark.parametrize("vocab", [2, 7, 1000])
@pytest.mark.parametrize("kept", [0, 1, 5])
def test_logits_at_hand(vocab, kept, backend):
    torch.manual_seed(seeded(vocab))
    logits = (3 * torch.randn(6, vocab, dtype=working_dtype(backend))).requires_grad_()
    (exact_logits,) = doubled(logits)
    ids = torch.randint(0, vocab, (6, kept), dtype=torch.int32)
    ours = gather_log_probs(logits, ids, inv_temperature=1.3)
    expected = plain_from_logits(exact_logits, ids, 1.3)
    for x, y in zip(ours, expected, strict=True):
        assert_close_to_exact(x, y)
    assert_close_to_exact(
        torch.autograd.grad(weighted_sum(ours), logits)[0],
        torch.autograd.grad(weighted_sum(expected), exact_logits)[0],
    )


def test_logits_at_hand_in_several_chunks(monkeypatch):
    monkeypatch.setattr(numerics, "_CHUNK_ENTRIES", 25)  # 2 of 5 rows of 11
    logits = torch.randn(5, 11, dtype=torch.float64, requires_grad=True)
    ids = torch.randint(0, 11, (5, 2))
    ours, expected = gather_log_probs(logits, ids), plain_from_logits(logits, ids)
    for x, y in zip(ours, expected, strict=True):
        torch.testing.assert_close(x, y)
    torch.testing.assert_close(
        torch.autograd.grad(weighted_sum(ours), logits),
        torch.autograd.grad(weighted_sum(expected), logits),
    )


@pytest.mark.parametrize(("rows", "kept"), [(0, 3), (4, 0), (0, 0)])
def test_empty_sizes(rows, kept, backend):
    hidden, lm_head, _, _ = make(rows=max(rows, 1), kept=2, dtype=working_dtype(backend))
    hidden = hidden[:rows]
    ids = torch.zeros(rows, kept, dtype=torch.int64)
    ours = linear_log_probs(hidden, lm_head, ids)
    assert ours.logits.shape == (rows, kept)
    assert ours.lse.shape == ours.entropy.shape == (rows,)
    (dlm_head,) = torch.autograd.grad(ours.lse.sum(), lm_head)
    expected = torch.autograd.grad((hidden @ lm_head.T).logsumexp(-1).sum(), lm_head)[0]
    torch.testing.assert_close(dlm_head, expected)
    logits = torch.randn(rows, 5, dtype=hidden.dtype, requires_grad=True)
    ours = gather_log_probs(logits, ids)
    assert ours.logits.shape == (rows, kept)
    assert torch.autograd.grad(ours.lse.sum(), logits)[0].shape == (rows, 5)


# D = 64 so that sums are long enough to round; V = 97 is no multiple of anything.
@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("dtype", LOW_DTYPES)
def test_error_is_no_worse_than_plain_torch(dtype):
    torch.manual_seed(seeded(2))
    rows, width, vocab = 33, 64, 97
    hidden = torch.randn(rows, width).to(dtype).requires_grad_()
    lm_head = (torch.randn(vocab, width) / 4).to(dtype).requires_grad_()
    ids = torch.randint(0, vocab, (rows, 5))
    # Soft targets close to the policy, where pi - z cancels.
    weights = (hidden @ lm_head.T).detach().float().softmax(-1).gather(1, ids)

    def run(function, hidden, lm_head):
        a, lse, entropy = function(hidden, lm_head, ids)
        w = weights.to(a.dtype)
        loss = (w * (a - lse[:, None])).sum() + 0.1 * entropy.sum()
        return a, lse, entropy, *torch.autograd.grad(loss, (hidden, lm_head))

    ours = run(lambda h, w, i: linear_log_probs(h, w, i, chunk_size=10), hidden, lm_head)
    rounded = run(plain, hidden, lm_head)
    oracle = run(plain, *(x.detach().double().requires_grad_() for x in (hidden, lm_head)))
    assert [x.dtype for x in ours] == [torch.float32] * 3 + [dtype] * 2
    for x, y, z in zip(ours, rounded, oracle, strict=True):
        assert_no_worse_than_plain(x, y, z, dtype, vocab)


def test_gradient_of_the_head_is_rounded_once(backend):
    torch.manual_seed(seeded(4))
    hidden = torch.randn(200, 8).bfloat16()
    lm_head = torch.randn(20, 8).bfloat16().requires_grad_()
    ids = torch.randint(0, 20, (200, 1))
    ours = linear_log_probs(hidden, lm_head, ids, chunk_size=7)
    (ours.logits[:, 0] - ours.lse).sum().backward()
    # The reference multiplies in bfloat16; the logits of the others are float32.
    logits = hidden @ lm_head.T if backend == "reference" else hidden.float() @ lm_head.float().T
    logits = logits.detach().double()
    da = torch.zeros_like(logits).scatter_(1, ids, 1) - logits.softmax(-1)
    # Half a unit of bfloat16, and what float32 sums of 200 rows may lose.
    slack = 1e-5
    if backend in ("cuda", "triton") or (
        backend == "cpu" and products_for(hidden, lm_head).dtype == torch.bfloat16
    ):
        # Their products take gradients of the logits in bfloat16; one of them may round otherwise.
        da = da.bfloat16().double()
        slack += float((2.0**-8 * da.abs().amax(1) * hidden.double().abs().amax(1)).max())
    exact = da.T @ hidden.double()
    allowed = 2.0**-8 * exact.abs() + slack
    assert ((lm_head.grad.double() - exact).abs() <= allowed).all()


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("dtype", LOW_DTYPES)
def test_error_from_logits_is_no_worse_than_plain_torch(dtype):
    torch.manual_seed(seeded(3))
    logits = (4 * torch.randn(33, 97)).to(dtype).requires_grad_()
    ids = torch.randint(0, 97, (33, 5))

    def run(function, logits):
        a, lse, entropy = function(logits, ids)
        loss = (a - lse[:, None]).sum() + 0.1 * entropy.sum()
        return a, lse, entropy, *torch.autograd.grad(loss, logits)

    ours, rounded = run(gather_log_probs, logits), run(plain_from_logits, logits)
    oracle = run(plain_from_logits, logits.detach().double().requires_grad_())
    for x, y, z in zip(ours, rounded, oracle, strict=True):
        assert_no_worse_than_plain(x, y, z, dtype, 97)


def test_minus_infinities_never_make_nan(backend):
    hidden, lm_head, bias, ids = make(dtype=working_dtype(backend))
    with torch.no_grad():
        bias[[2, 5]] = -math.inf
    ids[0, 0] = 2
    exact = doubled(hidden, lm_head, bias)
    ours = linear_log_probs(hidden, lm_head, ids, bias=bias)
    expected = plain(*exact[:2], ids, bias=exact[2])
    for x, y in zip(ours, expected, strict=True):
        assert_close_to_exact(x, y)
    (ours.lse.sum() + 2 * ours.entropy.sum()).backward()
    kept = [j for j in range(11) if j not in (2, 5)]
    again = plain(exact[0], exact[1][kept], ids * 0, bias=exact[2][kept])
    grads = torch.autograd.grad(again[1].sum() + 2 * again[2].sum(), exact)
    for x, y in zip((hidden, lm_head, bias), grads, strict=True):
        assert_close_to_exact(x.grad, y)

    logits = torch.randn(2, 6, dtype=working_dtype(backend))
    logits[:, 3] = -math.inf
    logits[1, [0, 1, 2, 4]] = -math.inf  # a single survivor
    logits.requires_grad_()
    ours = gather_log_probs(logits, torch.full((2, 1), 5))
    assert ours.entropy[1] == 0
    assert ours.lse[1] == ours.logits[1, 0] == logits[1, 5]
    (dlogits,) = torch.autograd.grad((ours.logits[:, 0] - ours.lse + ours.entropy).sum(), logits)
    assert dlogits.isfinite().all()
    assert dlogits[:, 3].eq(0).all()
    assert dlogits[1].eq(0).all()


@pytest.mark.usefixtures("backend")
def test_bad_rows_raise_with_their_index():
    hidden, lm_head, _, ids = make(dtype=torch.float32)
    with torch.no_grad():
        hidden[5] = math.nan
    with pytest.raises(ValueError, match="logits of hidden: row 5 is all -inf, or holds NaN"):
        linear_log_probs(hidden, lm_head, ids, chunk_size=2)
    for bad in (math.nan, math.inf, -math.inf):
        logits = torch.zeros(3, 4)
        logits[1] = bad
        with pytest.raises(ValueError, match="logits: row 1 is all -inf, or holds NaN"):
            gather_log_probs(logits, torch.zeros(3, 1, dtype=torch.int64))


@pytest.mark.usefixtures("backend")
def test_unchecked_bad_rows_spoil_themselves_only(monkeypatch):
    monkeypatch.setattr(checks, "checks_enabled", lambda device: False)
    logits = torch.randn(3, 4)
    ids = torch.zeros(3, 1, dtype=torch.int64)
    good = gather_log_probs(logits, ids)
    for bad in (math.nan, math.inf, -math.inf):
        spoilt = logits.clone()
        spoilt[1] = bad
        ours = gather_log_probs(spoilt, ids)
        assert ours.lse[1].isnan()
        assert ours.entropy[1].isnan()
        for x, y in zip(ours, good, strict=True):
            assert torch.equal(x[[0, 2]], y[[0, 2]])


# A vocabulary of one unit of every kernel, and of three of those on a GPU with a rest.
@pytest.mark.parametrize("vocab", [5, 1100])
def test_a_shard_may_have_rows_without_mass(vocab, backend):
    hidden, lm_head, _, ids = make(rows=3, vocab=vocab, dtype=working_dtype(backend))
    bias = torch.full((vocab,), -math.inf, dtype=hidden.dtype)
    with torch.no_grad():
        hidden[1] = math.nan
    arguments = (bias, None, ids, hidden.new_ones(1), 2, True, backend)
    selected, lse, entropy = torch.ops.lepo_kernels.linear_log_probs(hidden, lm_head, *arguments)
    assert selected[[0, 2]].eq(-math.inf).all()
    for values, empty in ((lse, -math.inf), (entropy, 0)):
        assert values[[0, 2]].eq(empty).all()
        assert values[1].isnan()
    # A single entry is mass, and a row that holds +inf is not without it.
    bias[vocab - 1] = 0
    with torch.no_grad():
        hidden[1] = 1
        lm_head[vocab - 1] = 0
    _, lse, entropy = torch.ops.lepo_kernels.linear_log_probs(hidden, lm_head, *arguments)
    assert lse.eq(0).all()
    assert entropy.eq(0).all()
    bias[vocab - 1] = math.inf
    _, lse, entropy = torch.ops.lepo_kernels.linear_log_probs(hidden, lm_head, *arguments)
    assert lse.isnan().all()
    assert entropy.isnan().all()


@pytest.mark.usefixtures("backend")
def test_nothing_of_the_size_of_all_logits_is_formed():
    # Of a vocabulary that leaves no gaps behind rows that are aligned.
    rows, vocab, chunk = 64, 64, 4
    hidden, lm_head, _, ids = make(rows=rows, vocab=vocab, dtype=torch.float32)
    with LargestTensor() as largest:
        ours = linear_log_probs(hidden, lm_head, ids, chunk_size=chunk)
        weighted_sum(ours).backward()
    # One chunk of logits, or the upstream gradients [N, K].
    assert largest.numel <= max(chunk * vocab, ids.numel())


# The head of a 150 thousand token vocabulary, and of one whose single row exceeds the bytes.
@pytest.mark.parametrize(("dtype", "entry_bytes"), [(torch.float32, 4), (torch.float64, 8)])
@pytest.mark.parametrize("vocab", [151936, 1 << 25])
def test_default_chunks_hold_64_mib_of_logits(vocab, dtype, entry_bytes, monkeypatch):
    sizes = []

    def spy(head, selection, chunk_size, shard):
        sizes.append(chunk_size)
        return torch.zeros(1, 1), torch.zeros(1), torch.zeros(1)

    monkeypatch.setattr("lepo_kernels.dispatch.load", lambda op, name: spy)
    lm_head = torch.zeros(1, 1, dtype=dtype).expand(vocab, 1)
    linear_log_probs(torch.zeros(1, 1, dtype=dtype), lm_head, torch.zeros(1, 1).long())
    assert sizes == [max(1, 2**26 // (entry_bytes * vocab))]


@pytest.mark.usefixtures("backend")
def test_nothing_of_the_size_of_all_logits_is_formed_by_default(monkeypatch):
    rows, vocab = 64, 64
    monkeypatch.setattr("lepo_kernels.ops.linear_log_probs._CHUNK_BYTES", 4 * vocab * 4)
    hidden, lm_head, _, ids = make(rows=rows, vocab=vocab, dtype=torch.float32)
    with LargestTensor() as largest:
        weighted_sum(linear_log_probs(hidden, lm_head, ids)).backward()
    assert largest.numel <= max(4 * vocab, ids.numel())


class OpNames(TorchDispatchMode):
    """Records the names of all ops inside the ``with`` block."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func._schema.name)
        return func(*args, **(kwargs or {}))


# Meta stands for any device but the CPU.
def test_duplicate_ids_never_add_by_atomics():
    def gradient(device):
        row = torch.zeros(2, device=device)
        ids = torch.zeros(2, 3, dtype=torch.int32, device=device)
        upstream, statistics = Upstream(ids.float(), row, row), Statistics(row, row)
        with OpNames() as ops:
            kernel._logit_gradient(row[:, None].expand(2, 5), ids, upstream, statistics)
        return ops.names

    assert "aten::scatter_add_" in gradient("cpu")
    names = gradient("meta")
    assert "aten::scatter_add_" not in names
    assert "aten::index_put_" in names


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gradient_of_duplicates_on_a_gpu_has_the_same_bits_run_to_run():
    torch.manual_seed(seeded(5))
    logits = torch.randn(64, 100)
    ids, alpha = torch.randint(0, 3, (64, 500)), torch.randn(64, 500)

    def gradient(device):
        a = logits.to(device).requires_grad_()
        selected = gather_log_probs(a, ids.to(device)).logits
        return torch.autograd.grad((selected * alpha.to(device)).sum(), a)[0]

    first = gradient("cuda")
    torch.testing.assert_close(first.cpu(), gradient("cpu"), rtol=1e-4, atol=1e-4)
    for _ in range(10):
        assert torch.equal(gradient("cuda"), first)


def test_rows_without_coefficients_are_not_computed_in_backward(backend):
    dtype = working_dtype(backend)
    hidden, lm_head, _, ids = make(dtype=dtype)
    hidden, lm_head = hidden.detach(), lm_head.detach()
    lse, entropy = torch.ones(2, 7, dtype=dtype)
    alpha, gamma, eta = torch.zeros(7, 4, dtype=dtype), *torch.zeros(2, 7, dtype=dtype)
    one = torch.ones(1, dtype=dtype)
    alpha[1, 2], gamma[3], eta[4] = 1, 1, 1
    idle = [0, 2, 5, 6]
    hidden[idle] = math.nan  # would spread into the gradient of the head
    dhidden, dlm_head, _ = kernel_of("linear_log_probs_backward", backend)(
        alpha, gamma, eta, hidden, lm_head, None, None, ids, one, lse, entropy, 2, True, True, False
    )
    assert dhidden[idle].eq(0).all()
    assert dhidden[[1, 3, 4]].ne(0).any(-1).all()
    assert dlm_head.isfinite().all()
    logits = torch.full((7, 5), math.nan, dtype=dtype)
    logits[[1, 3, 4]] = 0
    dlogits = kernel_of("gather_log_probs_backward", backend)(
        alpha, gamma, eta, logits, ids * 0, one, lse, entropy
    )
    assert dlogits[idle].eq(0).all()
    assert dlogits[[1, 3, 4]].isfinite().all()


@pytest.mark.parametrize("trained", [{0}, {1}, {2}, {0, 2}, {1, 2}])
def test_frozen_inputs_get_no_gradient_and_cost_nothing(trained, backend, monkeypatch):
    hidden, lm_head, bias, ids = make(dtype=working_dtype(backend))
    inputs = (hidden, lm_head, bias)
    for position, x in enumerate(inputs):
        x.requires_grad_(position in trained)
    needs, gradients = [], []
    load = dispatch.load

    def spying(op, name):
        def kernel(*args):
            results = load(op, name)(*args)
            if op.endswith("backward"):
                needs.append(args[-1])
                gradients.extend(results)
            return results

        return kernel

    monkeypatch.setattr(dispatch, "load", spying)
    weighted_sum(linear_log_probs(hidden, lm_head, ids, bias=bias)).backward()
    assert needs == [tuple(position in trained for position in range(3))]
    assert [x.numel() > 0 for x in gradients] == [position in trained for position in range(3)]
    for position, x in enumerate(inputs):
        assert (x.grad is not None) == (position in trained)


@pytest.mark.usefixtures("backend")
def test_no_grad_and_double_backward():
    hidden, lm_head, _, ids = make(dtype=torch.float32)
    with torch.no_grad():
        assert not linear_log_probs(hidden, lm_head, ids).lse.requires_grad
    ours = linear_log_probs(hidden, lm_head, ids)
    (first,) = torch.autograd.grad(weighted_sum(ours), hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives are not offered"):
        first.sum().backward()
    logits = torch.randn(7, 11, requires_grad=True)
    (first,) = torch.autograd.grad(
        gather_log_probs(logits, ids).lse.sum(), logits, create_graph=True
    )
    with pytest.raises(RuntimeError, match="second derivatives are not offered"):
        first.sum().backward()


@pytest.mark.usefixtures("backend")
def test_autocast_casts_the_inputs_and_nothing_else():
    hidden, lm_head, bias, ids = make(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = linear_log_probs(hidden, lm_head, ids, bias=bias)
        weighted_sum(ours).backward()
    half = [x.detach().bfloat16().requires_grad_() for x in (hidden, lm_head, bias)]
    expected = linear_log_probs(half[0], half[1], ids, bias=half[2])
    weighted_sum(expected).backward()
    for x, y in zip(ours, expected, strict=True):
        assert torch.equal(x, y)
    for x, y in zip((hidden, lm_head, bias), half, strict=True):
        assert x.grad.dtype == torch.float32
        assert torch.equal(x.grad, y.grad.float())


def test_autocast_leaves_float64_alone():
    hidden, lm_head, bias, ids = make()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = linear_log_probs(hidden, lm_head, ids, bias=bias)
    assert torch.nn.functional.linear(hidden, lm_head, bias).dtype == ours.lse.dtype
    for x, y in zip(ours, linear_log_probs(hidden, lm_head, ids, bias=bias), strict=True):
        assert torch.equal(x, y)


@pytest.mark.usefixtures("backend")
def test_same_bits_run_to_run_and_for_any_layout():
    hidden, lm_head, _, ids = make(dtype=torch.float32)

    def run(hidden, lm_head):
        ours = linear_log_probs(hidden, lm_head, ids)
        return (*ours, *torch.autograd.grad(weighted_sum(ours), (hidden, lm_head)))

    base = run(hidden, lm_head)
    for x, y in zip(base, run(hidden, lm_head), strict=True):
        assert torch.equal(x, y)
    strided = [x.detach().T.contiguous().T.requires_grad_() for x in (hidden, lm_head)]
    for x, y in zip(base, run(*strided), strict=True):
        torch.testing.assert_close(x, y)


def test_opcheck(backend):
    dtype = working_dtype(backend)
    hidden, lm_head, bias, ids = make(rows=3, dtype=dtype)
    scale = torch.ones(1, dtype=dtype)
    ops = torch.ops.lepo_kernels
    torch.library.opcheck(
        ops.linear_log_probs.default, (hidden, lm_head, bias, 2.0, ids, scale, 2, False, backend)
    )
    torch.library.opcheck(
        ops.linear_log_probs.default, (hidden, lm_head, None, None, ids, scale, 2, True, backend)
    )
    logits = torch.randn(3, 11, requires_grad=True)
    torch.library.opcheck(ops.gather_log_probs.default, (logits, ids, scale.float(), backend))
    row = torch.ones(3, dtype=dtype)
    torch.library.opcheck(
        ops.linear_log_probs_backward.default,
        (row[:, None].expand(3, 4), row, row, hidden.detach(), lm_head.detach(), None, None,
         ids, scale, row, row, 2, True, False, False, backend),
        test_utils=("test_schema", "test_faketensor"),
    )  # fmt: skip
    torch.library.opcheck(
        ops.gather_log_probs_backward.default,
        (row[:, None].expand(3, 4), row, row, logits.detach().to(dtype), ids, scale, row, row,
         backend),
        test_utils=("test_schema", "test_faketensor"),
    )  # fmt: skip


def test_opcheck_of_transposed_inputs(backend):
    dtype = working_dtype(backend)
    hidden, lm_head, bias, ids = make(rows=3, dtype=dtype)
    hidden, lm_head, ids, logits, alpha = (
        transposed(x) for x in (hidden, lm_head, ids, torch.randn(3, 11), torch.randn(3, 4))
    )
    scale, row = torch.ones(1, dtype=dtype), torch.ones(3, dtype=dtype)
    ops = torch.ops.lepo_kernels
    for op, arguments in (
        (ops.linear_log_probs, (hidden, lm_head, bias, 2.0, ids, scale, 2, False)),
        (ops.linear_log_probs_backward,
         (alpha.to(dtype), row, row, hidden, lm_head, bias.detach(), 2.0, ids, scale, row, row, 2,
          True, True, True)),
        (ops.gather_log_probs, (logits, ids, scale.float())),
        (ops.gather_log_probs_backward,
         (alpha, row.float(), row.float(), logits, ids, scale.float(), row.float(), row.float())),
    ):  # fmt: skip
        torch.library.opcheck(
            op.default, (*arguments, backend), test_utils=("test_schema", "test_faketensor")
        )


@pytest.mark.usefixtures("backend")
def test_compiled_is_eager_bitwise():
    hidden, lm_head, bias, ids = make(dtype=torch.float32)

    def step(hidden, lm_head, bias):
        ours = linear_log_probs(hidden, lm_head, ids, bias=bias, inv_temperature=0.5)
        both = gather_log_probs(hidden @ lm_head.T, ids)
        return ours.logits.sum() - 2 * ours.lse.sum() + ours.entropy.sum() + both.lse.sum()

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    inputs = (hidden, lm_head, bias)
    ours, eager = compiled(*inputs), step(*inputs)
    assert torch.equal(ours, eager)
    for x, y in zip(
        torch.autograd.grad(ours, inputs), torch.autograd.grad(eager, inputs), strict=True
    ):
        assert torch.equal(x, y)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"hidden": torch.zeros(2)}, ValueError, r"hidden: expected shape \[N, D\]"),
        ({"hidden": torch.zeros(2, 3).int()}, TypeError, "hidden: expected dtype float32"),
        ({"lm_head": torch.zeros(5, 4)}, ValueError, r"lm_head: expected shape \[V, 3\]"),
        ({"lm_head": torch.zeros(0, 3)}, ValueError, "lm_head.shape.0.: expected an int in"),
        ({"lm_head": torch.zeros(5, 3).half()}, TypeError, "lm_head: expected dtype float32"),
        ({"bias": torch.zeros(4)}, ValueError, r"bias: expected shape \[5\], got \[4\]"),
        ({"bias": torch.zeros(5).half()}, TypeError, "bias: expected dtype float32"),
        ({"ids": torch.zeros(3, 1).long()}, ValueError, r"ids: expected shape \[2, K\]"),
        ({"ids": torch.zeros(2, 1)}, TypeError, "ids: expected dtype int64"),
        ({"ids": torch.tensor([[0], [5]])}, IndexError, r"ids: expected values in \[0, 5\), got 5"),
        ({"ids": torch.tensor([[0], [-1]])}, IndexError, r"ids: expected values in \[0, 5\)"),
        ({"softcap": 0.0}, ValueError, r"softcap: expected a number in \(0"),
        ({"inv_temperature": 0}, ValueError, r"inv_temperature: expected a number in \(0"),
        ({"inv_temperature": torch.zeros(2)}, ValueError, "inv_temperature: expected finite"),
        ({"inv_temperature": torch.ones(3)}, ValueError, r"inv_temperature: expected shape \[2\]"),
        ({"chunk_size": 0}, ValueError, "chunk_size: expected an int in"),
        ({"chunk_size": 2**31}, ValueError, "chunk_size: expected an int in"),
        ({"softcap": 1e39}, ValueError, "softcap: expected a number that float32"),
        ({"softcap": 1e-50}, ValueError, "softcap: expected a number in"),
        ({"inv_temperature": 1e39}, ValueError, "inv_temperature: expected a number that float32"),
        ({"inv_temperature": 1e-50}, ValueError, "inv_temperature: expected a number in"),
        (
            {"inv_temperature": torch.tensor(1e39, dtype=torch.float64)},
            ValueError,
            "inv_temperature: expected finite",
        ),
    ],
)
def test_errors_name_the_argument(change, error, message):
    arguments = {
        "hidden": torch.zeros(2, 3),
        "lm_head": torch.zeros(5, 3),
        "ids": torch.zeros(2, 1, dtype=torch.int64),
    }
    with pytest.raises(error, match=message):
        linear_log_probs(**(arguments | change))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"logits": torch.zeros(2)}, ValueError, r"logits: expected shape \[N, V\]"),
        ({"logits": torch.zeros(2, 0)}, ValueError, "logits.shape.1.: expected an int in"),
        ({"ids": torch.zeros(3, 1).long()}, ValueError, r"ids: expected shape \[2, K\]"),
        ({"ids": torch.tensor([[0], [5]])}, IndexError, r"ids: expected values in \[0, 5\), got 5"),
        ({"inv_temperature": -1.0}, ValueError, r"inv_temperature: expected a number in \(0"),
        ({"inv_temperature": torch.zeros(2)}, ValueError, "inv_temperature: expected finite"),
    ],
)
def test_errors_of_the_logits_variant(change, error, message):
    arguments = {"logits": torch.zeros(2, 5), "ids": torch.zeros(2, 1, dtype=torch.int64)}
    with pytest.raises(error, match=message):
        gather_log_probs(**(arguments | change))
