"""Compiled by inductor, which holds every op to the strides its fake promised."""

import pytest
import torch

from lepo_kernels import (
    gather_log_probs,
    gumbel_softmax_embedding,
    latent_step,
    lepo_loss,
    linear_gumbel_softmax_embedding,
    linear_log_probs,
    mix_embeddings,
)
from tests.seeds import seeded

IDS = torch.tensor([[0, 2], [1, 1], [2, 0], [0, 0]])
LOGITS = torch.arange(20.0).reshape(5, 4).T
# Weights, latent, advantages, row weights.
ROWS = (torch.full((4, 2), 0.5), torch.ones(4, dtype=torch.bool), torch.ones(4), torch.ones(4))


def transposed(rows, columns):
    return torch.randn(columns, rows).T.requires_grad_()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("op", "shapes"),
    [
        (lambda h, w: linear_log_probs(h, w, IDS).lse, [(4, 3), (5, 3)]),
        (lambda a: gather_log_probs(a, IDS).lse, [(4, 3)]),
        (lambda h, w: lepo_loss(h, w, IDS, *ROWS).loss, [(4, 3), (5, 3)]),
        (lambda a, e: gumbel_softmax_embedding(a, e, 0.5).embedding, [(4, 5), (5, 3)]),
        (
            lambda h, w, e: linear_gumbel_softmax_embedding(h, w, e, 0.5).embedding,
            [(4, 3), (5, 3), (5, 2)],
        ),
        (lambda e: latent_step(LOGITS, e).embedding, [(5, 3)]),
        (lambda w, e: mix_embeddings(IDS, w, e), [(4, 2), (3, 5)]),
    ],
    ids=[
        "linear_log_probs",
        "gather_log_probs",
        "lepo_loss",
        "gumbel_softmax_embedding",
        "linear_gumbel_softmax_embedding",
        "latent_step",
        "mix_embeddings",
    ],
)
def test_transposed_inputs(op, shapes):
    torch.manual_seed(seeded(0))
    inputs = [transposed(*shape) for shape in shapes]
    # A cached graph would carry the strides of an older fake.
    with torch._inductor.config.patch(fx_graph_cache=False):
        ours = torch.compile(lambda *x: op(*x).square().sum(), fullgraph=True)(*inputs)
        grads = torch.autograd.grad(ours, inputs)
    eager = op(*inputs).square().sum()
    torch.testing.assert_close(ours, eager)
    for x, y in zip(grads, torch.autograd.grad(eager, inputs), strict=True):
        torch.testing.assert_close(x, y)
