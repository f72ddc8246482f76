"""Each method's loss and gradient against its paper's formula, dense and in float64.

The transcriptions share nothing with the package but the recorded samples; latent rows alone are
the method's, discrete ones are those of `tests/trainer/test_transcription.py`.
"""

import copy
import dataclasses

import pytest
import torch

from tests.trainer.conftest import make_trainer as make_trainer
from tests.trainer.conftest import one_thread as one_thread
from tests.trainer.dense import dense_inputs, dense_log_pi, float64_model, letters_reward, perturbed


class Step:
    """A latent step: its entries, and log pi of a policy at them and over the vocabulary."""

    def __init__(self, rollout, log_pi, b, t):
        count = int(rollout.latent_count[b, t])
        self.ids = rollout.latent_ids[b, t, :count]
        self.weights = rollout.latent_weights[b, t, :count].double()
        self.recorded = rollout.latent_scores[b, t, :count].double()
        self.log_pi = log_pi[b, t, self.ids]


def gumbel_density(d):
    return -d - torch.exp(-d)


def soft_grpo_score(step, advantage):
    p = torch.softmax(step.log_pi, -1) + 1e-6
    counts = torch.log(p) > -3
    d = step.recorded - torch.log(p)
    return gumbel_density(d)[counts].mean() if counts.any() else 0 * step.log_pi.sum()


def latent_grpo_score(step, advantage):
    d = step.recorded + 1.5 - step.log_pi
    value = gumbel_density(d)
    if advantage <= 0:
        mirrored = torch.where(d < 0, d - torch.exp(d), value)
        value = value.detach() + mirrored - mirrored.detach()
    return value.mean()


def multiplex_scores(step, advantage):
    return step.log_pi


SCORES = {
    "soft_grpo": soft_grpo_score,
    "latent_grpo": latent_grpo_score,
    "multiplex": multiplex_scores,
}


def clipped(rho, advantage, args):
    bounded = torch.clamp(rho, 1 - args.epsilon, 1 + args.epsilon_high)
    loss = -torch.minimum(rho * advantage, bounded * advantage)
    if args.delta is not None and advantage < 0:
        loss = torch.minimum(loss, torch.full_like(loss, -args.delta * advantage))
    return loss


def k3(log_ratio):
    return torch.exp(log_ratio) - log_ratio - 1


def transcribed_loss(model, old, reference, experience, args):
    """One micro-batch per update, normalised over its steps."""
    rollout, score = experience.rollout, SCORES[args.method]
    log_pi = dense_log_pi(model, rollout, args.temperature)
    with torch.no_grad():
        log_old = dense_log_pi(old, rollout, args.temperature)
        log_ref = dense_log_pi(reference, rollout, args.temperature)
    total = 0.0
    for b, t in rollout.action_mask.nonzero().tolist():
        advantage = float(experience.advantages[b])
        if rollout.latent_mask[b, t]:
            now, before, ref = (
                score(Step(rollout, x, b, t), advantage) for x in (log_pi, log_old, log_ref)
            )
        else:
            now, before, ref = (
                x[b, t, rollout.completion_ids[b, t]] for x in (log_pi, log_old, log_ref)
            )
        loss = clipped(torch.exp(now - before.detach()), advantage, args).sum()
        total = total + loss + args.beta * k3(ref - now).sum()
    return total / int(rollout.action_mask.sum())


def compare(trainer, model, experience, expected):
    names, parameters = zip(*model.named_parameters(), strict=True)
    loss, result = trainer.compute_loss(model, experience, return_outputs=True)
    got = torch.autograd.grad(loss, parameters)
    wanted = torch.autograd.grad(expected, parameters)
    # Recorded scores and weights are float32: about 1e-7 relative, times scores of about 10.
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-5)
    for name, one, other in zip(names, got, wanted, strict=True):
        scale = float(other.abs().max())
        assert float((one - other).abs().max()) < 1e-5 * max(scale, 1.0), name
    return result


@pytest.mark.parametrize("method", SCORES)
@pytest.mark.parametrize("off_policy", [False, True])
def test_loss_and_gradient(make_trainer, method, off_policy):
    trainer = make_trainer(
        model=float64_model(),
        reward=letters_reward,
        method=method,
        epsilon=0.05,
        epsilon_high=0.1,
        temperature=0.8,
        latent_length=3,
        loss_type="dapo",
        mixture_top_k=3 if method == "latent_grpo" else None,
        num_iterations=2 if off_policy else 1,
    )
    model = trainer.model
    old = copy.deepcopy(model)
    reference = perturbed(model, 0.02, seed=1)
    if trainer.args.beta:
        trainer.reference.model = reference
    experience = trainer._prepare_inputs([trainer.train_dataset[0], trainer.train_dataset[1]])
    if off_policy:
        model.load_state_dict(perturbed(model, 0.01, seed=2).state_dict())
    expected = transcribed_loss(model, old, reference, experience, trainer.args)
    result = compare(trainer, model, experience, expected)
    assert experience.advantages.min() < 0 < experience.advantages.max()
    latent = experience.rollout.latent_mask[experience.rollout.action_mask]
    assert latent.any()
    assert off_policy == bool((result.ratio[latent] != 1).any())


def test_soft_tokens_gradient_is_that_of_the_gaussian_density(make_trainer):
    """On the policy that sampled: of -A log N(e; mu, sigma^2), mu being moved by p alone."""
    trainer = make_trainer(
        model=float64_model(), reward=letters_reward, method="soft_tokens", num_generations=4
    )
    model, args = trainer.model, trainer.args
    experience = trainer._prepare_inputs([trainer.train_dataset[0], trainer.train_dataset[1]])
    rollout = experience.rollout
    table = model.get_input_embeddings().weight.detach()
    prompt = rollout.prompt_ids.shape[1]
    with torch.no_grad():
        fed = dense_inputs(model, rollout)[:, prompt:]
        quiet = dense_inputs(model, dataclasses.replace(rollout, embedding_noise=0.0))[:, prompt:]
        sigma = args.noise_scale * quiet.pow(2).mean(-1).sqrt()
    log_pi = dense_log_pi(model, rollout, args.temperature)
    total = 0.0
    for b, t in rollout.action_mask.nonzero().tolist():
        advantage = float(experience.advantages[b])
        if not rollout.latent_mask[b, t]:
            now = log_pi[b, t, rollout.completion_ids[b, t]]
            total = total - advantage * torch.exp(now - now.detach())
            continue
        step = Step(rollout, log_pi, b, t)
        moved = torch.softmax(step.log_pi, -1) @ table[step.ids]
        density = torch.distributions.Normal(moved, sigma[b, t]).log_prob(fed[b, t]).sum()
        total = total - advantage * density
    expected = total / int(rollout.action_mask.sum())
    names, parameters = zip(*model.named_parameters(), strict=True)
    got = torch.autograd.grad(trainer.compute_loss(model, experience), parameters)
    wanted = torch.autograd.grad(expected, parameters)
    for name, one, other in zip(names, got, wanted, strict=True):
        scale = float(other.abs().max())
        assert float((one - other).abs().max()) < 1e-5 * max(scale, 1.0), name
