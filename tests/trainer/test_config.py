"""Bad settings are refused by name before any work starts."""

import pytest

from lepo_kernels.trainer.config import LEPOConfig


def config(tmp_path, **changes):
    settings = {
        "output_dir": str(tmp_path),
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "report_to": "none",
        **changes,
    }
    return LEPOConfig(**settings)


def test_defaults_follow_the_paper(tmp_path):
    got = config(tmp_path)
    assert (got.temperature, got.top_k, got.top_p, got.learning_rate) == (1.0, 30, 0.95, 1e-6)
    assert got.steps_per_generation == got.gradient_accumulation_steps == 1
    assert got.updates_per_rollout == 1


def test_updates_per_rollout(tmp_path):
    got = config(tmp_path, gradient_accumulation_steps=2, steps_per_generation=6, num_iterations=2)
    assert got.samples_per_rollout == 48
    assert got.updates_per_rollout == 6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"noise": "gumbell"}, "noise: expected one of gumbel, .* got 'gumbell'"),
        ({"loss_type": "ppo"}, "loss_type: expected one of grpo"),
        ({"scale_rewards": "std"}, "scale_rewards: expected one of"),
        ({"latent_eos": "end"}, "latent_eos"),
        ({"latent_kl": "k1"}, "latent_kl"),
        ({"cache_implementation": "paged"}, "cache_implementation"),
        ({"latent_length": -1}, "latent_length: expected at least 0, got -1"),
        ({"latent_length": 256}, "leaves no room for an answer"),
        ({"num_generations": 1}, "num_generations: expected at least 2"),
        ({"num_generations": 3}, "does not hold whole groups of 3"),
        ({"temperature": 0.0}, "temperature: expected more than 0"),
        ({"tau": 0.0}, "tau: expected more than 0"),
        ({"top_p": 0.0}, r"top_p: expected a number in \(0, 1\]"),
        ({"top_p": 1.5}, r"top_p: expected a number in \(0, 1\]"),
        ({"beta": -0.1}, "beta: expected at least 0"),
        ({"delta": 1.1}, "delta: expected more than 1 . epsilon_high"),
        ({"num_iterations": 0}, "num_iterations"),
        ({"remove_unused_columns": True}, "remove_unused_columns: must be off"),
        (
            {"gradient_accumulation_steps": 2, "steps_per_generation": 3},
            "steps_per_generation: expected a multiple of gradient_accumulation_steps = 2, got 3",
        ),
    ],
)
def test_bad_settings(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        config(tmp_path, **changes)
