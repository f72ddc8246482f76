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
        ({"noise": "gumbell"}, "noise: expected one of 'gumbel', .* got 'gumbell'"),
        ({"loss_type": "ppo"}, "loss_type: expected one of 'grpo'"),
        ({"scale_rewards": "std"}, "scale_rewards: expected one of"),
        ({"latent_eos": "end"}, "latent_eos"),
        ({"latent_kl": "k1"}, "latent_kl"),
        ({"cache_implementation": "paged"}, "cache_implementation"),
        ({"latent_length": -1}, r"latent_length: expected an int in \[0, inf\), got -1"),
        ({"latent_length": 256}, "latent_length: 256 leaves no room for an answer"),
        ({"do_discrete_sample": False, "latent_length": 0}, "do_discrete_sample: off, and no lat"),
        ({"do_discrete_sample": False, "do_latent_sample": False}, "would all be the same"),
        ({"truncate_prompts": True}, "truncate_prompts: needs max_prompt_length"),
        ({"num_generations": 1}, r"num_generations: expected an int in \[2, inf\)"),
        ({"num_generations": 3}, "does not hold whole groups of 3"),
        ({"temperature": 0.0}, r"temperature: expected a number in \(0, inf\)"),
        ({"top_p": 0.0}, r"top_p: expected a number in \(0, 1\]"),
        ({"top_p": 1.5}, r"top_p: expected a number in \(0, 1\]"),
        ({"beta": -0.1}, r"beta: expected a number in \[0, inf\)"),
        ({"delta": 1.1}, r"delta: expected a number in \(1.2, inf\)"),
        ({"num_iterations": 0}, "num_iterations"),
        ({"beta": float("nan")}, "beta: expected a number"),
        ({"epsilon": 1.5}, "epsilon: expected a number"),
        ({"epsilon_high": -0.1}, "epsilon_high: expected a number"),
        # transformers trains one update, one update, all epochs and nothing.
        ({"max_steps": 0}, "max_steps: expected at least 1, or -1 to train for num_train_epochs"),
        ({"num_train_epochs": 0}, r"num_train_epochs: expected a number in \(0, inf\)"),
        ({"max_steps": -3}, "max_steps: expected at least 1, or -1"),
        ({"num_train_epochs": -1.0}, r"num_train_epochs: expected a number in \(0, inf\)"),
        ({"noise_clamp": [1.0, -1.0]}, r"noise_clamp\[1\]: expected a number"),
        ({"rollout_batch_size": 3}, "rollout_batch_size: expected at least a group of 4"),
        ({"eval_greedy": False, "eval_num_samples": 0}, "eval_num_samples: expected at least 1"),
        ({"per_device_train_batch_size": 0}, "per_device_train_batch_size: expected an int"),
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps: expected an int"),
        ({"per_device_eval_batch_size": 0}, "per_device_eval_batch_size: expected an int"),
        ({"auto_find_batch_size": True}, "auto_find_batch_size: has no meaning"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor: has no meaning"),
        ({"neftune_noise_alpha": 5.0}, "neftune_noise_alpha: has no meaning"),
        ({"train_sampling_strategy": "group_by_length"}, "train_sampling_strategy: has no"),
        ({"metric_for_best_model": "loss"}, "metric_for_best_model: there is no evaluation loss"),
        ({"remove_unused_columns": True}, "remove_unused_columns: has no meaning for LEPO"),
        (
            {"gradient_accumulation_steps": 2, "steps_per_generation": 3},
            "steps_per_generation: expected a multiple of gradient_accumulation_steps = 2, got 3",
        ),
    ],
)
def test_bad_settings(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        config(tmp_path, **changes)


@pytest.mark.parametrize("name", ["num_iterations", "num_generations"])
def test_numbers_that_must_be_whole(tmp_path, name):
    with pytest.raises(TypeError, match=f"{name}: expected an int, got float"):
        config(tmp_path, **{name: 2.0})


@pytest.mark.parametrize("clamp", [[1.0], [-1.0, 1.0, 7.0], "ab"])
def test_a_clamp_is_a_pair(tmp_path, clamp):
    with pytest.raises(TypeError, match="noise_clamp: expected a pair"):
        config(tmp_path, noise_clamp=clamp)


@pytest.mark.parametrize(
    ("changes", "metric"),
    [
        ({"load_best_model_at_end": True, "save_strategy": "steps"}, "eval_greedy_accuracy"),
        ({"lr_scheduler_type": "reduce_lr_on_plateau"}, "eval_greedy_accuracy"),
        ({"save_strategy": "best", "eval_greedy": False}, "eval_mean@8"),
    ],
)
def test_checkpoints_are_compared_by_accuracy(tmp_path, changes, metric):
    got = config(tmp_path, eval_strategy="steps", eval_steps=1, save_steps=1, **changes)
    assert (got.metric_for_best_model, got.greater_is_better) == (metric, True)
