"""What only the CUDA backend promises: how the work is cut, bits, and that it need not wait."""

import math

import pytest
import torch

from lepo_kernels import gather_log_probs, linear_log_probs
from lepo_kernels.backends.gpu import blocks as gpu_blocks
from lepo_kernels.backends.gpu import head as gpu_head
from tests.ops.head_magnitudes import head_magnitudes
from tests.ops.helpers import HALF_DTYPES, LOW_DTYPES, LargestTensor, kernel_of
from tests.seeds import seeded
from tests.tolerances import assert_within, rounding, sum_error

pytestmark = [
    pytest.mark.usefixtures("backend"),
    pytest.mark.parametrize("backend", ["cuda"], indirect=True),
]

# A state of a row.
UNIT = 512


def make(rows, vocab, width=8, kept=3, dtype=torch.float32):
    chance = torch.Generator().manual_seed(seeded(vocab))
    hidden = torch.randn(rows, width, generator=chance).to(dtype)
    lm_head = (torch.randn(vocab, width, generator=chance) / 4).to(dtype)
    bias = torch.randn(vocab, generator=chance).to(dtype)
    ids = torch.randint(0, vocab, (rows, kept), generator=chance)
    return hidden, lm_head, bias, ids


def with_gradients(hidden, lm_head, bias, ids, **options):
    """All outputs, and the gradients of the first three arguments."""
    inputs = [x.detach().clone().requires_grad_() for x in (hidden, lm_head, bias)]
    ours = linear_log_probs(*inputs[:2], ids, bias=inputs[2], softcap=5.0, **options)
    return *ours, *torch.autograd.grad(ours, inputs, upstream_of(ours))


def upstream_of(ours):
    chance = torch.Generator().manual_seed(seeded(0))
    return [torch.randn(x.shape, generator=chance).to(x.dtype) for x in ours]


