"""Settings have one owner: what the rollout or the rewards refuse, LEPOConfig refuses likewise."""

import dataclasses
import math

import pytest

from lepo_kernels.rollout.config import LatentGenerationConfig
from lepo_kernels.trainer.config import LEPOConfig
from lepo_kernels.trainer.rewards import Rewards
from tests.trainer.conftest import digits_reward
from tests.trainer.test_config import config

# Every setting of a rollout that the trainer has under the same name, and values at and beyond the
# ends of its range: 1e39 and 1e-39 are finite in float64 and inf and 0 in float32's normal numbers.
SHARED = [
    ("tau", (-0.1, 0, 0.0, 0.3, 1e39, math.nan, math.inf, "0.5", None)),
    ("noise_scale", (0, -1.0, 0.33, 1e39, 1e-39, math.nan, True)),
    ("noise_clamp", ([1.0], [-1.0, 1.0, 7.0], [1.0, -1.0], [-1.5, 3.0], ["a", "b"], [math.nan, 1])),
    ("num_draws", (0, 1, 64, 65, 2.0)),
    ("temperature", (0.0, 0.5, 1e39, math.nan)),
    ("top_k", (0, 1, None, 2.5)),
    ("top_p", (0.0, 0.5, 1.0, 1.1)),
    ("min_p", (-0.1, 0.0, 1.0, 1.1)),
    ("cold_stop_entropy", (-1.0, 0.0, math.nan, None)),
    ("cold_stop_steps", (0, 1)),
    ("latent_eos", ("mask", "stop", "ignore")),
    ("cache_implementation", ("static", "paged")),
    ("compile_rollout", (True, False, None, 1, "yes")),
    ("noise", ("none", "categorical", "multiplex", "uniform")),
    ("latent_length", (-1, 0, 4, 2.0, "4")),
]
# What a setting of the noise needs, to have an effect.
NEEDS = {"noise_scale": {"noise": "gaussian"}, "num_draws": {"noise": "categorical"}}


def refusal(make, **changes):
    try:
        make(**changes)
    except (TypeError, ValueError) as error:
        return type(error), str(error)
    return None


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in SHARED for value in values]
)
def test_trainer_and_rollout_agree_on_every_range(tmp_path, name, value):
    def rollout(**changes):
        return LatentGenerationConfig(eos_token_ids=(1,), pad_token_id=0, **changes)

    changes = {name: value, **NEEDS.get(name, {})}
    got = refusal(lambda **c: config(tmp_path, **c), **changes)
    assert got == refusal(rollout, **changes)
    if got is not None:
        assert got[1].startswith(name)


def test_defaults_of_shared_settings_agree():
    rollout = {f.name: f.default for f in dataclasses.fields(LatentGenerationConfig)}
    trainer = {f.name: f.default for f in dataclasses.fields(LEPOConfig)}
    shared = rollout.keys() & trainer.keys() - {"latent_length"}  # 0 there: a plain rollout
    assert {name for name, _ in SHARED} - {"latent_length"} <= shared
    assert {name: rollout[name] for name in shared} == {name: trainer[name] for name in shared}


def test_a_length_is_named_as_the_trainer_names_it(tmp_path):
    with pytest.raises(ValueError, match=r"latent_length: .* max_completion_length"):
        config(tmp_path, latent_length=300)
    with pytest.raises(ValueError, match=r"max_completion_length: expected an int in \[1, inf\)"):
        config(tmp_path, max_completion_length=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"noise_scale": 0.5}, "noise_scale: noise='gumbel' ignores it .*leave it at 1.0, got 0.5"),
        ({"noise": "none", "noise_scale": 0.5}, "noise_scale: noise='none' ignores it"),
        ({"noise": "gaussian", "tau": 0.3}, "tau: noise='gaussian' ignores it"),
        ({"noise": "categorical", "tau": 0.3}, "tau: noise='categorical' ignores it"),
        ({"num_draws": 4}, "num_draws: noise='gumbel' ignores it"),
        ({"noise": "soft", "noise_clamp": [-1.0, 1.0]}, "noise_clamp: noise='soft' ignores it"),
    ],
)
def test_a_setting_that_the_noise_ignores_is_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        config(tmp_path, **changes)


@pytest.mark.parametrize(
    ("weights", "error", "message"),
    [
        ([math.nan], ValueError, r"reward_weights\[0\]: expected a number"),
        ([1.0, math.inf], ValueError, r"reward_weights\[1\]: expected a number"),
        ([1e39], ValueError, r"reward_weights\[0\]: expected a number"),
        (["1"], TypeError, r"reward_weights\[0\]: expected a number, got str"),
        (1.0, TypeError, "reward_weights: expected a list of numbers, got float"),
    ],
)
def test_weights_that_would_spoil_every_reward(tmp_path, weights, error, message):
    with pytest.raises(error, match=message):
        config(tmp_path, reward_weights=weights)
    count = len(weights) if isinstance(weights, list) else 1
    with pytest.raises(error, match=message):
        Rewards([digits_reward] * count, weights)
    assert Rewards(digits_reward, [-0.5]).weights == [-0.5]


# Of TrainingArguments, too: each would train on without a word.
@pytest.mark.parametrize(
    "name", ["learning_rate", "weight_decay", "success_threshold", "beta", "max_grad_norm"]
)
def test_no_setting_may_be_nan(tmp_path, name):
    with pytest.raises(ValueError, match=f"{name}: "):
        config(tmp_path, **{name: math.nan})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reward_timeout": 0.0}, r"reward_timeout: expected a number in"),
        ({"success_threshold": math.inf}, "success_threshold: expected a number"),
        ({"num_completions_to_print": -1}, "num_completions_to_print: expected an int"),
        ({"epsilon": 1.5}, "epsilon: expected a number"),
    ],
)
def test_ranges_of_the_trainers_own(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        config(tmp_path, **changes)
