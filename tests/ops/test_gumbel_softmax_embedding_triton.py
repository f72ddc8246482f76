"""What the Triton kernels of the dense Gumbel-softmax mixture promise beyond the contract."""

import sys

import pytest
import torch

import lepo_kernels
from lepo_kernels import dispatch, gumbel_softmax_embedding
from tests import triton_backend
from tests.ops.helpers import LOW_DTYPES, LargestTensor, assert_no_worse_than_plain
from tests.ops.test_gumbel_softmax_embedding import (
    OPTIONS,
    assert_as_good_as_plain,
    everything,
    in_float64,
    make,
    plain,
    raw_arguments,
)

pytestmark = pytest.mark.skipif(triton_backend.why_not() is not None, reason="no triton")


@pytest.fixture
def real_tiles(monkeypatch):
    with triton_backend.serving(monkeypatch, large_tiles=False), lepo_kernels.backend("triton"):
        yield


@pytest.fixture
def on_triton(monkeypatch):
    with triton_backend.serving(monkeypatch), lepo_kernels.backend("triton"):
        yield


@pytest.fixture
def busy(monkeypatch):
    """Sets how many programs keep the device busy, and so how many splits there are."""

    def set_programs(count):
        kernels = sys.modules[dispatch.load("gumbel_softmax_embedding", "triton").__module__]
        monkeypatch.setattr(kernels, "programs_wanted", lambda device: count)

    return set_programs


# V = 150: tiles of 64, or 32 for float32, and of 128, the last ones cut, and a cut block of noise.
# D = 300: blocks of 256 or 128 columns and pieces of 64 or 32, the last ones cut. 5 rows: a cut
# tile of 16; 70: two of 64, the second one cut.
@pytest.mark.usefixtures("real_tiles")
@pytest.mark.parametrize("dtype", LOW_DTYPES)
@pytest.mark.parametrize("rows", [5, 70])
def test_real_tiles(rows, dtype):
    inputs = make(rows, 150, 300, dtype=dtype)
    ours, rounded = (everything(f, inputs, 0.5) for f in (gumbel_softmax_embedding, plain))
    for x, y, z in zip(ours, rounded, everything(plain, in_float64(inputs), 0.5), strict=True):
        # Most of a sum of 300 products cancels.
        assert_no_worse_than_plain(x, y, z, x.dtype, float32_units=16)


# Peaks in the first tile, in the last, cut one, and at its last id: all that is beyond it would
# outweigh them, were it not left out.
@pytest.mark.usefixtures("real_tiles")
@pytest.mark.parametrize("peak", [3, 145, 149])
def test_peaked_rows_beside_cut_tiles(peak):
    logits, embedding = make(3, 150, 5)
    with torch.no_grad():
        logits -= 50
        logits[:, peak] += 20
    inputs = (logits, embedding)
    ours = everything(gumbel_softmax_embedding, inputs, 0.7)
    for x, y in zip(ours, everything(plain, in_float64(inputs), 0.7), strict=True):
        # z - pi is a difference of numbers near 1, in float32.
        torch.testing.assert_close(x.double(), y, rtol=1e-5, atol=4e-7)


# V = 9000: five tiles of 2048 for the statistics, nine of 1024 for the mixture; one split, two of
# uneven numbers of tiles, and as many as there are tiles.
@pytest.mark.usefixtures("on_triton")
@pytest.mark.parametrize("programs", [1, 2, 1000])
def test_splits(programs, busy):
    busy(programs)
    assert_as_good_as_plain(make(5, 9000, 3), **OPTIONS)


# In the same tile of 2048, in the next, in the last, cut one; tiles of one split and of several.
@pytest.mark.usefixtures("on_triton")
@pytest.mark.parametrize("programs", [1, 1000])
@pytest.mark.parametrize("second", [1000, 3000, 8999])
def test_ties_go_to_the_first_id(second, programs, busy):
    busy(programs)
    logits, embedding = make(2, 9000, 2)
    with torch.no_grad():
        logits[:, [700, second]] = 1e30
    hard = gumbel_softmax_embedding(logits, embedding, 0.0)
    assert torch.equal(hard.embedding, embedding[700].expand(2, 2))


@pytest.mark.usefixtures("on_triton")
def test_splits_without_a_finite_logit(busy):
    busy(1000)
    logits, embedding = make(2, 9000, 3)
    with torch.no_grad():
        logits[:, :5000] = -torch.inf
        logits[:, 7000:] = -torch.inf
    ours, expected = (f(logits, embedding, 0.5) for f in (gumbel_softmax_embedding, plain))
    for x, y in zip(ours, expected, strict=True):
        torch.testing.assert_close(x, y)


