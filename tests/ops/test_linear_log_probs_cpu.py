"""What only the native CPU kernel promises: bits, sizes, layouts, instruction sets."""

import math
import os
import subprocess
import sys

import pytest
import torch

import lepo_kernels
from lepo_kernels import dispatch, gather_log_probs, linear_log_probs, native
from lepo_kernels.backends.cpu import linear_log_probs as kernel
from tests.ops.head_magnitudes import from_logits, head_magnitudes, logit_magnitudes
from tests.ops.helpers import HALF_DTYPES, LOW_DTYPES
from tests.seeds import seeded
from tests.tolerances import assert_within

pytestmark = pytest.mark.skipif("cpu" in dispatch.MISSING, reason="needs the native library")

# One piece of the kernel, one span of a row, and one part of the vocabulary.
PIECE, SPAN, PART = 1024, 16384, 2048


@pytest.fixture(autouse=True)
def _on_cpu_backend():
    with lepo_kernels.backend("cpu"):
        yield


def exact_statistics(logits, ids):
    log_pi = torch.log_softmax(logits.double(), -1)
    entropy = -(log_pi.exp() * log_pi.masked_fill(log_pi == -math.inf, 0)).sum(-1)
    return logits.double().gather(1, ids), torch.logsumexp(logits.double(), -1), entropy


def upstream(ours, seed=0):
    generator = torch.Generator().manual_seed(seeded(seed))
    return [torch.randn(x.shape, generator=generator) for x in ours]


def run(logits, ids, **options):
    """All outputs and the gradient of the logits."""
    logits = logits.detach().requires_grad_()
    ours = gather_log_probs(logits, ids, **options)
    return *ours, *torch.autograd.grad(ours, logits, upstream(ours))


# The smallest; less than a vector; a vector more than a piece; a span and one more; Qwen's.
@pytest.mark.parametrize("vocab", [2, 7, PIECE + 16, SPAN + 1, 151936])
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("dtype", LOW_DTYPES)
def test_every_size_of_row(rows, vocab, dtype):
    torch.manual_seed(seeded(vocab))
    logits = (2 * torch.randn(rows, vocab)).to(dtype)
    # Enough of the longest row's mass that neither end could be left out unseen.
    logits[:, [0, -1]] = 8
    ids = torch.randint(0, vocab, (rows, 5))
    ids[:, 0], ids[:, 1] = vocab - 1, 0
    selected, lse, entropy, dlogits = run(logits, ids)
    exact = exact_statistics(logits, ids)
    assert torch.equal(selected.double(), exact[0])
    coefficients = upstream((selected, lse, entropy))
    # The logits are what they are: all that is off is the scale, by a rounding.
    sizes = from_logits(logits.double(), logits.double().abs(), ids, coefficients)
    assert_within(lse, exact[1], vocab, sizes.lse)
    assert_within(entropy, exact[2], vocab, sizes.entropy)
    alpha, gamma, eta = (x.double() for x in coefficients)
    pi = torch.softmax(logits.double(), -1)
    da = pi * (gamma[:, None] - eta[:, None] * (pi.log() + exact[2][:, None]))
    da.scatter_add_(1, ids, alpha)
    assert_within(dlogits, da, vocab, sizes.dlogits)


@pytest.mark.slow
@pytest.mark.parametrize("vocab", [49152, 128256, 262144])
@pytest.mark.parametrize("dtype", LOW_DTYPES)
def test_head_of_a_real_vocabulary(vocab, dtype):
    torch.manual_seed(seeded(0))
    hidden, lm_head = torch.randn(64, 32).to(dtype), (torch.randn(vocab, 32) / 4).to(dtype)
    ids = torch.randint(0, vocab, (64, 3))
    logits = hidden.double() @ lm_head.double().T
    ours = linear_log_probs(hidden, lm_head, ids)
    sizes = head_magnitudes(hidden, lm_head, ids, upstream(ours))
    for x, y, size in zip(ours, exact_statistics(logits, ids), sizes[:3], strict=True):
        assert_within(x, y, vocab, size)


