"""What the chunks of the loss head promise on a GPU, whichever backend serves the row kernels."""

import pytest
import torch

from lepo_kernels import linear_log_probs
from lepo_kernels.backends.gpu import head as gpu_head
from tests.seeds import seeded
from tests.tolerances import assert_no_worse_than_plain

WIDTH, KEPT = 8, 3


def with_gradients(hidden, lm_head, ids, **options):
    leaves = [x.detach().requires_grad_() for x in (hidden, lm_head)]
    found = linear_log_probs(*leaves, ids, **options)
    total = found.logits.sum() + 0.5 * found.entropy.sum()
    return found.lse, *torch.autograd.grad(total, leaves)


# A vocabulary that was made odd, of several parts where the chunk is of one row.
@pytest.mark.parametrize("backend", ["cuda", "triton"], indirect=True)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("chunk_size", [1, 100])
@pytest.mark.parametrize("vocab", [7, 1031])
def test_rows_of_logits_and_of_their_gradients_are_aligned(
    vocab, chunk_size, dtype, backend, monkeypatch
):
    if backend == "triton":
        strategies = "lepo_kernels.backends.triton.head.strategies"
        monkeypatch.setattr(f"{strategies}.choice", lambda *shape: "chunks")
    seen = []
    product, sums = gpu_head.wide_product, gpu_head.GradientSums.add

    def spied_product(left, right, out=None):
        x = product(left, right, out=out)
        seen.append(x)
        return x

    def spied_sums(self, block, hidden, part, da):
        seen.append(da)
        sums(self, block, hidden, part, da)

    monkeypatch.setattr(gpu_head, "wide_product", spied_product)
    monkeypatch.setattr(gpu_head.GradientSums, "add", spied_sums)
    chance = torch.Generator().manual_seed(seeded(1))
    hidden, lm_head = (torch.randn(n, WIDTH, generator=chance).to(dtype) for n in (5, vocab))
    ids = torch.randint(0, vocab, (5, KEPT), generator=chance)
    ours = with_gradients(hidden, lm_head, ids, chunk_size=chunk_size)
    assert {x.dtype for x in seen} == {torch.float32, dtype}
    for x in seen:
        assert x.stride(0) * x.element_size() % 128 == 0
        assert x.stride(1) == 1
    wide, exact = (
        with_gradients(hidden.to(real), lm_head.to(real), ids, backend="reference")
        for real in (torch.float32, torch.float64)
    )
    assert_no_worse_than_plain(ours[0], wide[0], exact[0], torch.float32, vocab)
    for each in zip(ours[1:], wide[1:], exact[1:], strict=True):
        assert_no_worse_than_plain(*each, dtype, vocab)
