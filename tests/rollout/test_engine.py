"""Rollout engines by name: the built-in one, one that is registered, one that is installed."""

import re
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch

from lepo_kernels import LEPOConfig, LEPOTrainer, evaluate_policy
from lepo_kernels.rollout import engine as engines
from lepo_kernels.rollout.engine import (
    RolloutRequest,
    TransformersEngine,
    check_rollout_engine,
    make_rollout_engine,
    register_rollout_engine,
)
from lepo_kernels.rollout.latent_generate import latent_generate
from lepo_kernels.trainer.generation import generation_config
from tests import tiny
from tests.rollout.models import prompts, settings, tiny_model
from tests.trainer.conftest import digits_reward, problems


class Counting(TransformersEngine):
    """Decodes as the built-in engine, and notes what it is asked for."""

    def __init__(self, model):
        super().__init__(model)
        self.calls = []

    def update_weights(self, model):
        self.calls.append("weights")
        super().update_weights(model)

    def generate(self, request, *, progress=None):
        self.calls.append(len(request.input_ids) * request.num_return_sequences)
        return super().generate(request, progress=progress)


@pytest.fixture
def made(monkeypatch):
    """The engines that were made under the name ``counting``, which is gone afterwards."""
    monkeypatch.setattr(engines, "_factories", dict(engines._factories))
    found = []

    def make(model):
        found.append(Counting(model))
        return found[-1]

    register_rollout_engine("counting", make)
    return found


def test_the_built_in_one_is_latent_generate():
    model = tiny_model("llama")
    keys = torch.arange(6) + 5
    steps = []
    engine = make_rollout_engine("transformers", model)
    engine.update_weights(model)
    request = RolloutRequest(*prompts(), settings(), 2, 7, keys)
    rollout = engine.generate(request, progress=lambda done, total: steps.append((done, total)))
    expected = latent_generate(
        model, *prompts(), settings(), num_return_sequences=2, seed=7, row_keys=keys
    )
    for name, value in expected.state_dict().items():
        assert torch.equal(rollout.state_dict()[name], value)
    assert steps[0] == (1, 14)


def test_a_run_takes_the_engine_that_is_named(made, tmp_path):
    policy = tiny.tiny_model()
    args = LEPOConfig(
        output_dir=str(tmp_path),
        rollout_engine="counting",
        per_device_train_batch_size=8,
        num_generations=4,
        max_steps=2,
        eval_strategy="steps",
        eval_steps=2,
        eval_num_samples=0,
        per_device_eval_batch_size=4,
        save_strategy="no",
        latent_length=2,
        top_k=8,
        max_completion_length=6,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = LEPOTrainer(
        policy,
        digits_reward,
        args,
        problems(4),
        problems(4),
        processing_class=tiny.tiny_tokenizer(),
    )
    trainer.train()
    (engine,) = made
    # Two rollouts of eight samples, then four greedy ones; weights anew before each.
    assert engine.calls == ["weights", 8, "weights", 8, "weights", 4]


def test_an_evaluation_takes_the_engine_it_is_given(made):
    policy = tiny.tiny_model()
    args = LEPOConfig(
        output_dir="unused", latent_length=2, top_k=8, max_completion_length=6, use_cpu=True
    )
    tokenizer = tiny.tiny_tokenizer()
    engine = make_rollout_engine("counting", policy)
    result = evaluate_policy(
        policy,
        tokenizer,
        problems(4),
        digits_reward,
        generation_config(args, policy, tokenizer),
        num_samples=2,
        engine=engine,
    )
    assert made == [engine]
    assert engine.calls == [4, 8]
    assert len(result.records) == 12


def test_one_that_is_installed_is_found(monkeypatch):
    point = EntryPoint("installed", "tests.rollout.test_engine:Counting", engines._ENTRY_POINTS)

    def entry_points(*, group, name=None):
        return [point] if group == engines._ENTRY_POINTS and name in (None, "installed") else []

    monkeypatch.setattr(engines, "_factories", dict(engines._factories))
    monkeypatch.setattr(engines, "entry_points", entry_points)
    assert type(make_rollout_engine("installed", tiny_model("llama"))).__name__ == "Counting"


def test_errors_name_what_there_is(made):
    with pytest.raises(ValueError, match=r"rollout_engine: .*'vlm'; known: counting, transformers"):
        check_rollout_engine("vlm")
    with pytest.raises(ValueError, match="did you mean 'transformers'"):
        make_rollout_engine("transformer", None)
    with pytest.raises(ValueError, match="there is a rollout engine 'counting' already"):
        register_rollout_engine("counting", Counting)
    with pytest.raises(ValueError, match="rollout_engine: there is no engine 'vlm'"):
        LEPOConfig(output_dir="unused", rollout_engine="vlm", use_cpu=True)


def test_the_documented_engine_works(made, capsys):
    page = Path(__file__).parents[2] / "docs" / "models.md"
    (code,) = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    exec(compile(code, str(page), "exec"), {"__name__": "example"})
    engine = make_rollout_engine("logging", tiny_model("llama"))
    engine.generate(RolloutRequest(*prompts(), settings(), 2))
    assert capsys.readouterr().out == "6 completions of 3 prompts\n"
