"""Torch's default dtype is not the kernels' business."""

import pytest
import torch

import lepo_kernels as lk

pytestmark = pytest.mark.usefixtures("backend")


def latent_step(hidden, head, table):
    logits = (hidden @ head.T).detach()
    drawn = lk.sample_latent(logits, top_k=5, seed=1)
    mixed = lk.mix_embeddings(drawn.ids, drawn.weights, table)
    return mixed.sum() + lk.latent_step(logits, table, top_k=5, seed=2).embedding.sum()


def selected(hidden, head, table):
    scored = lk.linear_log_probs(hidden, head, torch.arange(12).reshape(6, 2))
    return (scored.logits.sum(-1) - scored.lse + scored.entropy).sum()


def gathered(hidden, head, table):
    scored = lk.gather_log_probs(hidden @ head.T, torch.arange(12).reshape(6, 2))
    return (scored.logits.sum(-1) - scored.lse + scored.entropy).sum()


def mixture(hidden, head, table):
    mixed = lk.gumbel_softmax_embedding(hidden @ head.T, table, 0.5, seed=1)
    return sum(x.sum() for x in mixed)


def mixture_of_hidden_states(hidden, head, table):
    mixed = lk.linear_gumbel_softmax_embedding(hidden, head, table, 0.5, seed=1)
    return sum(x.sum() for x in mixed)


def loss(hidden, head, table):
    real = {"dtype": torch.float32}
    return lk.lepo_loss(
        hidden,
        head,
        torch.arange(12).reshape(6, 2),
        torch.full((6, 2), 0.5, **real),
        torch.ones(6, dtype=torch.bool),
        torch.linspace(-1, 1, 6, **real),
        torch.ones(6, **real),
    ).loss


def values_and_gradients(function):
    generator = torch.Generator().manual_seed(0)
    leaves = [
        torch.randn(shape, generator=generator, dtype=torch.float32).requires_grad_()
        for shape in ((6, 4), (40, 4), (40, 3))
    ]
    value = function(*leaves)
    return value, *torch.autograd.grad(value, leaves, allow_unused=True)


@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    "function", [latent_step, selected, gathered, mixture, mixture_of_hidden_states, loss]
)
def test_float32_stays_float32(function, default):
    expected = values_and_gradients(function)
    torch.set_default_dtype(default)
    try:
        found = values_and_gradients(function)
    finally:
        torch.set_default_dtype(torch.float32)
    for x, y in zip(found, expected, strict=True):
        assert (x is None) == (y is None)
        if x is not None:
            assert x.dtype == torch.float32
            assert torch.equal(x, y)
