"""GRPO's switches, as TRL 1.16 defines them, on a rollout of discrete tokens, dense in float64."""

import copy

import pytest
import torch

from tests.trainer.dense import dense_log_pi, float64_model, letters_reward, perturbed

SWITCHES = {
    "plain": {},
    "sequence": {"importance_sampling_level": "sequence", "loss_type": "grpo"},
    "sequence with delta": {
        "importance_sampling_level": "sequence",
        "loss_type": "grpo",
        "delta": 1.12,
    },
    "cispo": {"loss_type": "cispo", "epsilon_high": 1.02},
    "unbiased KL": {"use_bias_correction_kl": True, "beta": 0.3},
    "sequence and unbiased KL": {
        "importance_sampling_level": "sequence",
        "use_bias_correction_kl": True,
        "beta": 0.3,
    },
    "high entropy": {"top_entropy_quantile": 0.4, "beta": 0.3},
    "unscaled": {"scale_rewards": "none"},
}


def transcribed(model, old, reference, experience, args):
    rollout = experience.rollout
    ids, mask = rollout.completion_ids[..., None], rollout.action_mask
    log_pi = dense_log_pi(model, rollout, args.temperature).gather(-1, ids)[..., 0]
    with torch.no_grad():
        at_old = dense_log_pi(old, rollout, args.temperature)
        log_old = at_old.gather(-1, ids)[..., 0]
        log_ref = dense_log_pi(reference, rollout, args.temperature).gather(-1, ids)[..., 0]
        # Of the policy that sampled; TRL takes the current one's, which is the same at first.
        entropy = -(at_old.exp() * at_old).sum(-1)
    log_ratio = log_pi - log_old
    if args.importance_sampling_level == "sequence":
        log_ratio = ((log_ratio * mask).sum(-1) / mask.sum(-1))[:, None].expand(mask.shape)
    ratio = log_ratio.exp()
    advantage = experience.advantages.double()[:, None]
    if args.loss_type == "cispo":
        loss = -ratio.clamp(max=args.epsilon_high).detach() * advantage * log_pi
    else:
        clipped = ratio.clamp(1 - args.epsilon, 1 + args.epsilon_high) * advantage
        free = ratio if args.delta is None else ratio.clamp(max=args.delta)
        loss = -torch.minimum(free * advantage, clipped)
    if args.top_entropy_quantile < 1:
        least = torch.quantile(entropy[mask], 1 - args.top_entropy_quantile)
        loss = loss * (entropy >= least)
    if args.beta:
        kl = torch.exp(log_ref - log_pi) - (log_ref - log_pi) - 1
        loss = loss + args.beta * kl * (ratio if args.use_bias_correction_kl else 1)
    if args.loss_type == "grpo":
        return ((loss * mask).sum(-1) / mask.sum(-1)).mean()
    return (loss * mask).sum() / mask.sum()


@pytest.mark.parametrize("name", SWITCHES)
def test_loss_and_gradient(make_trainer, name):
    settings = {"epsilon": 0.05, "epsilon_high": 0.1, "loss_type": "dapo", **SWITCHES[name]}
    trainer = make_trainer(
        model=float64_model(),
        reward=letters_reward,
        method="grpo",
        temperature=0.8,
        num_iterations=2,
        **{"latent_length": 0, **settings},
    )
    model, args = trainer.model, trainer.args
    old, reference = copy.deepcopy(model), perturbed(model, 0.02, seed=1)
    if args.beta:
        trainer.reference.model = reference
    experience = trainer._prepare_inputs([trainer.train_dataset[0], trainer.train_dataset[1]])
    model.load_state_dict(perturbed(model, 0.03, seed=2).state_dict())
    expected = transcribed(model, old, reference, experience, args)
    names, parameters = zip(*model.named_parameters(), strict=True)
    loss, result = trainer.compute_loss(model, experience, return_outputs=True)
    # Advantages, weights and entropies are recorded in float32: about 1e-7 relative.
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)
    got = torch.autograd.grad(loss, parameters)
    wanted = torch.autograd.grad(expected, parameters)
    for parameter, one, other in zip(names, got, wanted, strict=True):
        scale = float(other.abs().max())
        assert float((one - other).abs().max()) < 2e-6 * max(scale, 1.0), parameter
    assert (result.ratio != 1).any()
    if name in ("plain", "sequence", "cispo"):
        assert (result.clipped != 0).any(), "the case must clip something"


def test_a_generation_s_tokens_are_shared_equally_by_its_updates(make_trainer):
    sums = {}
    for over in ("update", "generation"):
        trainer = make_trainer(
            reward=letters_reward,
            latent_length=0,
            per_device_train_batch_size=4,
            steps_per_generation=4,
            normalize_over=over,
            max_completion_length=8,
        )
        experience = trainer._collect([trainer.train_dataset[i] for i in range(4)], 0)
        weights, mask = experience.token_weights, experience.rollout.action_mask
        sums[over] = weights.reshape(4, -1).sum(1)
        tokens = mask.reshape(4, -1).sum(1).float()
    torch.testing.assert_close(sums["update"], torch.ones(4))
    assert len(set(tokens.tolist())) > 1, "updates must differ in their tokens"
    torch.testing.assert_close(sums["generation"], tokens / tokens.mean())
