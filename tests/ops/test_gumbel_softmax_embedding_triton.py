"""What the Triton kernels of the dense Gumbel-softmax mixture promise beyond the contract."""

import pytest
import torch

import lepo_kernels
from lepo_kernels import gumbel_softmax_embedding
from tests import triton_backend
from tests.ops.helpers import LOW_DTYPES, LargestTensor, kernel_of
from tests.ops.test_gumbel_softmax_embedding import (
    OPTIONS,
    assert_as_good_as_plain,
    everything,
    in_float64,
    magnitudes,
    make,
    plain,
    raw_arguments,
)
from tests.tolerances import assert_no_worse_than_plain

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
def launches():
    from lepo_kernels.backends.triton.gumbel_softmax import launching

    return launching


@pytest.fixture
def busy(launches, monkeypatch):
    """Sets how many programs keep the device busy, and so how many splits there are."""

    def set_programs(count):
        monkeypatch.setattr(launches, "programs_wanted", lambda device: count)

    return set_programs


@pytest.fixture
def chunks(launches, monkeypatch):
    """Sets how many ids' scores are held of so many rows at a time, in steps of 2048."""

    def set_ids(count, rows):
        monkeypatch.setitem(launches.CHUNK, "ENTRIES", count * rows)

    return set_ids


# V = 150: tiles of 64, or 32 for float32, and of 128, the last ones cut, and a cut block of noise.
# D = 300: blocks of 256 or 128 columns and pieces of 64 or 32, the last ones cut. 5 rows: a cut
# tile of 16; 70: two of 64, the second one cut.
@pytest.mark.usefixtures("real_tiles")
@pytest.mark.parametrize("dtype", LOW_DTYPES)
@pytest.mark.parametrize("rows", [5, pytest.param(70, marks=pytest.mark.slow)])
def test_real_tiles(rows, dtype):
    inputs = make(rows, 150, 300, dtype=dtype)
    ours, rounded = (everything(f, inputs, 0.5) for f in (gumbel_softmax_embedding, plain))
    oracle, sizes = everything(plain, in_float64(inputs), 0.5), magnitudes(inputs, 0.5)
    for x, y, z, size in zip(ours, rounded, oracle, sizes, strict=True):
        assert_no_worse_than_plain(x, y, z, x.dtype, 300, size)


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


# V = 9000: five tiles of 2048 for the scores, nine of 1024 for the mixture; one split, two of
# uneven numbers of tiles, and as many as there are tiles.
@pytest.mark.usefixtures("on_triton")
@pytest.mark.parametrize("programs", [1, 2, 1000])
def test_splits(programs, busy):
    busy(programs)
    assert_as_good_as_plain(make(5, 9000, 3), **OPTIONS)


# Five chunks, of which the last one is cut, and three, whose last one is cut within its only split:
# the sums of all are carried over, and those of rows with a new peak take in the old one.
@pytest.mark.usefixtures("on_triton")
@pytest.mark.parametrize(("ids", "programs"), [(2048, 1), (4096, 3)])
def test_chunks_of_the_vocabulary(ids, programs, chunks, busy):
    logits, embedding = make(5, 9000, 3)
    with torch.no_grad():
        # Each chunk has the largest logit so far; each has a smaller one than those before it.
        logits[0, 100::2048] += torch.arange(5) * 4
        logits[1, 100::2048] += torch.arange(5).flip(0) * 4
        logits[2, :5000] = -torch.inf
    chunks(ids, 5)
    busy(programs)
    assert_as_good_as_plain((logits, embedding), **OPTIONS)
    dense = gumbel_softmax_embedding(logits, embedding, **OPTIONS)
    chunks(10240, 5)
    for x, y in zip(gumbel_softmax_embedding(logits, embedding, **OPTIONS), dense, strict=True):
        torch.testing.assert_close(x, y)


# In the same tile of 2048, in the next, in the last, cut one; in one chunk and in several.
@pytest.mark.usefixtures("on_triton")
@pytest.mark.parametrize("ids", [2048, 10240])
@pytest.mark.parametrize("second", [1000, 3000, 8999])
def test_ties_go_to_the_first_id(second, ids, chunks):
    chunks(ids, 2)
    logits, embedding = make(2, 9000, 2)
    with torch.no_grad():
        logits[:, [700, second]] = 1e30
    hard = gumbel_softmax_embedding(logits, embedding, 0.0)
    assert torch.equal(hard.embedding, embedding[700].expand(2, 2))