@pytest.mark.parametrize("dtype", HALF_DTYPES)
def test_logits_of_a_narrow_head_are_not_rounded_to_its_dtype(dtype):
    torch.manual_seed(seeded(1))
    # Parts of unlike width: the widened head reuses one buffer.
    hidden, lm_head = torch.randn(3, 16).to(dtype), torch.randn(PART + 5, 16).to(dtype)
    ids = torch.tensor([[0, PART - 1, PART, PART + 4]]).repeat(3, 1)
    exact = (hidden.double() @ lm_head.double().T).gather(1, ids)
    ours = linear_log_probs(hidden, lm_head, ids).logits
    assert_within(ours, exact, 16, logit_magnitudes(hidden, lm_head).gather(1, ids))


# The vocabulary in one part, or in parts of which the last is ragged; bias and cap in either.
@pytest.mark.parametrize("vocab", [PART, 2 * PART + 17])
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_gradients_over_several_parts(vocab, softcap, monkeypatch):
    # Two blocks of rows: the gradient of the head is a sum over both.
    monkeypatch.setattr(kernel, "_BUFFER_ENTRIES", 4 * PART)
    torch.manual_seed(seeded(vocab))
    inputs = [torch.randn(6, 8), torch.randn(vocab, 8), torch.randn(vocab)]
    inputs = [x.requires_grad_() for x in inputs]
    ids = torch.tensor([[0, vocab - 1, PART - 1, PART % vocab]]).repeat(6, 1)
    scale = torch.rand(6) + 0.5
    ours = linear_log_probs(
        *inputs[:2], ids, bias=inputs[2], softcap=softcap, inv_temperature=scale
    )
    coefficients = upstream(ours)
    exact_inputs = [x.detach().double().requires_grad_() for x in inputs]
    a = exact_inputs[0] @ exact_inputs[1].T + exact_inputs[2]
    a = (a if softcap is None else softcap * torch.tanh(a / softcap)) * scale[:, None].double()
    exact = exact_statistics(a, ids)
    options = {"bias": inputs[2], "softcap": softcap, "inv_temperature": scale}
    sizes = head_magnitudes(*inputs[:2], ids, coefficients, **options)
    for x, y, size in zip(ours, exact, sizes[:3], strict=True):
        assert_within(x, y, vocab, size)
    grads = torch.autograd.grad(ours, inputs, coefficients)
    exact_grads = torch.autograd.grad(exact, exact_inputs, [x.double() for x in coefficients])
    for x, y, size in zip(grads, exact_grads, sizes[3:6], strict=True):
        assert_within(x, y, vocab, size)


# Around the switch of the approximation at 0.6, where tanh is 1, and beyond any float32 exp.
def test_softcap_is_as_good_as_float32_can_be():
    cap = 5.0
    x = torch.cat((torch.linspace(-4, 4, 4001), torch.tensor([9.9, 10.1, 300.0, 1e30]))) * cap
    x = torch.cat((x, torch.tensor([1e-30, -1e-6, 0.0])))
    head = x[:, None].contiguous()
    ids = torch.arange(len(x))[None]
    ours = linear_log_probs(torch.ones(1, 1), head, ids, softcap=cap).logits[0]
    exact = cap * torch.tanh(x.double() / cap)
    assert ((ours.double() - exact).abs() <= 3 * 2.0**-23 * exact.abs()).all()


def test_a_rows_bits_depend_on_nothing_else():
    torch.manual_seed(seeded(2))
    logits = 3 * torch.randn(9, 2 * SPAN + 77)
    ids = torch.randint(0, logits.shape[1], (9, 4))
    coefficients = upstream(gather_log_probs(logits, ids))

    def bits(rows):
        part = logits[rows].requires_grad_()
        ours = gather_log_probs(part, ids[rows])
        return *ours, *torch.autograd.grad(ours, part, [x[rows] for x in coefficients])

    whole = bits(slice(0, 9))
    for rows in (slice(4, 5), slice(2, 9)):
        for x, y in zip(bits(rows), whole, strict=True):
            assert torch.equal(x, y[rows])


