"""The metrics that say whether latents are used."""

import json
from dataclasses import replace

import pytest
import torch

from lepo_kernels.rollout.latent_generate import latent_generate
from lepo_kernels.rollout.policy_loss import policy_loss
from lepo_kernels.trainer.collect import rollout_metrics
from lepo_kernels.trainer.latent_use import LatentGradientShare, latent_use_metrics
from lepo_kernels.trainer.metrics import MetricMeans
from tests.rollout.models import prompts, settings, tiny_model


@pytest.fixture(scope="module")
def rollout():
    return latent_generate(tiny_model("llama"), *prompts(), settings(), seed=3)


def test_first_middle_and_last_step_are_each_rows_own(rollout):
    # Phases of 4, 3 and 1 steps: their last steps are 3, 2 and 0, their middle ones 1, 1 and 0.
    steps = torch.tensor([4, 3, 1])
    mask = torch.arange(rollout.completion_ids.shape[1]) < steps[:, None]
    cut = replace(rollout, latent_mask=mask)
    got = latent_use_metrics(cut)
    values = {
        "entropy": rollout.entropy,
        "top_weight": rollout.latent_weights.max(-1).values,
        "support_size": rollout.latent_count,
    }
    places = {"first": (0, 0, 0), "middle": (1, 1, 0), "last": (3, 2, 0)}
    for name, by_step in values.items():
        for where, place in places.items():
            expected = sum(float(by_step[row, step]) for row, step in enumerate(place)) / 3
            assert got.pop(f"latent/{name}_{where}") == pytest.approx(expected)
    expected = [
        float(values["top_weight"][row, step]) for row in range(3) for step in range(steps[row])
    ]
    assert got == {"latent/top_weight": pytest.approx(sum(expected) / 8)}


def test_without_latent_steps_there_is_nothing_to_say(rollout):
    none = replace(rollout, latent_mask=torch.zeros_like(rollout.latent_mask))
    assert latent_use_metrics(none) == {}
    plain = latent_generate(tiny_model("llama"), *prompts(), settings(latent_length=0), seed=3)
    assert not [name for name in rollout_metrics(plain, torch.ones(3)) if "latent" in name]


def test_the_share_is_that_of_the_gradient_that_reaches_the_head(rollout):
    model, share = tiny_model("llama"), LatentGradientShare()
    steps = rollout.action_mask
    count = int(steps.sum())
    seen = []

    def keep(module, args):
        args[0].retain_grad()
        seen.append(args[0])

    hook = model.lm_head.register_forward_pre_hook(keep)
    weights = torch.linspace(0.5, 1.5, count)  # rows that count differently
    result = policy_loss(
        model,
        rollout,
        steps,
        torch.ones(count),
        weights,
        share_prompts=False,
        packing=False,
        hidden_gradient=share.add,
    )
    result.loss.backward()
    hook.remove()
    means = MetricMeans()
    share.pop_into(means)
    # Completion step t is predicted at column P + t - 1; the other columns have no gradient.
    P, (hidden,) = rollout.prompt_ids.shape[1], seen
    squares = hidden.grad.double().square().sum(-1)
    squares = squares[:, P - 1 : P - 1 + steps.shape[1]]
    T = squares.shape[1]
    latent = float(squares[rollout.latent_mask[:, :T]].sum())
    expected = latent / float(squares.sum())
    assert 0 < expected < 1
    # Norms are formed in float32, of 32 numbers each.
    assert means.pop() == {"latent/gradient_share": pytest.approx(expected, rel=1e-5)}


def test_shares_add_up_until_they_are_taken():
    share, means = LatentGradientShare(), MetricMeans()
    latent = torch.tensor([True, False])
    share.add(latent, torch.tensor([[1.0, 0.0], [0.0, 2.0]]))  # 1 of 5
    share.add(latent, torch.tensor([[0.0, 4.0], [3.0, 0.0]]))  # 16 of 25
    share.add(latent, torch.tensor([[float("nan"), 0.0], [1.0, 0.0]]))
    share.pop_into(means)
    assert means.pop() == {"latent/gradient_share": pytest.approx(17 / 30)}
    share.pop_into(means)
    share.add(latent, torch.zeros(2, 2))
    share.pop_into(means)
    assert means.pop() == {}


def test_a_run_logs_them(make_trainer, tmp_path):
    trainer = make_trainer(logging_steps=1, max_steps=2)
    trainer.train()
    logs = [row for row in trainer.state.log_history if "loss" in row]
    assert len(logs) == 2
    for row in logs:
        assert 0 < row["latent/gradient_share"] < 1
        assert 0 < row["latent/top_weight_last"] <= 1
    json.dumps(logs)
    plain = make_trainer(logging_steps=1, max_steps=1, latent_length=0)
    plain.train()
    assert not [name for name in plain.state.log_history[0] if name.startswith("latent/")]
