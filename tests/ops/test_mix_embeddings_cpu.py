"""The native embedding mixture: its bits, layouts, large tables, and what it must not read."""

import math

import pytest
import torch

from lepo_kernels import dispatch, mix_embeddings, native
from tests.ops.helpers import LOW_DTYPES, assert_passes_on
from tests.seeds import seeded
from tests.tolerances import assert_no_worse_than_plain

pytestmark = pytest.mark.skipif("cpu" in dispatch.MISSING, reason="no native library")

WEIGHT_DTYPES = (*LOW_DTYPES, torch.float64)


def make(rows, entries, vocab, width, dtype=torch.float32, weight_dtype=torch.float32):
    torch.manual_seed(seeded(0))
    ids = torch.randint(0, vocab, (rows, entries))
    weights = torch.randn(rows, entries).to(weight_dtype).requires_grad_()
    embedding = torch.randn(vocab, width).to(dtype).requires_grad_()
    return ids, weights, embedding


def with_gradients(function, ids, weights, embedding):
    mixed = function(ids, weights, embedding)
    # Of the inputs' size, and the same for every function: held by no rounded result.
    grad = torch.linspace(-1, 1, mixed.numel()).reshape(mixed.shape).bfloat16().to(mixed.dtype)
    return mixed, *torch.autograd.grad(mixed, (weights, embedding), grad)


def native_mix(ids, weights, embedding):
    return mix_embeddings(ids, weights, embedding, backend="cpu")


def plain(ids, weights, embedding):
    return (weights.to(embedding.dtype)[..., None] * embedding[ids.long()]).sum(-2)


# D = 1 and 3: less than a vector; 17: one and a rest; 64: a small tile; 576 and 700: slices of
# 256 with tiles of every size behind them. 3 rows in the table: many duplicates.
@pytest.mark.parametrize("dtype", LOW_DTYPES)
@pytest.mark.parametrize("width", [1, 3, 17, 64, 576, 700])
@pytest.mark.parametrize("vocab", [3, 500])
def test_error_is_no_worse_than_plain_torch(dtype, width, vocab):
    inputs = make(40, 30, vocab, width, dtype)
    ours, rounded = (with_gradients(f, *inputs) for f in (native_mix, plain))
    ids, weights, embedding = inputs
    wide = (ids, *(x.detach().double().requires_grad_() for x in (weights, embedding)))
    for x, y, z in zip(ours, rounded, with_gradients(plain, *wide), strict=True):
        assert_no_worse_than_plain(x, y, z, dtype, max(weights.numel(), embedding.shape[1]))


@pytest.mark.parametrize("weight_dtype", WEIGHT_DTYPES)
@pytest.mark.parametrize("ids_dtype", [torch.int64, torch.int32])
def test_every_kind_of_ids_and_weights(weight_dtype, ids_dtype):
    ids, weights, embedding = make(6, 5, 20, 33, weight_dtype=weight_dtype)
    ours = with_gradients(native_mix, ids.to(ids_dtype), weights, embedding)
    widened = weights.detach().float().requires_grad_()
    expected = with_gradients(native_mix, ids, widened, embedding)
    assert torch.equal(ours[0], expected[0])
    assert ours[1].dtype == weight_dtype
    assert torch.equal(ours[1], expected[1].to(weight_dtype))
    assert torch.equal(ours[2], expected[2])


# One row of many slices, rows that threads share out, and ids that all entries share.
@pytest.mark.parametrize(("rows", "vocab"), [(1, 900), (64, 900), (64, 1)])
@pytest.mark.parametrize("dtype", LOW_DTYPES)
def test_threads_change_no_bit(rows, vocab, dtype):
    inputs = make(rows, 30, vocab, 2048, dtype)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(with_gradients(native_mix, *inputs))
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        for ours, first in zip(result, results[0], strict=True):
            assert torch.equal(ours, first)


def test_the_batch_changes_no_bit():
    ids, weights, embedding = make(50, 30, 400, 576)
    whole = native_mix(ids, weights, embedding)
    for rows in (torch.tensor([7]), torch.tensor([49, 3, 3])):
        assert torch.equal(native_mix(ids[rows], weights[rows], embedding), whole[rows])


@pytest.mark.parametrize("dtype", LOW_DTYPES)
def test_strided_and_transposed_tables(dtype):
    ids, weights, embedding = make(4, 6, 30, 50, dtype)
    dense = with_gradients(native_mix, ids, weights, embedding)
    values = embedding.detach()
    padded = torch.full((30, 60), math.nan, dtype=dtype)
    padded[:, 5:55] = values
    for table in (padded[:, 5:55], values.T.contiguous().T):
        ours = with_gradients(native_mix, ids, weights, table.detach().requires_grad_())
        for x, y in zip(ours, dense, strict=True):
            assert torch.equal(x, y)


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_weights_that_are_not_finite_show(poison):
    ids, weights, embedding = (x.detach() for x in make(3, 4, 9, 40))
    weights[1, 2] = poison
    mixed = native_mix(ids, weights, embedding)
    assert not mixed[1].isfinite().any()
    assert mixed[[0, 2]].isfinite().all()


# D = 700 has a large tile, small ones, single vectors and a rest.
def test_rows_of_weight_zero_are_skipped_in_every_tile():
    ids, weights, embedding = (x.detach() for x in make(3, 4, 9, 700))
    ids.clamp_(max=7)
    ids[:, 2], weights[:, 2] = 8, 0
    clean = native_mix(ids, weights, embedding)
    embedding[8] = math.nan
    assert torch.equal(native_mix(ids, weights, embedding), clean)


def test_gradient_of_a_weight_of_zero_is_its_row():
    ids, weights, embedding = make(3, 4, 9, 40)
    with torch.no_grad():
        weights[:, 1] = 0
    mixed = native_mix(ids, weights, embedding)
    (dweights,) = torch.autograd.grad(mixed.sum(), weights)
    torch.testing.assert_close(dweights, embedding.detach().sum(-1)[ids])


def test_gradient_of_the_table_is_zero_where_no_id_points():
    # 40 MB: fresh pages, which nothing has written.
    ids, weights, embedding = make(2, 3, 20000, 512)
    (dembedding,) = torch.autograd.grad(native_mix(ids, weights, embedding).sum(), embedding)
    used = torch.zeros(20000, dtype=torch.bool)
    used[ids] = True
    assert dembedding[~used].eq(0).all()
    assert dembedding[used].ne(0).any(-1).all()
    # It is a tensor like any other.
    embedding.grad = dembedding
    torch.optim.SGD([embedding], lr=0.1).step()
    assert dembedding.is_contiguous()
    del dembedding, embedding


def test_ids_out_of_range_in_a_strided_table():
    table = torch.zeros(4, 5).T
    with pytest.raises(IndexError, match=r"ids: expected values in \[0, 5\), got 7"):
        native_mix(torch.tensor([[1, 7]]), torch.zeros(1, 2), table)


def test_ids_out_of_range_count_even_without_weight():
    with pytest.raises(IndexError, match=r"ids: expected values in \[0, 5\), got -2"):
        native_mix(torch.tensor([[1, -2]]), torch.zeros(1, 2), torch.zeros(5, 4))


@pytest.mark.slow
@pytest.mark.parametrize("capability", native.CAPABILITIES)
def test_every_instruction_set(capability):
    assert_passes_on(capability, __file__, "error or kind or strided")
