"""The embedding mixture against plain loops and torch's own autograd."""

import math
import warnings

import pytest
import torch

from lepo_kernels import mix_embeddings
from tests.ops.helpers import LOW_DTYPES, LargestTensor, transposed
from tests.seeds import seeded
from tests.tolerances import assert_no_worse_than_plain

pytestmark = pytest.mark.usefixtures("backend")


def plain(ids, weights, embedding):
    return (weights.to(embedding.dtype)[..., None] * embedding[ids.long()]).sum(-2)


def make(shape=(6, 4), vocab=9, width=5, dtype=torch.float64):
    torch.manual_seed(seeded(0))
    ids = torch.randint(0, vocab, shape)
    weights = torch.randn(shape, dtype=dtype, requires_grad=True)
    embedding = torch.randn(vocab, width, dtype=dtype, requires_grad=True)
    return ids, weights, embedding


def test_mixture_is_the_weighted_sum_of_rows(real):
    ids, weights, embedding = make(dtype=real)
    expected = torch.stack(
        [
            sum(
                (weights[n, k] * embedding[ids[n, k]] for k in range(4)),
                torch.zeros(5, dtype=real),
            )
            for n in range(6)
        ]
    )
    torch.testing.assert_close(mix_embeddings(ids, weights, embedding), expected)


