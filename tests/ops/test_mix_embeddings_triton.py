"""What the Triton kernels of the embedding mixture promise beyond the contract."""

import pytest
import torch

from lepo_kernels import dispatch, mix_embeddings
from lepo_kernels.backends import checks
from tests import triton_backend
from tests.ops.helpers import LOW_DTYPES, transposed
from tests.ops.test_mix_embeddings_cpu import WEIGHT_DTYPES, make, plain, with_gradients
from tests.tolerances import assert_no_worse_than_plain

pytestmark = pytest.mark.skipif(triton_backend.why_not() is not None, reason="no triton")


@pytest.fixture(autouse=True)
def on_triton(monkeypatch):
    with triton_backend.serving(monkeypatch):
        yield


def mix(ids, weights, embedding):
    return mix_embeddings(ids, weights, embedding, backend="triton")


# K = 40: two tiles of 32 entries, the second one cut. D = 600: three tiles of 256 columns, five of
# 128 and two of 512, the last ones cut. 3 rows in the table: about 67 entries of each id, nine
# tiles of 8; 64 rows: about 3, less than a tile.
@pytest.mark.parametrize("dtype", LOW_DTYPES)
@pytest.mark.parametrize("vocab", [3, 64])
def test_error_is_no_worse_than_plain_torch(dtype, vocab):
    inputs = make(5, 40, vocab, 600, dtype)
    ours, rounded = (with_gradients(f, *inputs) for f in (mix, plain))
    ids, weights, embedding = inputs
    wide = (ids, *(x.detach().double().requires_grad_() for x in (weights, embedding)))
    for x, y, z in zip(ours, rounded, with_gradients(plain, *wide), strict=True):
        assert_no_worse_than_plain(x, y, z, dtype, max(weights.numel(), embedding.shape[1]))


# One entry less than a tile of 8 has, all of it, and one more: that a tile is full says that there
# may be more.
@pytest.mark.parametrize("entries", [7, 8, 9, 16])
def test_entries_of_one_id_fill_tiles(entries):
    weights = torch.ones(1, entries, requires_grad=True)
    embedding = torch.ones(4, 3, requires_grad=True)
    mixed = mix(torch.full((1, entries), 2), weights, embedding)
    (dembedding,) = torch.autograd.grad(mixed.sum(), embedding)
    expected = torch.zeros(4, 3)
    expected[2] = entries
    assert torch.equal(dembedding, expected)


@pytest.mark.parametrize("weight_dtype", WEIGHT_DTYPES)
@pytest.mark.parametrize("ids_dtype", [torch.int64, torch.int32])
def test_every_kind_of_ids_and_weights(weight_dtype, ids_dtype):
    ids, weights, embedding = make(3, 5, 20, 33, weight_dtype=weight_dtype)
    ours = with_gradients(mix, ids.to(ids_dtype), weights, embedding)
    widened = weights.detach().float().requires_grad_()
    expected = with_gradients(mix, ids, widened, embedding)
    assert ours[1].dtype == weight_dtype
    assert torch.equal(ours[1], expected[1].to(weight_dtype))
    assert torch.equal(ours[0], expected[0])
    assert torch.equal(ours[2], expected[2])


def test_the_batch_changes_no_bit():
    ids, weights, embedding = make(6, 30, 400, 300)
    whole = mix(ids, weights, embedding)
    for rows in (torch.tensor([3]), torch.tensor([5, 1, 1])):
        assert torch.equal(mix(ids[rows], weights[rows], embedding), whole[rows])


# NaN beside the columns of a slice must not be read.
def test_strided_and_transposed_tables():
    ids, weights, embedding = make(4, 6, 30, 50)
    dense = with_gradients(mix, ids, weights, embedding)
    padded = torch.full((30, 60), torch.nan)
    padded[:, 5:55] = embedding.detach()
    for table in (padded[:, 5:55], transposed(embedding)):
        ours = with_gradients(mix, ids, weights, table.detach().requires_grad_())
        for x, y in zip(ours, dense, strict=True):
            assert torch.equal(x, y)
        assert ours[2].is_contiguous()


def test_without_checks_a_wrong_id_spoils_its_own_row_alone(monkeypatch):
    monkeypatch.setattr(checks, "checks_enabled", lambda device: False)
    ids, weights, embedding = (x.detach() for x in make(3, 4, 9, 40))
    clean = mix(ids, weights, embedding)
    wrong = ids.clone()
    wrong[1, 2], wrong[2, 0] = 9, -1
    mixed = mix(wrong, weights, embedding)
    assert torch.equal(mixed[0], clean[0])
    assert mixed[1:].isnan().all()
    backward = dispatch.load("mix_embeddings_backward", "triton")
    dweights, dembedding = backward(torch.ones(3, 40), wrong, weights, embedding, True, True)
    kept = torch.ones(3, 4)
    kept[1, 2] = kept[2, 0] = 0
    assert torch.equal(dweights.isnan(), kept == 0)
    sums = torch.zeros(9).index_add_(0, ids.flatten(), (weights * kept).flatten())
    torch.testing.assert_close(dembedding, sums[:, None].expand(9, 40))


# Ids of row 8 have weight 0 where its gradient is NaN.
def test_entries_of_weight_zero_do_not_reach_the_table():
    ids, weights, embedding = (x.detach() for x in make(2, 3, 9, 40))
    weights[1] = 0
    grad = torch.ones(2, 40)
    grad[1] = torch.nan
    backward = dispatch.load("mix_embeddings_backward", "triton")
    _, dembedding = backward(grad, ids, weights, embedding, False, True)
    assert dembedding.isfinite().all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": torch.zeros(2, 4)}, r"weights: expected shape \[2, 3\]"),
        ({"grad": torch.zeros(2, 5)}, r"grad: expected shape \[2, 4\]"),
        ({"ids": torch.zeros(6).long()}, r"ids: expected shape \[N, K\]"),
        ({"embedding": torch.zeros(5)}, r"embedding: expected shape \[V, D\]"),
    ],
)
def test_raw_calls_are_checked(change, message):
    arguments = {
        "grad": torch.zeros(2, 4),
        "ids": torch.zeros(2, 3).long(),
        "weights": torch.zeros(2, 3),
        "embedding": torch.zeros(5, 4),
    }
    backward = dispatch.load("mix_embeddings_backward", "triton")
    with pytest.raises(ValueError, match=message):
        backward(*(arguments | change).values(), True, True)
