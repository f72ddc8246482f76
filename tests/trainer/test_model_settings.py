"""Settings are saved with every model and checkpoint, and hold a resume to them."""

import json
import logging
from pathlib import Path

import pytest
from datasets import Dataset
from peft import AutoPeftModelForCausalLM, LoraConfig
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from lepo_kernels import LEPOConfig
from lepo_kernels.trainer import model_settings
from lepo_kernels.trainer.model_settings import FILE, data_digest, prompts_of, read_settings

SAVING = {"save_strategy": "steps", "save_steps": 1}


def other_reward(completions, **_):
    return [float(len(text)) for text in completions]


@pytest.fixture
def stopped(make_trainer, tmp_path):
    """The folder of a run with a checkpoint after each of its two updates."""
    make_trainer(**SAVING).train()
    return tmp_path / "run"


def resume(make_trainer, folder, checkpoint=1, **changes):
    trainer = make_trainer(**{**SAVING, **changes})
    return trainer.train(resume_from_checkpoint=str(folder / f"checkpoint-{checkpoint}"))


def test_a_model_and_a_checkpoint_say_how_they_are_used(make_trainer, tmp_path):
    trainer = make_trainer(noise="gaussian", noise_scale=0.25, eval_num_samples=3, **SAVING)
    trainer.train()
    trainer.save_model()
    trainer.task_settings = {"task": "gsm8k"}
    trainer.save_model(str(tmp_path / "elsewhere"))
    run = tmp_path / "run"
    for folder in (run, run / "checkpoint-1", run / "checkpoint-2", tmp_path / "elsewhere"):
        sections = read_settings(folder / FILE)
        assert sections["sampling"]["latent_length"] == 2
        assert sections["sampling"]["noise_scale"] == 0.25
        assert sections["evaluation"]["eval_num_samples"] == 3
        assert sections["prompts"] == {"prompt_format": "text", "system_prompt": None}
    assert read_settings(run / FILE)["task"] == {}
    assert read_settings(tmp_path / "elsewhere" / FILE)["task"] == {"task": "gsm8k"}


def test_every_setting_of_ours_is_saved_once():
    sections = model_settings.settings_of(LEPOConfig(use_cpu=True))
    saved = [name for section in sections.values() for name in section]
    assert len(saved) == len(set(saved))
    left_out = {"remove_unused_columns", "resume_from_checkpoint", "model_init_kwargs"}
    assert set(model_settings.own_settings()) - set(saved) == left_out
    json.dumps(sections)


def test_a_secret_or_a_place_is_not_saved():
    args = LEPOConfig(use_cpu=True, hub_token="secret-word", output_dir="secret-place")
    text = json.dumps(model_settings.settings_of(args))
    assert "secret" not in text


def test_transformers_and_peft_pass_over_the_file(make_trainer, tmp_path):
    make_trainer().save_model()
    run = tmp_path / "run"
    assert (run / FILE).is_file()
    AutoConfig.from_pretrained(run)
    AutoTokenizer.from_pretrained(run)
    AutoModelForCausalLM.from_pretrained(run).save_pretrained(tmp_path / "plain")

    lora = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
    make_trainer(model=base, peft_config=lora, output_dir=str(tmp_path / "lora")).save_model()
    assert (tmp_path / "lora" / FILE).is_file()
    AutoPeftModelForCausalLM.from_pretrained(tmp_path / "lora")
    AutoModelForCausalLM.from_pretrained(tmp_path / "lora")


def chat(*turns):
    return [{"role": role, "content": content} for role, content in turns]


def test_the_system_turn_that_all_prompts_share_is_known():
    asked = chat(("system", "Be brief."), ("user", "1+1?"))
    other = chat(("system", "Be long."), ("user", "1+1?"))
    none = chat(("user", "1+1?"))

    def found(*prompts):
        said = prompts_of([{"prompt": prompt} for prompt in prompts])
        return said["prompt_format"], said["system_prompt"]

    assert found(asked, asked) == ("chat", "Be brief.")
    assert found(asked, other) == ("chat", None)
    assert found(asked, none) == ("chat", None)
    assert found(none) == ("chat", None)
    assert found("text") == ("text", None)
    assert found("text", none) == (None, None)
    assert prompts_of({"a": [{"prompt": asked}]}, None)["system_prompt"] == "Be brief."
    assert prompts_of(None) == {"prompt_format": None, "system_prompt": None}


