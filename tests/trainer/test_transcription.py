"""The trainer's loss and gradient against a direct transcription on a tiny model in float64.

The transcription shares nothing with the package but the recorded samples: dense mixtures by a
matrix product with the whole table, `inputs_embeds`, full log-softmaxes, loops over rows.
"""

import copy
import dataclasses
import math

import pytest
import torch

from lepo_kernels.trainer.experience import step_scores
from tests.trainer.dense import dense_log_pi, float64_model, letters_reward, perturbed


def step_terms(rollout, b, t):
    """(id, weight) pairs of a step."""
    if not rollout.latent_mask[b, t]:
        return [(int(rollout.completion_ids[b, t]), 1.0)]
    pairs = zip(
        rollout.latent_ids[b, t].tolist(), rollout.latent_weights[b, t].tolist(), strict=True
    )
    return [(i, w) for i, w in pairs if w != 0]


def normaliser(loss_type, rollout, b, max_length):
    """What divides the loss of a step of sample b, one micro-batch per update."""
    mask = rollout.action_mask
    if loss_type == "grpo":
        return len(rollout) * int(mask[b].sum())
    if loss_type == "dr_grpo":
        return len(rollout) * max_length
    return int(mask.sum())


def transcribed_loss(model, old, reference, experience, args):
    rollout = experience.rollout
    log_pi = dense_log_pi(model, rollout, args.temperature)
    with torch.no_grad():
        log_old = dense_log_pi(old, rollout, args.temperature)
        log_ref = dense_log_pi(reference, rollout, args.temperature)
    total = 0.0
    for b in range(len(rollout)):
        advantage = float(experience.advantages[b])
        for t in range(rollout.completion_ids.shape[1]):
            if not rollout.action_mask[b, t]:
                continue
            terms = step_terms(rollout, b, t)
            score = sum(w * log_pi[b, t, i] for i, w in terms)
            if rollout.latent_mask[b, t]:
                loss = -advantage * score
            else:
                rho = torch.exp(score - sum(w * log_old[b, t, i] for i, w in terms))
                bounded = torch.clamp(rho, 1 - args.epsilon, 1 + args.epsilon_high)
                loss = -torch.minimum(rho * advantage, bounded * advantage)
            for i, w in terms:
                r = log_ref[b, t, i] - log_pi[b, t, i]
                loss = loss + args.beta * w * (torch.exp(r) - r - 1)
            total = total + loss / normaliser(
                args.loss_type, rollout, b, args.max_completion_length
            )
    return total


@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dr_grpo", "dapo"])
@pytest.mark.parametrize("beta", [0.0, 0.3])
@pytest.mark.parametrize("off_policy", [False, True])
def test_loss_and_gradient(make_trainer, loss_type, beta, off_policy):
    trainer = make_trainer(
        model=float64_model(),
        reward=letters_reward,
        loss_type=loss_type,
        beta=beta,
        epsilon=0.05,
        epsilon_high=0.1,
        temperature=0.8,
        latent_suffix="=",
        # Two iterations make the trainer keep the sampling policy's log-probabilities.
        num_iterations=2 if off_policy else 1,
    )
    model = trainer.model
    old = copy.deepcopy(model)
    reference = perturbed(model, 0.02, seed=1)
    if beta:
        trainer.reference.model = reference
    experience = trainer._prepare_inputs([trainer.train_dataset[0], trainer.train_dataset[1]])
    if off_policy:
        moved = perturbed(model, 0.01, seed=2)
        model.load_state_dict(moved.state_dict())
    loss, result = trainer.compute_loss(model, experience, return_outputs=True)
    names, parameters = zip(*model.named_parameters(), strict=True)
    got = torch.autograd.grad(loss, parameters)
    expected = transcribed_loss(model, old, reference, experience, trainer.args)
    wanted = torch.autograd.grad(expected, parameters)

    assert experience.advantages.abs().max() > 0, "the case must have something to learn"
    assert experience.rollout.latent_mask.any()
    assert off_policy == bool((result.ratio != 1).any())
    # Stored weights, token weights and advantages are float32: about 1e-7 relative.
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)
    for name, one, other in zip(names, got, wanted, strict=True):
        scale = float(other.abs().max())
        assert float((one - other).abs().max()) < 2e-6 * max(scale, 1.0), name