# No leading dimension, one, and two; K = 0 and K = 1; no rows.
@pytest.mark.parametrize("shape", [(4,), (6, 4), (2, 3, 4), (3, 0), (3, 1), (0, 4)])
def test_any_leading_shape(shape, real):
    ids, weights, embedding = make(shape, dtype=real)
    ours, expected = mix_embeddings(ids.int(), weights, embedding), plain(ids, weights, embedding)
    torch.testing.assert_close(ours, expected)
    inputs = (weights, embedding)
    for x, y in zip(
        torch.autograd.grad(ours.square().sum(), inputs),
        torch.autograd.grad(expected.square().sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(x, y)


# No columns at all, with and without entries.
@pytest.mark.parametrize("shape", [(6, 4), (3, 0), (0, 4), (0, 0)])
def test_a_table_without_columns(shape, real):
    ids, weights, embedding = make(shape, width=0, dtype=real)
    mixed = mix_embeddings(ids, weights, embedding)
    assert mixed.shape == (shape[0], 0)
    dweights, dembedding = torch.autograd.grad(mixed.sum(), (weights, embedding))
    assert (dweights == 0).all()
    assert dweights.shape == shape
    assert dembedding.shape == (9, 0)


# In float32, a step of 1e-2 makes rounding (1e-7 of numbers near 1) a relative error of about 1e-5
# of the difference, and there is none of the step itself: the mixture is bilinear.
# Hundreds of calls.
@pytest.mark.large
def test_gradcheck_with_duplicates(real):
    ids, weights, embedding = make(dtype=real)
    ids[:, 1] = ids[:, 0]
    steps = {} if real == torch.float64 else {"eps": 1e-2, "atol": 1e-4, "rtol": 1e-3}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Input #. requires gradient and is not a double")
        assert torch.autograd.gradcheck(
            lambda w, e: mix_embeddings(ids, w, e), (weights, embedding), **steps
        )


def test_entries_of_weight_zero_are_skipped(real):
    ids, weights, embedding = (x.detach() for x in make(dtype=real))
    ids = ids.clamp_max(7)
    ids[:, 2], weights[:, 2] = 8, 0
    clean = mix_embeddings(ids, weights, embedding)
    embedding[8] = math.nan
    assert torch.equal(mix_embeddings(ids, weights, embedding), clean)


# K = 30 entries, as the published settings keep; D = 17, no multiple of a vector.
@pytest.mark.parametrize("dtype", LOW_DTYPES)
def test_error_is_no_worse_than_plain_torch(dtype):
    torch.manual_seed(seeded(1))
    ids = torch.randint(0, 50, (40, 30))
    weights = torch.randn(40, 30).softmax(-1).requires_grad_()
    embedding = torch.randn(50, 17).to(dtype).requires_grad_()

    def run(function, weights, embedding):
        mixed = function(ids, weights, embedding)
        return mixed, *torch.autograd.grad(mixed.double().sin().sum(), (weights, embedding))

    ours, rounded = (run(f, weights, embedding) for f in (mix_embeddings, plain))
    assert [x.dtype for x in ours] == [dtype, torch.float32, dtype]
    oracle = run(plain, weights.detach().double().requires_grad_(),
                 embedding.detach().double().requires_grad_())  # fmt: skip
    for x, y, z in zip(ours, rounded, oracle, strict=True):
        assert_no_worse_than_plain(x, y, z, dtype, 40 * 30)


def test_forward_reads_k_rows_and_never_the_table(real):
    ids, weights, embedding = make(vocab=1000, dtype=real)
    with torch.no_grad(), LargestTensor() as largest:
        mix_embeddings(ids, weights, embedding)
    assert largest.numel <= ids.numel() * embedding.shape[1]


def test_same_bits_run_to_run_and_row_by_row():
    ids, weights, embedding = make((64, 8), dtype=torch.float32)

    def run():
        mixed = mix_embeddings(ids, weights, embedding)
        return mixed, *torch.autograd.grad(mixed.square().sum(), (weights, embedding))

    base = run()
    for x, y in zip(run(), base, strict=True):
        assert torch.equal(x, y)
    assert torch.equal(mix_embeddings(ids[5:6], weights[5:6], embedding), base[0][5:6])
    strided = embedding.detach().T.contiguous().T
    torch.testing.assert_close(mix_embeddings(ids, weights, strided), base[0])


def test_autocast_does_not_reach_the_kernel():
    ids, weights, embedding = make(dtype=torch.float32)
    base = mix_embeddings(ids, weights, embedding)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(mix_embeddings(ids, weights, embedding), base)


def test_double_backward_is_refused(real):
    ids, weights, embedding = make(dtype=real)
    mixed = mix_embeddings(ids, weights, embedding)
    (first,) = torch.autograd.grad(mixed.square().sum(), weights, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives are not offered"):
        first.sum().backward()


def test_opcheck(backend, real):
    ids, weights, embedding = make(dtype=real)
    ops = torch.ops.lepo_kernels
    torch.library.opcheck(ops.mix_embeddings.default, (ids, weights, embedding, backend))
    torch.library.opcheck(
        ops.mix_embeddings_backward.default,
        (torch.ones(6, 5, dtype=real), ids, weights.detach(), embedding.detach(), True, False,
         backend),
        test_utils=("test_schema", "test_faketensor"),
    )  # fmt: skip


# One entry per row and one column are layouts that einsum may hand on as its own strides.
@pytest.mark.parametrize("shape", [(6, 4), (6, 1), (1, 4)])
def test_opcheck_of_transposed_inputs(shape, backend, real):
    ids, weights, embedding = (transposed(x) for x in make(shape, dtype=real))
    ops = torch.ops.lepo_kernels
    torch.library.opcheck(ops.mix_embeddings.default, (ids, weights, embedding, backend))
    torch.library.opcheck(
        ops.mix_embeddings_backward.default,
        (transposed(torch.randn(shape[0], 5, dtype=real)), ids, weights, embedding, True, True,
         backend),
        test_utils=("test_schema", "test_faketensor"),
    )  # fmt: skip


def test_compiled_is_eager_bitwise():
    ids, weights, embedding = make(dtype=torch.float32)

    def step(weights, embedding):
        return mix_embeddings(ids, weights, embedding).square().sum()

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    inputs = (weights, embedding)
    ours, eager = compiled(*inputs), step(*inputs)
    assert torch.equal(ours, eager)
    for x, y in zip(
        torch.autograd.grad(ours, inputs), torch.autograd.grad(eager, inputs), strict=True
    ):
        assert torch.equal(x, y)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"ids": [0, 1]}, TypeError, "ids: expected a Tensor, got list"),
        ({"ids": torch.zeros(2, 3)}, TypeError, "ids: expected dtype int64, int32, got float32"),
        ({"ids": torch.tensor(3)}, ValueError, r"ids: expected shape \[..., K\], got \[\]"),
        ({"weights": torch.zeros(2, 4)}, ValueError, r"weights: expected shape \[2, 3\]"),
        ({"weights": torch.zeros(2, 3).long()}, TypeError, "weights: expected dtype float32"),
        ({"embedding": torch.zeros(5)}, ValueError, r"embedding: expected shape \[V, D\]"),
        ({"ids": torch.full((2, 3), 5)}, IndexError, r"ids: expected values in \[0, 5\), got 5"),
        ({"ids": torch.full((2, 3), -1)}, IndexError, r"ids: expected values in \[0, 5\), got -1"),
    ],
)
def test_errors_name_the_argument(change, error, message):
    arguments = {
        "ids": torch.zeros(2, 3, dtype=torch.int64),
        "weights": torch.zeros(2, 3),
        "embedding": torch.zeros(5, 4),
    }
    with pytest.raises(error, match=message):
        mix_embeddings(**(arguments | change))