# A vocabulary of less than a unit, of one, of some units and a rest, and Qwen's; chunks of a row,
# of a few, of all, and of more; more rows than one block takes.
@pytest.mark.parametrize("vocab", [5, UNIT, 3 * UNIT + 7, 151936])
@pytest.mark.parametrize("rows", [0, 1, 7, 8193, 20000])
@pytest.mark.parametrize("chunk_size", [1, 3, 441, 1 << 30])
def test_blocks_cover_all_logits_and_none_is_too_large(rows, vocab, chunk_size):
    blocks = gpu_blocks.blocks_of(rows, vocab, chunk_size)
    for slices, count in ((blocks.rows, rows), (blocks.columns, vocab)):
        assert [x.start for x in slices] == [0, *(x.stop for x in slices)][: len(slices)]
        assert not slices or slices[-1].stop == count
        sizes = [x.stop - x.start for x in slices]
        assert all(size > 0 for size in sizes)
    assert bool(blocks.rows) == (rows > 0)
    assert all(x.start % UNIT == 0 for x in blocks.columns)
    widest = max(x.stop - x.start for x in blocks.columns)
    highest = max((x.stop - x.start for x in blocks.rows), default=0)
    assert highest * widest <= chunk_size * vocab
    # The head is read once: a narrow part for all rows rather than a wide one for some.
    if chunk_size * vocab >= rows * min(vocab, UNIT):
        assert len(blocks.rows) <= -(-rows // 8192)


# Cut into both blocks of rows and parts of the vocabulary; into parts only; not at all.
@pytest.mark.parametrize("chunk_size", [1, 4, 100])
@pytest.mark.parametrize("dtype", LOW_DTYPES)
def test_parts_of_the_vocabulary_make_a_whole(chunk_size, dtype):
    rows, vocab = 9, 3 * UNIT + 7
    arguments = make(rows, vocab, dtype=dtype)
    with LargestTensor() as largest:
        ours = with_gradients(*arguments, chunk_size=chunk_size)
    # The last part of the vocabulary has gaps behind its rows.
    assert largest.numel <= max(chunk_size * vocab + rows * 63, arguments[1].numel())
    exact = with_gradients(*(x.double() for x in arguments[:3]), arguments[3], backend="reference")
    hidden, lm_head, bias, ids = arguments
    sizes = head_magnitudes(hidden, lm_head, ids, upstream_of(ours[:3]), bias=bias, softcap=5.0)
    # Products of halves take gradients of logits that are rounded to them, as terms of their sums.
    rounded = rounding(dtype) / sum_error(vocab)
    for place, (x, y, size) in enumerate(zip(ours, exact, sizes[:6], strict=True)):
        assert_within(x, y, vocab, size if place < 3 else size * (1 + rounded))


def test_a_rows_bits_do_not_depend_on_its_batch_or_place():
    logits = 3 * torch.randn(4, 2 * UNIT + 9, generator=torch.Generator().manual_seed(seeded(1)))
    ids = torch.randint(0, 2 * UNIT, (4, 3))
    together = gather_log_probs(logits, ids)
    for n in range(4):
        # Rows with gaps, at another address.
        wide = torch.zeros(1, logits.shape[1] + n + 1)
        wide[:, n + 1 :] = logits[n]
        alone = gather_log_probs(wide[:, n + 1 :], ids[n : n + 1])
        for x, y in zip(alone, together, strict=True):
            assert torch.equal(x[0], y[n])


@pytest.mark.parametrize("dtype", HALF_DTYPES)
def test_rows_that_share_memory_and_a_vocabulary_of_one(dtype):
    ids = torch.zeros(3, 2, dtype=torch.int64)
    row = torch.randn(1, 700, generator=torch.Generator().manual_seed(seeded(2))).to(dtype)
    shared = gather_log_probs(row.expand(3, 700), ids)
    for x in shared:
        assert torch.equal(x, x[:1].expand_as(x))
    one = torch.randn(3, 2).to(dtype)[:, ::2].requires_grad_()
    ours = gather_log_probs(one, ids)
    assert torch.equal(ours.lse, one.detach().float()[:, 0])
    assert torch.autograd.grad(ours.entropy.sum(), one)[0].eq(0).all()


def test_backward_gives_the_same_where_it_may_not_wait(monkeypatch):
    rows, vocab = 6, UNIT + 40
    hidden, lm_head, bias, ids = make(rows, vocab)
    chance = torch.Generator().manual_seed(seeded(3))
    alpha, gamma, eta = (torch.randn(s, generator=chance) for s in ((rows, 3), rows, rows))
    for x in (alpha, gamma, eta):
        x[[0, 4]] = 0
    hidden[4] = math.nan
    good = [1, 2, 3, 5]
    found = linear_log_probs(hidden[good], lm_head, ids[good], bias=bias)
    lse, entropy = torch.zeros(2, rows)
    lse[good], entropy[good] = found.lse, found.entropy
    arguments = (
        alpha, gamma, eta, hidden, lm_head, bias, None, ids, torch.ones(1),
        lse, entropy, 2, True, True, True,
    )  # fmt: skip
    backward = kernel_of("linear_log_probs_backward", "cuda")
    compacted = backward(*arguments)
    monkeypatch.setattr(gpu_head, "may_wait", lambda like: False)
    captured = backward(*arguments)
    # Other sums of the same numbers.
    parts = [x[good] for x in (alpha, gamma, eta)]
    sizes = head_magnitudes(hidden[good], lm_head, ids[good], parts, bias=bias)
    for x in captured:
        assert x.isfinite().all()
    pairs = [
        (captured[0][good], compacted[0][good]),
        *zip(captured[1:], compacted[1:], strict=True),
    ]
    for (x, y), size in zip(pairs, sizes[3:6], strict=True):
        assert_within(x, y, vocab, 2 * size)
    assert captured[0][[0, 4]].eq(0).all()