@pytest.mark.usefixtures("on_triton")
def test_nearly_one_hot_rows_have_gradients_of_full_relative_accuracy():
    logits, embedding = make(20, 40, 1)
    with torch.no_grad():
        logits[:, 7] += 22  # all others weigh about exp(-20 / 1.2) = 6e-8 each
        embedding.abs_()
    exact = in_float64((logits, embedding))
    ours = gumbel_softmax_embedding(logits, embedding, 1.2).embedding.sum()
    (dlogits,) = torch.autograd.grad(ours, logits)
    (expected,) = torch.autograd.grad(plain(*exact, 1.2)[0].sum(), exact[0])
    # e and E_peak differ in their last two digits: their difference would be wrong by percents.
    torch.testing.assert_close(dlogits.double(), expected, rtol=1e-4, atol=1e-12)


# A mixture of half precision is summed up in float32, with weights of more digits than its table's.
@pytest.mark.usefixtures("on_triton")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_keep_more_digits_than_a_table_of_half_precision(dtype):
    logits, _ = make(4, 3000, 1)
    _, embedding = make(1, 3000, 8, dtype=dtype)
    shared = raw_arguments(logits.detach(), embedding.detach())
    mixed, _, deviation, statistics = dispatch.load("gumbel_softmax_embedding", "triton")(*shared)
    exact, _ = plain(*in_float64((logits, embedding)), 1.0)
    # Two bfloat16 numbers hold a weight to 2^-17; the noise is float32's.
    torch.testing.assert_close(mixed.double(), exact, rtol=0, atol=2e-5)
    peaks = embedding[statistics[:, 4].long()].double()
    torch.testing.assert_close(deviation.double(), exact - peaks, rtol=0, atol=4e-5)


# 70 rows in two blocks of 64: idle rows among active ones, and a block of nothing but idle ones.
@pytest.mark.usefixtures("on_triton")
@pytest.mark.parametrize("active", [[], [0, 69], list(range(0, 70, 2))])
def test_idle_rows_are_left_out(active, monkeypatch):
    logits, embedding = (x.detach() for x in make(70, 40, 3))
    grad, grad_log_prob = torch.zeros(70, 3), torch.zeros(70)
    grad[active], grad_log_prob[active] = torch.randn(len(active), 3), torch.randn(len(active))
    shared = raw_arguments(logits, embedding)
    _, _, *known = dispatch.load("gumbel_softmax_embedding", "reference")(*shared)
    idle = torch.ones(70, dtype=torch.bool)
    idle[active] = False
    logits[idle] = torch.nan  # would spread into the gradient of the table
    arguments = (grad, grad_log_prob, *shared, *known, True, True)
    ours, expected = (
        dispatch.load("gumbel_softmax_embedding_backward", name)(*arguments)
        for name in ("triton", "reference")
    )
    for x, y in zip(ours, expected, strict=True):
        torch.testing.assert_close(x, y)
    assert ours[0][idle].eq(0).all()


@pytest.mark.usefixtures("on_triton")
def test_same_bits_in_every_run(busy):
    busy(6)
    inputs = make(5, 5000, 40, dtype=torch.bfloat16)
    first, again = (everything(gumbel_softmax_embedding, inputs, **OPTIONS) for _ in range(2))
    for x, y in zip(first, again, strict=True):
        assert torch.equal(x, y)


@pytest.mark.usefixtures("on_triton")
def test_nothing_of_the_size_of_the_logits_is_stored():
    logits, embedding = make(8, 3000, 4)
    with torch.no_grad(), LargestTensor() as largest:
        gumbel_softmax_embedding(logits, embedding, 0.5)
    assert largest.numel < 1000
    forward = dispatch.load("gumbel_softmax_embedding", "triton")
    backward = dispatch.load("gumbel_softmax_embedding_backward", "triton")
    shared = raw_arguments(logits.detach(), embedding.detach())
    _, _, *known = forward(*shared)
    with LargestTensor() as largest:
        backward(torch.randn(8, 4), torch.randn(8), *shared, *known, False, True)
    assert largest.numel == 3000 * 4  # the table's gradient itself


@pytest.mark.usefixtures("on_triton")
@pytest.mark.parametrize(
    ("position", "value", "message"),
    [
        (0, torch.zeros(3), r"logits: expected shape \[N, V\]"),
        (1, torch.zeros(12, 3), r"embedding: expected shape \[11, D\]"),
        (2, torch.ones(2).double(), r"tau: expected shape \[5\]"),
        (4, torch.zeros(1).long(), r"seed: expected shape \[\]"),
        (5, torch.arange(4), r"row_keys: expected shape \[5\]"),
        (6, torch.arange(4), r"step: expected shape \[5\]"),
    ],
)
def test_raw_calls_are_checked(position, value, message):
    arguments = list(raw_arguments(*(x.detach() for x in make())))
    arguments[position] = value
    with pytest.raises(ValueError, match=message):
        dispatch.load("gumbel_softmax_embedding", "triton")(*arguments)
