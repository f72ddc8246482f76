"""Methods by name: their registry, their published settings, and what they refuse."""

import dataclasses
import re
from pathlib import Path

import pytest

from lepo_kernels.formulas import latent_scores
from lepo_kernels.formulas.latent_scores import LATENT_SCORES
from lepo_kernels.methods import Method, method_named, methods, register_method
from lepo_kernels.methods import method as registry
from lepo_kernels.rollout.config import LatentGenerationConfig
from lepo_kernels.trainer.config import LEPOConfig

DOCS = Path(__file__).parents[2] / "docs" / "methods.md"
NAMES = [
    "lepo",
    "grpo",
    "soft_grpo",
    "latent_grpo",
    "multiplex",
    "soft_tokens",
    "soft_thinking",
    "stochastic_soft_thinking",
]
ORDER = [method_named(name) for name in NAMES]


@pytest.fixture
def own_registry(monkeypatch):
    """What a test registers is gone after it."""
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))


def config(tmp_path, **settings):
    return LEPOConfig(output_dir=str(tmp_path), report_to="none", use_cpu=True, **settings)


def test_every_method_of_the_family_is_there():
    assert {method.name for method in methods()} == set(NAMES)


@pytest.mark.parametrize("method", methods(), ids=lambda method: method.name)
def test_a_methods_settings_are_those_of_the_trainer_and_the_rollout(method):
    known = {field.name for field in dataclasses.fields(LEPOConfig)}
    assert {*method.defaults, *method.fixed} <= known
    assert re.fullmatch(r"\d{4}\.\d{5}", method.paper)
    rollout = {field.name for field in dataclasses.fields(LatentGenerationConfig)}
    sampling = {name: value for name, value in method.defaults.items() if name in rollout}
    records = {"record_scores": method.records}
    LatentGenerationConfig(eos_token_ids=(0,), pad_token_id=0, **sampling, **records)
    assert LATENT_SCORES[method.latent_score].reads_record == (method.records is not None)


def test_settings_that_are_not_given_are_published_ones(tmp_path):
    args = config(tmp_path, method="soft_grpo", top_k=7)
    assert (args.tau, args.noise_clamp, args.beta) == (0.1, (-1.5, 3.0), 1e-3)
    assert args.top_k == 7
    assert config(tmp_path).tau == 0.5
    # Where a setting is given the value that it has by default elsewhere, it was given.
    assert config(tmp_path, method="soft_grpo", tau=0.5).tau == 0.5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "soft_grop"}, "method: there is no 'soft_grop'; did you mean 'soft_grpo'"),
        ({"method": "soft_grpo", "noise": "gaussian"}, "noise: method='soft_grpo' takes 'gumbel'"),
        ({"method": "grpo", "latent_length": 4}, "latent_length: method='grpo' takes 0, got 4"),
        ({"method": "soft_thinking"}, "method: 'soft_thinking' samples and does not train"),
        ({"method": "soft_tokens", "num_iterations": 2}, "holds for one update per rollout, got 2"),
        ({"method": "latent_grpo", "mixture_top_k": 0}, "mixture_top_k: expected"),
    ],
)
def test_wrong_settings_are_refused_by_name(tmp_path, settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        config(tmp_path, per_device_train_batch_size=32, **settings)
    with pytest.raises(TypeError, match="method: expected a str, got int"):
        config(tmp_path, method=3)


def test_anyone_can_register_a_method(tmp_path, own_registry):
    mine = dataclasses.replace(
        method_named("soft_grpo"), name="mine", defaults={"tau": 0.25, "top_k": 3}
    )
    assert register_method(mine) is mine
    assert register_method(mine) is mine  # a module may be imported twice
    args = config(tmp_path, method="mine")
    assert (args.tau, args.top_k, args.beta) == (0.25, 3, 0.0)
    with pytest.raises(ValueError, match="there is another method 'mine' already"):
        register_method(dataclasses.replace(mine, defaults={}))


def test_a_method_is_checked_when_it_is_made():
    with pytest.raises(ValueError, match="latent_score: expected one of"):
        Method(name="x", title="X", latent_score="nothing")
    with pytest.raises(ValueError, match="defaults: x has noise='soft', which is not one of"):
        Method(name="x", title="X", defaults={"noise": "soft"}, fixed={"noise": ("gumbel",)})


def test_the_documented_examples_run(own_registry, monkeypatch):
    monkeypatch.setattr(latent_scores, "LATENT_SCORES", dict(LATENT_SCORES))
    blocks = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        exec(block, {})
    assert method_named("wide_grpo").defaults["top_k"] == 20
    assert "top_log_prob" in latent_scores.LATENT_SCORES


def test_the_documented_table_names_every_method():
    named = re.findall(r"^\| `(\w+)` \| \[(\S+)\]", DOCS.read_text(encoding="utf-8"), re.MULTILINE)
    assert named == [(method.name, method.paper) for method in ORDER]
