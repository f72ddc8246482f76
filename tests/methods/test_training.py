"""Every method trains a tiny model, and its rollout agrees with its training forward."""

import pytest
import torch

from lepo_kernels.methods import methods
from lepo_kernels.trainer.experience import step_scores
from tests.trainer.conftest import make_trainer as make_trainer
from tests.trainer.conftest import one_thread as one_thread
from tests.trainer.dense import float64_model, letters_reward

TRAINED = [method.name for method in methods() if method.trains and method.name != "grpo"]


@pytest.mark.parametrize("method", TRAINED)
def test_the_reward_rises(make_trainer, method):
    trainer = make_trainer(
        method=method,
        max_steps=40,
        per_device_train_batch_size=32,
        num_generations=8,
        latent_length=1,
        learning_rate=3e-3,
        temperature=1.0,
        rows=20,
    )
    trainer.train()
    rewards = [log["reward"] for log in trainer.state.log_history if "reward" in log]
    first, last = sum(rewards[:10]) / 10, sum(rewards[-10:]) / 10
    assert last > first + 0.3, rewards


@pytest.mark.parametrize("method", TRAINED)
def test_rollout_and_training_forward_agree(make_trainer, method):
    trainer = make_trainer(
        model=float64_model(), reward=letters_reward, method=method, num_generations=4, max_steps=1
    )
    experience = trainer._prepare_inputs([trainer.train_dataset[0], trainer.train_dataset[1]])
    experience = experience.contributing(trainer.args.beta)
    rollout = experience.rollout
    result = trainer.compute_loss(trainer.model, experience, return_outputs=True)[1]
    used = (experience.advantages != 0)[:, None] & rollout.action_mask
    torch.testing.assert_close(
        result.log_prob[used[rollout.action_mask]].float(),
        rollout.log_probs[used],
        rtol=0,
        atol=1e-5,
    )
    assert result.ratio.eq(1).all()


@pytest.mark.parametrize("method", ["soft_grpo", "latent_grpo"])
def test_recorded_scores_are_the_noise_above_the_policys_log_probs(make_trainer, method):
    trainer = make_trainer(model=float64_model(), reward=letters_reward, method=method)
    rollout = trainer._prepare_inputs([trainer.train_dataset[0], trainer.train_dataset[1]]).rollout
    kept = torch.arange(rollout.latent_ids.shape[2]) < rollout.latent_count[..., None]
    assert torch.equal(rollout.latent_scores > -torch.inf, kept)
    # Of the density of clamped noise, d lies in the range of the clamp, whose ends it takes.
    scored = step_scores(trainer.model, rollout, trainer.args.temperature, 8)
    log_probs = scored.log_probs[:, : kept.shape[1]].masked_fill(~kept, -torch.inf)
    if method == "soft_grpo":
        log_probs = log_probs - log_probs.logsumexp(-1, keepdim=True)
    d = (rollout.latent_scores - log_probs)[kept]
    low, high = trainer.args.noise_clamp
    assert low - 1e-4 < float(d.min()) < float(d.max()) < high + 1e-4
    assert float(d.std()) > 0.3