@pytest.mark.usefixtures("on_triton")
@pytest.mark.parametrize("ids", [2048, 10240])
def test_parts_without_a_finite_logit(ids, chunks, busy):
    chunks(ids, 2)
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
    forward = kernel_of("gumbel_softmax_embedding", "triton")
    mixed, _, _, deviation, statistics = forward(*shared, False)
    exact, _, _ = plain(*in_float64((logits, embedding)), 1.0)
    # Two bfloat16 numbers hold a weight to 2^-17; the noise is float32's.
    torch.testing.assert_close(mixed.double(), exact, rtol=0, atol=2e-5)
    peaks = embedding[statistics[:, 4].long()].double()
    torch.testing.assert_close(deviation.double(), exact - peaks, rtol=0, atol=4e-5)


# 70 rows in two blocks of 64: idle rows among active ones, and a block of nothing but idle ones.
@pytest.mark.usefixtures("on_triton")
@pytest.mark.parametrize("active", [[], [0, 69], list(range(0, 70, 2))])
def test_idle_rows_are_left_out(active):
    logits, embedding = (x.detach() for x in make(70, 40, 3))
    upstream = torch.zeros(70, 3), torch.zeros(70), torch.zeros(70)
    for x in upstream:
        x[active] = torch.randn(x[active].shape)
    shared = raw_arguments(logits, embedding)
    mixed, _, _, *known = kernel_of("gumbel_softmax_embedding", "reference")(*shared, False)
    idle = torch.ones(70, dtype=torch.bool)
    idle[active] = False
    logits[idle] = torch.nan  # would spread into the gradient of the table
    for needs in ((True, True), (False, True)):
        ours, expected = (
            kernel_of("gumbel_softmax_embedding_backward", name)(
                *upstream, *shared, mixed, *known, *needs
            )
            for name in ("triton", "reference")
        )
        for x, y in zip(ours, expected, strict=True):
            torch.testing.assert_close(x, y)
        assert ours[0].numel() == 0 or ours[0][idle].eq(0).all()


@pytest.mark.usefixtures("on_triton")
def test_same_bits_in_every_run(busy, chunks):
    busy(6)
    chunks(2048, 5)
    inputs = make(5, 5000, 40, dtype=torch.bfloat16)
    first, again = (everything(gumbel_softmax_embedding, inputs, **OPTIONS) for _ in range(2))
    for x, y in zip(first, again, strict=True):
        assert torch.equal(x, y)


# 16 rows of 9000: of 2048 ids, where 20000 scores would be 1250; of 4096, where they are 78000. The
# backward pass holds the table's gradient, of 36000, and as many weights.
@pytest.mark.usefixtures("on_triton")
@pytest.mark.parametrize(("entries", "ids"), [(20000, 2048), (78000, 4096)])
def test_what_is_held_of_a_size_with_the_logits_is_bounded(entries, ids, launches, monkeypatch):
    monkeypatch.setitem(launches.CHUNK, "ENTRIES", entries)
    logits, embedding = make(16, 9000, 4)
    with torch.no_grad(), LargestTensor() as largest:
        gumbel_softmax_embedding(logits, embedding, 0.5)
    assert largest.numel == 16 * ids
    shared = raw_arguments(logits.detach(), embedding.detach())
    mixed, _, _, *known = kernel_of("gumbel_softmax_embedding", "triton")(*shared, False)
    backward = kernel_of("gumbel_softmax_embedding_backward", "triton")
    upstream = (torch.randn(16, 4), torch.randn(16), torch.randn(16))
    with LargestTensor() as largest:
        backward(*upstream, *shared, mixed, *known, False, True)
    assert largest.numel == max(16 * ids, 9000 * 4)


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
    arguments = [*raw_arguments(*(x.detach() for x in make())), False]
    arguments[position] = value
    with pytest.raises(ValueError, match=message):
        kernel_of("gumbel_softmax_embedding", "triton")(*arguments)