def test_the_digest_tells_training_sets_apart():
    rows = [{"prompt": "1+1=", "answer": "2"}, {"prompt": "1+2=", "answer": "3"}]
    first = data_digest(Dataset.from_list(rows))
    assert first == data_digest(rows)
    assert first is not None
    assert first.startswith("2 rows, ")
    others = [rows[:1], rows[::-1], [rows[0], {**rows[1], "answer": "4"}]]
    assert len({first, *map(data_digest, others)}) == 4
    # Keys that JSON does not know must not end a run at its first checkpoint.
    assert data_digest([{"prompt": "x", "table": {1: "a", "b": 2, (3,): None}}]) is not None
    # An object has an address in its text; it must not make two equal sets differ.
    assert data_digest([{"prompt": "x", "o": object()}]) == data_digest(
        [{"prompt": "x", "o": object()}]
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latent_length": 3}, "latent_length was 2 and is 3"),
        ({"tau": 0.25}, "tau was 0.5 and is 0.25"),
        ({"noise": "none"}, "noise was 'gumbel' and is 'none'"),
        ({"temperature": 0.5}, "temperature was 1.0 and is 0.5"),
        ({"top_k": 7}, "top_k was 8 and is 7"),
        ({"max_completion_length": 8}, "max_completion_length was 6 and is 8"),
        ({"num_generations": 2}, "num_generations was 4 and is 2"),
        ({"per_device_train_batch_size": 4}, "per_device_train_batch_size was 8 and is 4"),
        ({"gradient_accumulation_steps": 2}, "gradient_accumulation_steps was 1 and is 2"),
        ({"num_iterations": 2}, "num_iterations was 1 and is 2"),
        ({"loss_type": "grpo"}, "loss_type was 'dapo' and is 'grpo'"),
        ({"beta": 0.1}, "beta was 0.0 and is 0.1"),
        ({"seed": 1}, "seed was 42 and is 1"),
        # The saved state of the optimizer would override these without a word.
        ({"learning_rate": 1e-4}, "learning_rate was 0.001 and is 0.0001"),
        ({"weight_decay": 0.1}, "weight_decay was 0.0 and is 0.1"),
        ({"lr_scheduler_type": "cosine"}, "lr_scheduler_type was 'linear' and is 'cosine'"),
        ({"reward": other_reward}, r"reward_funcs was \['digits_reward'\] and is"),
        ({"rows": 10}, "train_dataset was '12 rows, .*' and is '10 rows"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_decides_an_update_is_refused_by_name(make_trainer, stopped, changes, message):
    files = {file: file.read_bytes() for file in stopped.rglob("*") if file.is_file()}
    with pytest.raises(ValueError, match=f"must keep the run's settings, but .*{message}"):
        resume(make_trainer, stopped, **changes)
    assert {file: file.read_bytes() for file in files} == files


def test_the_length_that_prompts_are_cut_to_decides_an_update(make_trainer, tmp_path):
    settings = {**SAVING, "truncate_prompts": True}
    make_trainer(**settings, max_prompt_length=6).train()
    with pytest.raises(ValueError, match="max_prompt_length was 6 and is 7"):
        resume(make_trainer, tmp_path / "run", truncate_prompts=True, max_prompt_length=7)


def test_all_refused_changes_are_named_together(make_trainer, stopped):
    with pytest.raises(ValueError, match=r"tau was .*; top_k was .*; epsilon was"):
        resume(make_trainer, stopped, tau=0.25, top_k=7, epsilon=0.1)


def test_what_may_change_is_logged(make_trainer, stopped, caplog):
    with caplog.at_level(logging.WARNING, "lepo_kernels"):
        resume(make_trainer, stopped)
    assert not [record for record in caplog.records if "other settings" in record.message]
    free = {"max_steps": 3, "save_steps": 2, "logging_steps": 3, "rollout_batch_size": 4}
    with caplog.at_level(logging.WARNING, "lepo_kernels"):
        resume(make_trainer, stopped, **free)
    (said,) = [record.message for record in caplog.records if "other settings" in record.message]
    for text in (
        "max_steps was 2 and is 3",
        "save_steps was 1 and is 2",
        "logging_steps was 1 and is 3",
        "rollout_batch_size was None and is 4",
    ):
        assert text in said


def test_a_checkpoint_has_the_limit_of_checkpoints_that_was_set(make_trainer, tmp_path):
    make_trainer(**SAVING, save_total_limit=3).train()
    saved = read_settings(tmp_path / "run" / "checkpoint-1" / FILE)
    assert saved["training"]["save_total_limit"] == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "can't be read"),
        ("[]", "expected a JSON object with a schema_version"),
        ("{}", "expected a JSON object with a schema_version"),
        ('{"schema_version": 1, "sampling": [1]}', "sampling: expected a JSON object"),
        ('{"schema_version": 2, "lepo_kernels_version": "9"}', "written by lepo_kernels 9 with"),
        ("[" * 100_000, "can't be read"),
        (None, "can't be read"),
    ],
)
def test_a_file_that_is_none_says_so(tmp_path: Path, text, message):
    file = tmp_path / FILE
    if text is not None:
        file.write_text(text)
    with pytest.raises(ValueError, match=message) as raised:
        read_settings(file)
    assert str(file) in str(raised.value)


def test_a_setting_that_is_reported_to_none_is_switched_off():
    assert LEPOConfig(use_cpu=True, report_to=None).report_to == []
