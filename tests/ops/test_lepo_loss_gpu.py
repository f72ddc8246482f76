"""What the fused loss promises on a GPU: how the work is cut, memory, and that it need not wait."""

import math

import pytest
import torch

from lepo_kernels import lepo_loss, lepo_objective, linear_log_probs
from lepo_kernels.backends.gpu import loss as gpu_loss
from lepo_kernels.backends.gpu import loss_blocks
from lepo_kernels.backends.gpu.loss_blocks import Sizes
from tests.ops.helpers import HALF_DTYPES, LOW_DTYPES, LargestTensor, kernel_of
from tests.seeds import seeded
from tests.tolerances import assert_no_worse_than_plain


def on_each_backend(test):
    """Run the test on the backends of GPUs."""
    each = pytest.mark.parametrize("backend", ["cuda", "triton"], indirect=True)
    return pytest.mark.usefixtures("backend")(each(test))


# Two units of the vocabulary and a rest, so that rows have a gap behind them.
N, V, D, K = 9, 1031, 5, 3
IDLE = [0, 4, 5]
GIB = 1 << 30


def make(dtype=torch.float32, rows=N, vocab=V, width=D, kept=K):
    """Hidden states, head and bias; and what the loss needs to know of each row."""
    chance = torch.Generator().manual_seed(seeded(1))
    leaves = [torch.randn(*shape, generator=chance) for shape in ((rows, width), (vocab, width))]
    leaves.append(torch.randn(vocab, generator=chance))
    ids = torch.randint(0, vocab, (rows, kept), generator=chance)
    weights = torch.rand(rows, kept, generator=chance).softmax(-1)
    latent = torch.arange(rows) % 3 != 1
    advantages = torch.randn(rows, generator=chance)
    advantages[[n for n in IDLE if n < rows]] = 0
    row_weights = torch.rand(rows, generator=chance) + 0.1
    leaves = [x.to(dtype).requires_grad_() for x in leaves]
    return leaves, (ids, weights, latent, advantages, row_weights)


def outputs(leaves, facts, **options):
    """The fields of the loss and the gradients."""
    hidden, lm_head, bias = leaves
    result = lepo_loss(hidden, lm_head, *facts, bias=bias, softcap=5.0, **options)
    return *result, *torch.autograd.grad(1.5 * result.loss, leaves)


def composed(leaves, facts, real):
    """What the loss fuses, from the same numbers in ``real``, and the gradients."""
    hidden, lm_head, bias = inputs = [x.detach().to(real).requires_grad_() for x in leaves]
    options = {"bias": bias, "softcap": 5.0, "inv_temperature": 0.7, "backend": "reference"}
    scored = linear_log_probs(hidden, lm_head, facts[0], **options)
    result = lepo_objective(scored.logits, scored.lse, *facts[1:])
    return *(x.detach() for x in result), *torch.autograd.grad(result.loss, inputs)


# A rest of the rows in blocks and groups of them; one group; one block.
HELD = [Sizes(2, 4), Sizes(4, N), Sizes(N, N)]


@on_each_backend
@pytest.mark.parametrize("held", HELD)
@pytest.mark.parametrize("dtype", HALF_DTYPES)
def test_rows_in_groups_make_a_whole(held, dtype, backend, monkeypatch):
    monkeypatch.setattr(loss_blocks, "sizes", lambda *shape: held)
    leaves, facts = make(dtype)
    # The public function leaves float16 to other ops; the kernel takes it.
    ids, *facts_of_rows = facts
    arguments = (*leaves, 5.0, ids, torch.full((1,), 0.7), *facts_of_rows, *[None] * 4)
    settings = (0.0, 0.2, 0.2, None, "k3", "soft_log_prob", False, "ppo", False)
    needs = (*settings, True, True, True)
    with torch.no_grad():
        ours = kernel_of("lepo_loss", backend)(*arguments, *needs)
    plain, exact = (composed(leaves, facts, real) for real in (torch.float32, torch.float64))
    assert torch.equal(ours[4], exact[4])
    # The loss is a sum over rows that cancels; all else is about as large as its terms.
    scores = facts[3].abs() * torch.maximum(exact[3], exact[1].abs())
    terms = (facts[4] * scores).sum().reshape(exact[0].shape)
    for place in (0, 1, 2, 3):
        each = (x[place] for x in (ours, plain, exact))
        assert_no_worse_than_plain(*each, torch.float32, V, terms if place == 0 else None)
    # Gradients are rounded twice: those of the logits, and the sums over them.
    for each in zip(ours[5:], plain[5:], exact[5:], strict=True):
        assert_no_worse_than_plain(*each, dtype, V)
    assert [x.dtype for x in ours[5:]] == [dtype] * 3


