"""What the Triton kernels of the mixture from hidden states promise beyond the contract."""

import pytest
import torch

import lepo_kernels
from tests import triton_backend
from tests.ops.helpers import LOW_DTYPES, LargestTensor, kernel_of
from tests.ops.test_linear_gumbel_softmax_embedding import (
    dense,
    everything,
    fused,
    loss_of,
    make,
    raw_arguments,
)
from tests.tolerances import assert_no_worse_than_plain

pytestmark = pytest.mark.skipif(triton_backend.why_not() is not None, reason="no triton")


@pytest.fixture
def real_tiles(monkeypatch):
    with triton_backend.serving(monkeypatch, large_tiles=False), lepo_kernels.backend("triton"):
        yield


# V = 150: tiles of 128, 64 or 32, and chunks of 128, the last ones cut. Dh = 140 and D = 40: pieces
# of 128 or 32 columns, the last ones cut. 5 rows: a cut tile of 16; 70: two of 64.
@pytest.mark.usefixtures("real_tiles")
@pytest.mark.parametrize("dtype", LOW_DTYPES)
@pytest.mark.parametrize(
    ("rows", "tied"),
    [(5, True), (5, False), pytest.param(70, True, marks=pytest.mark.slow)],
)
def test_real_tiles(rows, tied, dtype):
    hidden, lm_head, table, bias = make(rows, 140, 150, 40, dtype=dtype)
    with torch.no_grad():
        lm_head /= 12  # logits of about 1
    inputs = (hidden, lm_head, None if tied else table, bias)
    exact = tuple(x if x is None else x.detach().double().requires_grad_() for x in inputs)
    ours = everything(fused, inputs, softcap=5.0, chunk_size=1)
    rounded, oracle = (everything(dense, x, softcap=5.0) for x in (inputs, exact))
    for x, y, z in zip(ours, rounded, oracle, strict=True):
        if z is not None:
            assert_no_worse_than_plain(x, y, z, x.dtype, len(inputs[1]))


def test_logits_are_formed_in_the_same_order_by_both_passes():
    from lepo_kernels.backends.triton import linear_gumbel_softmax_embedding as forward
    from lepo_kernels.backends.triton.gumbel_softmax import linear_backward as backward

    scores, gradients = forward.LINEAR_SCORES, backward.LINEAR_LOGITS_GRADIENT
    assert {name: x["COLUMNS"] for name, x in scores.items()} == {
        name: x["COLUMNS"] for name, x in gradients.items()
    }


# 6 rows of 2000 ids, of which the dense form would hold fewer here. As many scores as 3 rows have
# are 896 ids, in steps of 128. All else is smaller.
@pytest.mark.usefixtures("real_tiles")
@pytest.mark.parametrize(("chunk_size", "ids"), [(3, 896), (7, 2000)])
def test_chunks_are_as_large_as_asked(chunk_size, ids, monkeypatch):
    from lepo_kernels.backends.triton.gumbel_softmax import launching

    monkeypatch.setitem(launching.CHUNK, "ENTRIES", 100)
    inputs = (*make(6, 1, 2000)[:2], None)
    with torch.no_grad(), LargestTensor() as largest:
        fused(*inputs, chunk_size=chunk_size)
    assert largest.numel == 6 * ids
    outputs = fused(*inputs, chunk_size=chunk_size)
    with LargestTensor() as largest:
        loss_of(outputs).backward()
    assert largest.numel == 6 * ids


# 256 MiB of scores: of 64 rows all, and of 16384 rows 4096 ids, less what is no whole row of the
# vocabulary; the thinnest chunk where rows are very many.
@pytest.mark.parametrize(("rows", "width"), [(64, 151936), (16384, 3968), (1 << 20, 128)])
def test_default_chunks_of_a_large_vocabulary(rows, width):
    from lepo_kernels.backends.triton.gumbel_softmax.launching import chunk_width

    assert chunk_width(rows, 151936, (1 << 26) // 151936 * 151936) == width


def test_a_chunk_has_no_more_tiles_than_a_program_folds():
    from lepo_kernels.backends.triton.gumbel_softmax.launching import chunk_width

    assert chunk_width(1, 1 << 26, 1 << 26) == 1 << 18


@pytest.mark.usefixtures("real_tiles")
def test_same_bits_in_every_run():
    inputs = make(5, 20, 300, 40, dtype=torch.bfloat16)
    first, again = (everything(fused, inputs, chunk_size=1) for _ in range(2))
    for x, y in zip(first, again, strict=True):
        assert torch.equal(x, y)


@pytest.mark.usefixtures("real_tiles")
@pytest.mark.parametrize(
    ("position", "value", "message"),
    [
        (0, torch.zeros(3), r"hidden: expected shape \[N, D\]"),
        (1, torch.zeros(11, 5), r"lm_head: expected shape \[V, 4\]"),
        (4, torch.zeros(12, 3), r"embedding: expected shape \[11, E\]"),
        (2, torch.zeros(12), r"bias: expected shape \[11\]"),
        (5, torch.ones(2).double(), r"tau: expected shape \[6\]"),
        (8, torch.arange(4), r"row_keys: expected shape \[6\]"),
    ],
)
def test_raw_calls_are_checked(position, value, message):
    arguments = [*raw_arguments(*(x.detach() for x in make())), False]
    arguments[position] = value
    with pytest.raises(ValueError, match=message):
        kernel_of("linear_gumbel_softmax_embedding", "triton")(*arguments)
