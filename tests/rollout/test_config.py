import dataclasses
from types import SimpleNamespace

import pytest

from lepo_kernels.rollout.config import LatentGenerationConfig, end_tokens
from tests.rollout.models import settings


@pytest.mark.parametrize(
    ("wrong", "error", "match"),
    [
        ({"eos_token_ids": ()}, ValueError, "eos_token_ids: expected at least one id"),
        ({"eos_token_ids": 2}, TypeError, "eos_token_ids: expected a sequence of ints, got int"),
        ({"eos_token_ids": (-1,)}, ValueError, "eos_token_ids"),
        ({"pad_token_id": None}, TypeError, "pad_token_id"),
        ({"max_new_tokens": 0}, ValueError, "max_new_tokens"),
        ({"latent_length": -1}, ValueError, "latent_length"),
        ({"latent_length": 15}, ValueError, r"latent_length: expected at most .*\(14\), got 15"),
        ({"latent_length": 13}, ValueError, "latent_suffix_ids: expected at most 1 ids"),
        (
            {"latent_suffix_ids": (7, 2)},
            ValueError,
            r"latent_suffix_ids: expected no EOS id.*\[2\]",
        ),
        ({"do_sample": 1}, TypeError, "do_sample: expected a bool, got int"),
        ({"do_latent_sample": None}, TypeError, "do_latent_sample: expected a bool"),
        ({"do_discrete_sample": "no"}, TypeError, "do_discrete_sample: expected a bool"),
        ({"noise": "uniform"}, ValueError, "noise: expected one of 'gumbel'"),
        ({"latent_eos": "ignore"}, ValueError, "latent_eos"),
        ({"cache_implementation": "paged"}, ValueError, "cache_implementation"),
        ({"tau": -0.1}, ValueError, "tau"),
        ({"tau": float("nan")}, ValueError, "tau"),
        ({"noise_scale": 0.0}, ValueError, "noise_scale"),
        ({"temperature": 0.0}, ValueError, "temperature"),
        ({"top_k": 0}, ValueError, "top_k"),
        ({"top_p": 0.0}, ValueError, "top_p"),
        ({"top_p": 1.1}, ValueError, "top_p"),
        ({"min_p": -0.1}, ValueError, "min_p"),
        ({"num_draws": 0}, ValueError, "num_draws"),
        ({"cold_stop_steps": 0}, ValueError, "cold_stop_steps"),
        ({"cold_stop_entropy": -1.0}, ValueError, "cold_stop_entropy"),
        ({"noise_clamp": (3.0, -1.5)}, ValueError, r"noise_clamp\[1\]: expected a number in \[3"),
        ({"noise_clamp": (1.5, 1.5)}, ValueError, "noise_clamp: expected .* low < high"),
        ({"noise_clamp": (-1.5, 3.0), "noise": "none"}, ValueError, "noise_clamp: .* ignores it"),
    ],
)
def test_bad_settings_are_named(wrong, error, match):
    with pytest.raises(error, match=match):
        settings(**wrong)


def test_settings_are_plain_data():
    config = settings(eos_token_ids=[2, 5], latent_suffix_ids=[7])
    assert config.eos_token_ids == (2, 5)
    again = LatentGenerationConfig(**dataclasses.asdict(config))
    assert again == config


def test_end_tokens_unites_every_place():
    tokenizer = SimpleNamespace(eos_token_id=5, pad_token_id=None)
    model = SimpleNamespace(
        generation_config=SimpleNamespace(eos_token_id=[7, 5], pad_token_id=None)
    )
    assert end_tokens(tokenizer, model) == {"eos_token_ids": (5, 7), "pad_token_id": 5}


def test_end_tokens_prefers_the_tokenizers_pad():
    tokenizer = SimpleNamespace(eos_token_id=5, pad_token_id=0)
    model = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=None, pad_token_id=9))
    assert end_tokens(tokenizer, model) == {"eos_token_ids": (5,), "pad_token_id": 0}


def test_end_tokens_without_any():
    with pytest.raises(ValueError, match="eos_token_ids: neither"):
        end_tokens(SimpleNamespace(eos_token_id=None))