@on_each_backend
def test_gradient_of_the_head_is_rounded_once(monkeypatch):
    monkeypatch.setattr(loss_blocks, "sizes", lambda *shape: Sizes(1, 1))
    rows = 40
    (hidden, lm_head, _), (ids, _, latent, *_) = make(torch.bfloat16, rows=rows, vocab=20, kept=1)
    ones = torch.ones(rows)
    loss = lepo_loss(hidden, lm_head, ids, ones[:, None], latent, ones, ones).loss
    (ours,) = torch.autograd.grad(loss, lm_head)
    wide, head = hidden.detach().double(), lm_head.detach().double()
    da = (wide @ head.T).softmax(-1) - torch.zeros(rows, 20, dtype=torch.double).scatter_(1, ids, 1)
    # A gradient of a logit near the middle of two numbers may be rounded the other way.
    slack = float((2.0**-8 * da.abs().amax(1) * wide.abs().amax(1)).max())
    exact = da.bfloat16().double().T @ wide
    # Half a unit of bfloat16, and what float32 sums of 40 rows may lose.
    assert ((ours.double() - exact).abs() <= 2.0**-8 * exact.abs() + slack + 1e-5).all()


# What one step is asked for: the head of an 8 billion parameter model and 8192 tokens; a smaller
# vocabulary and more tokens, whose gradients are summed; a head that alone exceeds the bound; a
# small vocabulary; fewer rows than a block.
SHAPES = [
    (8192, 151936, 4096),
    (16384, 131072, 4096),
    (16384, 262144, 5376),
    (16384, 32000, 2048),
    (7, 151936, 4096),
]