def test_threads_do_not_change_bits():
    torch.manual_seed(seeded(3))
    # One row, which all threads share, and a few.
    for rows in (1, 5):
        logits, ids = torch.randn(rows, 3 * SPAN + 5), torch.zeros(rows, 1, dtype=torch.int64)
        before = torch.get_num_threads()
        results = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(run(logits, ids))
        torch.set_num_threads(before)
        for x, y in zip(*results, strict=True):
            assert torch.equal(x, y)


def test_parts_of_the_vocabulary_add_up_to_the_same_bits():
    torch.manual_seed(seeded(4))
    vocab = 3 * PART + 9
    logits, ids = torch.randn(2, vocab), torch.tensor([[1, PART], [vocab - 1, 0]])
    results = []
    for width in (PIECE, PART, vocab):
        state, selected = kernel.new_state(2), torch.zeros(2, 2)
        for first in range(0, vocab, width):
            torch.ops.lepo_kernels_cpu.summarise_logits(
                logits[:, first : first + width], None, 0.0, torch.ones(1), ids, first, state,
                selected,
            )  # fmt: skip
        results.append((selected, *torch.ops.lepo_kernels_cpu.statistics_of(state)))
    for other in results[1:]:
        for x, y in zip(other, results[0], strict=True):
            assert torch.equal(x, y)


@pytest.mark.parametrize("dtype", LOW_DTYPES)
def test_any_layout_gives_the_same_bits(dtype):
    torch.manual_seed(seeded(5))
    wide = torch.randn(4, 2 * PIECE + 40).to(dtype)
    ids = torch.randint(0, 2 * PIECE + 3, (4, 6))
    inside = wide[:, 3 : 2 * PIECE + 6]  # a row stride of its own, an odd first address
    expected = run(inside.contiguous(), ids)
    columns = inside.T.contiguous().T
    for logits in (inside, columns):
        for x, y in zip(run(logits, ids), expected, strict=True):
            assert torch.equal(x, y)
    shared = wide[:1].expand(4, -1)  # a row stride of 0
    for x, y in zip(run(shared, ids), run(shared.contiguous(), ids), strict=True):
        assert torch.equal(x, y)
    many = torch.randint(0, PIECE, (4, 12), dtype=torch.int32)[:, ::2]
    for x, y in zip(run(inside, many), run(inside, many.long().contiguous()), strict=True):
        assert torch.equal(x, y)


def test_huge_and_tiny_logits():
    logits = torch.tensor([[3e38, -3e38, 0.0], [1e-40, 0.0, -1e-40], [88.0, -200.0, 500.0]])
    ids = torch.zeros(3, 1, dtype=torch.int64)
    exact = exact_statistics(logits, ids)
    ours = run(logits, ids)
    for x, y in zip(ours[:3], exact, strict=True):
        torch.testing.assert_close(x.double(), y, rtol=1e-6, atol=1e-30)
    assert ours[3].isfinite().all()
    # What one logit scaled out of float32 says is an error, not a number.
    with pytest.raises(ValueError, match="logits: row 0 is all -inf, or holds NaN or"):
        gather_log_probs(logits, ids, inv_temperature=10.0)


def test_probabilities_that_are_0_to_any_sum_have_gradient_0():
    logits = torch.tensor([[0.0, -60.0, -75.0, -200.0, -math.inf]])
    *_, dlogits = run(logits, torch.zeros(1, 0, dtype=torch.int64))
    assert dlogits[0, :2].ne(0).all()
    assert dlogits[0, 2:].eq(0).all()


# What is left of a row: in its first piece, in a later one, in another span.
@pytest.mark.parametrize("kept", [[3], [PIECE + 5, PIECE + 6], [2, SPAN + 1]])
def test_pieces_of_minus_infinity_add_nothing(kept):
    logits = torch.full((2, SPAN + PIECE), -math.inf)
    logits[:, kept] = torch.arange(len(kept), dtype=torch.float32)
    ids = torch.tensor([[kept[-1]], [0 if kept[0] else 1]])
    selected, lse, entropy, dlogits = run(logits, ids)
    exact = exact_statistics(logits, ids)
    for x, y in zip((selected, lse, entropy), exact, strict=True):
        torch.testing.assert_close(x.double(), y, rtol=1e-6, atol=0)
    assert dlogits.isfinite().all()