def test_samples_without_advantage_may_be_left_out(make_trainer):
    trainer = make_trainer(model=float64_model(), reward=letters_reward)
    experience = trainer._prepare_inputs([trainer.train_dataset[0], trainer.train_dataset[1]])
    experience.advantages[::2] = 0.0
    model = trainer.model
    gradients = []
    for batch in (experience, experience.contributing(beta=0.0)):
        # beta > 0 inside contributing() keeps every sample; here the batches are cut by hand.
        whole = copy.copy(batch)
        whole.contributing = lambda beta, whole=whole: whole
        loss = trainer.compute_loss(model, whole)
        gradients.append(torch.autograd.grad(loss, tuple(model.parameters())))
    assert len(experience.contributing(0.0)) == 4
    assert len(experience.contributing(0.1)) == 8
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_old_log_probs_are_those_of_the_rollout(make_trainer):
    trainer = make_trainer(model=float64_model(), reward=letters_reward, num_iterations=2)
    experience = trainer._prepare_inputs([trainer.train_dataset[0], trainer.train_dataset[1]])
    rollout = experience.rollout
    recorded = torch.where(rollout.action_mask, rollout.log_probs, 0.0)
    torch.testing.assert_close(experience.old_log_prob.float(), recorded, rtol=0, atol=1e-5)
    _, per_id, _ = step_scores(trainer.model, rollout, trainer.args.temperature, batch_size=3)
    mixed = (per_id[:, :2] * rollout.latent_weights).nan_to_num(0.0).sum(-1)
    torch.testing.assert_close(
        mixed[rollout.latent_mask[:, :2]],
        experience.old_log_prob[rollout.latent_mask],
        rtol=0,
        atol=1e-5,
    )
    assert not math.isnan(float(per_id.sum()))


def as_discrete(rollout):
    """The same steps as sampled tokens: each mixture becomes its heaviest id."""
    steps = rollout.latent_ids.shape[1]
    best = rollout.latent_weights.argmax(-1, keepdim=True)
    ids = rollout.completion_ids.clone()
    heaviest = rollout.latent_ids.gather(-1, best)[..., 0]
    latent = rollout.latent_mask[:, :steps]
    ids[:, :steps] = torch.where(latent, heaviest, ids[:, :steps])
    return dataclasses.replace(
        rollout,
        completion_ids=ids,
        latent_mask=torch.zeros_like(rollout.latent_mask),
        latent_ids=rollout.latent_ids[:, :0],
        latent_weights=rollout.latent_weights[:, :0],
        latent_count=rollout.latent_count[:, :0],
        latent_scores=rollout.latent_scores[:, :0],
    )


def test_tau_to_zero_gives_grpos_gradient(make_trainer):
    """With tau -> 0 every soft step is a sampled token, and LEPO is on-policy GRPO."""
    trainer = make_trainer(
        model=float64_model(), reward=letters_reward, tau=1e-6, latent_length=5, loss_type="dapo"
    )
    lepo = trainer._prepare_inputs([trainer.train_dataset[0], trainer.train_dataset[1]])
    assert lepo.rollout.latent_mask.sum() == 5 * 8
    grpo = dataclasses.replace(lepo, rollout=as_discrete(lepo.rollout))
    parameters = tuple(trainer.model.parameters())
    soft, hard = (
        torch.autograd.grad(trainer.compute_loss(trainer.model, batch), parameters)
        for batch in (lepo, grpo)
    )
    assert max(float(g.abs().max()) for g in hard) > 1e-3
    for one, other in zip(soft, hard, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)