@pytest.mark.parametrize(("rows", "vocab", "width"), SHAPES)
def test_memory_is_bounded(rows, vocab, width):
    block, kept = loss_blocks.sizes(rows, vocab, width, torch.bfloat16, True)
    assert 1024 <= block <= kept
    assert 4 * block * vocab <= max(GIB // 2, 4 * 1024 * vocab)
    head = 4 * vocab * width if kept < rows else 0
    held = 4 * block * vocab + 2 * min(kept, rows) * vocab + head
    assert held <= max(3 * GIB, 4 * vocab * width + 8 * block * vocab)
    for frozen in ((torch.bfloat16, False), (torch.float32, True)):
        assert loss_blocks.sizes(rows, vocab, width, *frozen) == (block, block)


def test_the_heads_gradient_is_one_product_where_there_is_memory():
    sizes = loss_blocks.sizes
    assert sizes(*SHAPES[0], torch.bfloat16, True) == (1024, 8192)
    assert sizes(*SHAPES[1], torch.bfloat16, True) == (1024, 2048)
    # A little more of a head that is larger: holding its float32 sum would be no less.
    assert sizes(10000, 262144, 5376, torch.bfloat16, True) == (1024, 10000)


# A frozen head has no gradient, which would be the largest by far; logits have gaps behind them.
@on_each_backend
@pytest.mark.parametrize("trained", [{0}, {2}, set()])
def test_a_frozen_head_costs_no_memory(trained, monkeypatch):
    monkeypatch.setattr(loss_blocks, "_BLOCK_BYTES", 0)
    monkeypatch.setattr(gpu_loss, "_CHUNK_BYTES", 8 * V)
    monkeypatch.setattr(loss_blocks, "_LEAST_ROWS", 2)
    leaves, facts = make(width=64)
    for position, x in enumerate(leaves):
        x.requires_grad_(position in trained)
    with LargestTensor() as largest:
        loss = lepo_loss(*leaves[:2], *facts, bias=leaves[2]).loss
        if trained:
            loss.backward()
    assert V < largest.numel <= 2 * (V + 63)


@on_each_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("grad", [True, False])
def test_it_gives_the_same_where_it_may_not_wait(dtype, grad, monkeypatch):
    monkeypatch.setattr(loss_blocks, "sizes", lambda *shape: Sizes(4, 4))
    leaves, facts = make(dtype)
    with torch.no_grad():
        leaves[0][IDLE] = math.nan
    options = {"inv_temperature": torch.rand(N) + 0.5, "old_log_prob": torch.full((N,), -7.0)}

    def call():
        if grad:
            return outputs(leaves, facts, **options)
        with torch.no_grad():
            return tuple(lepo_loss(*leaves[:2], *facts, **options))

    compacted = call()
    monkeypatch.setattr(gpu_loss, "may_wait", lambda like: False)
    captured = call()
    for x, y in zip(captured, compacted, strict=True):
        assert x.isfinite().all()
        if x.dtype == torch.bfloat16:
            # Other sums of the same numbers, rounded the other way here and there.
            assert (x - y).abs().max() <= torch.finfo(x.dtype).eps * y.abs().max()
        else:
            torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-6)
    if grad:
        assert captured[5][IDLE].eq(0).all()


@on_each_backend
@pytest.mark.parametrize("waits", [True, False])
@pytest.mark.parametrize("rows", [0, 3])
def test_without_a_row_that_is_used_gradients_are_zeros(waits, rows, monkeypatch):
    monkeypatch.setattr(gpu_loss, "may_wait", lambda like: waits)
    leaves, facts = make(rows=rows)
    ids, weights, latent, advantages, row_weights = facts
    with torch.no_grad():
        leaves[0].fill_(math.nan)
    ours = outputs(leaves, (ids, weights, latent, torch.zeros_like(advantages), row_weights))
    assert float(ours[0].detach()) == 0
    for x, leaf in zip(ours[5:], leaves, strict=True):
        assert x.shape == leaf.shape
        assert x.eq(0).all()


# A vocabulary of one entry; one id per row, in a vocabulary of less than a unit.
@on_each_backend
@pytest.mark.parametrize(("vocab", "kept"), [(1, 2), (7, 1)])
def test_small_vocabularies(vocab, kept):
    leaves, facts = make(vocab=vocab, kept=kept)

    def composed():
        scored = linear_log_probs(*leaves[:2], facts[0], bias=leaves[2], softcap=5.0)
        result = lepo_objective(scored.logits, scored.lse, *facts[1:])
        return *result, *torch.autograd.grad(1.5 * result.loss, leaves)

    for x, y in zip(outputs(leaves, facts), composed(), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-6)


@on_each_backend
@pytest.mark.parametrize("dtype", LOW_DTYPES)
def test_the_gradient_of_the_loss_is_not_rounded(dtype, backend):
    # Not a number of bfloat16, nor of float16.
    factor = torch.tensor(1.7)
    gradients = [torch.randn(shape).to(dtype) for shape in ((N, D), (0,), (V,))]
    ours = kernel_of("lepo_loss_backward", backend)(factor, *gradients, *(None,) * 4)
    for x, y in zip(ours, gradients, strict=True):
        assert torch.equal(x, (y.float() * factor).to(dtype))
        assert x.data_ptr() != y.data_ptr() or x.numel() == 0
