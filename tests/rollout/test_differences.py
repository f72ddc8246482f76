"""The sizes that docs/differences.md gives for what the authors' code of LEPO does otherwise."""

import dataclasses

import pytest
import torch

from lepo_kernels import sample_latent
from lepo_kernels.formulas.lepo_objective import lepo_objective
from lepo_kernels.rollout.latent_generate import latent_generate
from lepo_kernels.rollout.policy_log_probs import policy_log_probs
from tests.rollout.models import in_float64, prompts, settings, tiny_model
from tests.seeds import seeded

ROWS, VOCAB = 128, 2000


@pytest.mark.parametrize("tau", [0.3, 0.5])
# From logits that are nearly flat to a likeliest token of 3/4 on the mean.
@pytest.mark.parametrize("scale", [1.0, 2.0, 4.0, 6.0])
def test_the_latent_term_without_the_temperature(scale: float, tau: float) -> None:
    """At T = .7 its gradient is off by .2 to .5 of the right one."""
    temperature = 0.7
    torch.manual_seed(seeded(1))
    raw = scale * torch.randn(ROWS, VOCAB, dtype=torch.float64)
    advantages = torch.randn(ROWS, dtype=torch.float64)
    drawn = sample_latent(
        raw, noise="gumbel", tau=tau, temperature=temperature, top_k=30, top_p=0.95, seed=seeded(2)
    )

    def gradient(divisor: float) -> torch.Tensor:
        logits = raw.clone().requires_grad_()
        a = logits / divisor
        objective = lepo_objective(
            a.gather(1, drawn.ids),
            a.logsumexp(dim=1),
            drawn.weights.double(),
            torch.ones(ROWS, dtype=torch.bool),
            advantages,
            torch.ones(ROWS, dtype=torch.float64),
        )
        (found,) = torch.autograd.grad(objective.loss, logits)
        return found

    right, without = gradient(temperature), gradient(1.0)
    # Ours is the derivative of -A sum_k z_k log softmax(l / T)_k, written out.
    z = torch.zeros_like(raw).scatter_add(1, drawn.ids, drawn.weights.double())
    written = -advantages[:, None] * (z - (raw / temperature).softmax(dim=1)) / temperature
    # Sums of 2000 terms in float64; weights in float32 add up to 1 within 30 of its roundings.
    bound = advantages.abs().max().item() / temperature * 30 * 2**-23
    torch.testing.assert_close(right, written, atol=bound, rtol=0)
    off = float((without - right).norm() / right.norm())
    assert 0.2 < off < 0.5


def test_tables_that_are_constants() -> None:
    """The table's gradient through the inputs is a part of its gradient, and with a head of its
    own all of it."""
    tied = in_float64(tiny_model("qwen2", tie_word_embeddings=True))
    apart = in_float64(tiny_model("qwen2", tie_word_embeddings=False))
    apart.load_state_dict({**apart.state_dict(), **tied.state_dict()})
    apart.lm_head.weight.data.copy_(tied.lm_head.weight.data)
    rollout = latent_generate(tied, *prompts(), settings(), seed=seeded(3))
    advantages = torch.tensor([1.0, -0.5, -0.5], dtype=torch.float64)

    def train(model: torch.nn.Module) -> None:
        policy = policy_log_probs(model, rollout, rollout.action_mask)
        rows = advantages[:, None].expand_as(rollout.action_mask)[rollout.action_mask]
        (rows * policy.log_prob.double()).mean().backward()

    train(tied)
    train(apart)
    table = tied.get_input_embeddings().weight.grad
    by_inputs = apart.get_input_embeddings().weight.grad
    by_head = apart.get_output_embeddings().weight.grad
    assert float(by_inputs.norm()) > 0.1 * float(table.norm())
    # Log-probabilities are float32; a thousand roundings of the largest entry are far below.
    bound = 1000 * 2**-24 * float(table.abs().max())
    torch.testing.assert_close(by_inputs + by_head, table, atol=bound, rtol=0)


def test_log_probs_on_shadow_tokens() -> None:
    """At equal weights our ratios are 1; after shadow tokens they are anything."""
    model = tiny_model("qwen2")
    rollout = latent_generate(model, *prompts(), settings(), seed=seeded(4))
    L = rollout.latent_ids.shape[1]
    weights = torch.zeros_like(rollout.latent_weights)
    weights[..., 0] = 1
    ids = rollout.completion_ids[:, :L, None].expand_as(rollout.latent_ids)
    shadow = dataclasses.replace(rollout, latent_ids=ids, latent_weights=weights)
    discrete = rollout.action_mask & ~rollout.latent_mask
    ours = policy_log_probs(model, rollout, discrete).log_prob.detach()
    theirs = policy_log_probs(model, shadow, discrete).log_prob.detach()
    old = rollout.log_probs[discrete]
    # As far as the rollout and the training forward agree; see test_policy_log_probs.
    torch.testing.assert_close(ours, old, atol=1e-4, rtol=0)
    ratios = (old - theirs).exp()
    assert float(ratios.max()) > 1.2  # where PPO would clip
    assert float(ratios.min()) < 0.8