# Torch's own ops give both kinds of NaN: with an empty payload, and with all bits set.
NANS = torch.tensor([0x7FC00000, -1], dtype=torch.int32).view(torch.float32)


# In the last lanes, in a piece that is -inf otherwise, in the first and in a later span.
@pytest.mark.parametrize("place", [0, 5, PIECE + 1, SPAN - 1, SPAN + 8])
@pytest.mark.parametrize("bad", [*NANS, torch.tensor(math.inf)], ids=["nan", "full nan", "inf"])
@pytest.mark.parametrize("dtype", LOW_DTYPES)
def test_a_bad_entry_anywhere_is_found(place, bad, dtype):
    logits = torch.full((3, SPAN + 9), -math.inf)
    logits[:, 7] = 1
    logits[:, 2 * PIECE :] = -9e4
    logits[2, place] = bad
    with pytest.raises(ValueError, match="logits: row 2 is all -inf, or holds NaN or"):
        gather_log_probs(logits.to(dtype), torch.zeros(3, 1, dtype=torch.int64))


CORE = """
import math, torch, lepo_kernels
from lepo_kernels import gather_log_probs, linear_log_probs, native
from tests.ops.head_magnitudes import from_logits, head_magnitudes
from tests.tolerances import assert_within
assert native.cpu_capability() == {name!r}
torch.manual_seed({seed})
for dtype in (torch.float32, torch.bfloat16, torch.float16):
    for vocab in (2, 37, 1100, 40001):
        logits = torch.randn(3, vocab).to(dtype)
        logits[1, ::2] = -math.inf
        logits.requires_grad_()
        ids = torch.randint(0, vocab, (3, 4))
        exact = logits.detach().double().requires_grad_()
        log_pi = torch.log_softmax(exact, -1)
        entropy = -(log_pi.exp() * log_pi.masked_fill(log_pi == -math.inf, 0)).sum(-1)
        ours = gather_log_probs(logits, ids, backend="cpu")
        wide = exact.detach()
        upstream = torch.zeros(3, 4), torch.ones(3), torch.ones(3)
        sizes = from_logits(wide, wide.abs().masked_fill(wide.isinf(), 0), ids, upstream)
        assert_within(ours.lse, exact.logsumexp(-1), vocab, sizes.lse)
        assert_within(ours.entropy, entropy, vocab, sizes.entropy)
        assert torch.equal(ours.logits.double(), exact.gather(1, ids))
        (ours.lse.sum() + ours.entropy.sum()).backward()
        (exact.logsumexp(-1).sum() + entropy.sum()).backward()
        assert_within(logits.grad, exact.grad, vocab, sizes.dlogits)
hidden, head = torch.randn(3, 5, dtype=torch.float64), 3 * torch.randn(50, 5, dtype=torch.float64)
ids = torch.zeros(3, 0).long()
ours = linear_log_probs(hidden.float(), head.float(), ids, softcap=2.0)
exact = (2 * torch.tanh(hidden @ head.T / 2)).logsumexp(-1)
sizes = head_magnitudes(hidden, head, ids, (ids, torch.ones(3), torch.ones(3)), softcap=2.0)
assert_within(ours.lse, exact, 50, sizes.lse)
"""


@pytest.mark.parametrize("name", native.CAPABILITIES)
def test_every_instruction_set(name):
    if native.CAPABILITIES.index(name) > native.CAPABILITIES.index(native.cpu_capability()):
        pytest.skip(f"this machine, or LEPO_CPU_CAPABILITY, does not offer {name}")
    environment = {**os.environ, "LEPO_CPU_CAPABILITY": name}
    done = subprocess.run(
        [sys.executable, "-c", CORE.format(name=name, seed=seeded(0))],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
