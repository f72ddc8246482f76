"""A model's settings come with it, below what a person says; a folder is trusted with no more."""

import json
from pathlib import Path
from typing import Any

import pytest
import transformers
import yaml
from datasets import Dataset

from lepo_kernels import LEPOConfig, LEPOTrainer
from lepo_kernels.cli.main import main
from lepo_kernels.rollout import engine
from lepo_kernels.trainer.model_settings import FILE, read_settings
from tests.cli.conftest import SETTINGS
from tests.tiny import tiny_model, tiny_tokenizer

SYSTEM = "Answer with the number only."


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, model_folder: str) -> Path:
    """A run of ``lepo train`` with its final model and a checkpoint; not to be written to."""
    root = tmp_path_factory.mktemp("trained")
    settings = {**SETTINGS, "model": model_folder, "output_dir": str(root / "run")}
    settings |= {"save_strategy": "steps", "save_steps": 1, "eval_num_samples": 0}
    (root / "config.yaml").write_text(yaml.safe_dump(settings))
    assert main(["train", str(root / "config.yaml")]) == 0
    return root / "run"


@pytest.fixture(scope="module")
def python_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that was trained from Python, on bare text."""
    folder = tmp_path_factory.mktemp("python") / "run"
    args = LEPOConfig(
        output_dir=str(folder),
        latent_length=3,
        max_completion_length=7,
        top_k=8,
        num_generations=4,
        per_device_train_batch_size=8,
        max_steps=1,
        save_strategy="no",
        reward_weights=[0.5, 0.5],
        report_to="none",
        use_cpu=True,
    )
    rewards = [lambda completions, **_: [float(len(set(c))) for c in completions]] * 2
    data = Dataset.from_list([{"prompt": f"{i}+{i}="} for i in range(8)])
    trainer = LEPOTrainer(tiny_model(), rewards, args, data, processing_class=tiny_tokenizer())
    trainer.train()
    trainer.save_model()
    return folder


@pytest.fixture
def sampled(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the commands would decode: the sampling settings and prompts of each call."""
    calls: list[dict[str, Any]] = []

    original = engine.latent_generate

    def spy(model: Any, ids: Any, mask: Any, config: Any, **kwargs: Any) -> Any:
        calls.append({"config": config, "ids": ids, **kwargs})
        return original(model, ids, mask, config, **kwargs)

    monkeypatch.setattr(engine, "latent_generate", spy)
    return calls


def prompt_of(call: dict[str, Any]) -> str:
    return str(tiny_tokenizer().decode(call["ids"][0]).replace("<pad>", ""))


def said(capsys: pytest.CaptureFixture[str]) -> str:
    """What was printed, without line breaks."""
    return " ".join(capsys.readouterr().out.split())


# Evaluation and generation


@pytest.mark.parametrize("place", [".", "checkpoint-1"])
def test_a_folder_is_evaluated_as_it_was_trained(
    run: Path, place: str, sampled: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", "--model", str(run / place)]) == 0
    config = sampled[0]["config"]
    assert (config.latent_length, config.max_new_tokens, config.top_k) == (2, 5, 8)
    shown = said(capsys)
    assert f"Settings from {run / place / FILE}:" in shown
    for text in ("task='reasoning_gym:chain_sum'", "latent_length=2", "eval_size=4"):
        assert text in shown


def test_a_model_trained_from_python_carries_its_settings(
    python_run: Path, sampled: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", "--model", str(python_run)]) == 2
    assert "task: missing" in capsys.readouterr().err
    words = ["--task", SETTINGS["task"], "--eval_size", "2", "--eval_num_samples", "0"]
    # The weights of its own two rewards say nothing of the task's one.
    assert main(["eval", "--model", str(python_run), *words]) == 0
    config = sampled[0]["config"]
    assert (config.latent_length, config.max_new_tokens) == (3, 7)


def test_the_command_line_beats_the_file_beats_the_model(
    run: Path, tmp_path: Path, sampled: list[dict[str, Any]]
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({"model": str(run), "latent_length": 1, "top_k": 5}))
    words = [str(file), "--top_k", "4", "--eval_size", "2", "--eval_num_samples", "0"]
    assert main(["eval", *words]) == 0
    config = sampled[0]["config"]
    assert (config.latent_length, config.top_k, config.max_new_tokens) == (1, 4, 5)


def test_nothing_of_the_models_task_is_taken_for_another(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Its eval_size is 4, and this task's own is 100; its parameters mean nothing there.
    output = tmp_path / "out.json"
    words = ["--task", "reasoning_gym:leg_counting", "--eval_num_samples", "0"]
    assert main(["eval", "--model", str(run), "--output", str(output), *words]) == 0
    assert json.loads(output.read_text())["evaluations"][0]["problems"] == 100
    assert "task_params" not in said(capsys)


def test_of_several_tasks_the_models_own_keeps_its_settings(run: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.json"
    own, other = str(SETTINGS["task"]), "reasoning_gym:leg_counting"
    words = ["--tasks", own, other, "--eval_num_samples", "0", "--output", str(output)]
    assert main(["eval", "--model", str(run), *words]) == 0
    found = json.loads(output.read_text())["evaluations"]
    assert [(part["task"], part["problems"]) for part in found] == [(own, 4), (other, 100)]
    assert main(["eval", "--model", str(run), "--output", str(output)]) == 0
    (alone,) = json.loads(output.read_text())["evaluations"]
    asked = [{record["prompt"] for record in part["completions"]} for part in (found[0], alone)]
    assert asked[0] == asked[1]


def test_its_own_task_keeps_its_parameters(run: Path, tmp_path: Path) -> None:
    problems = []
    for words in ([], ["--task", str(SETTINGS["task"])]):
        output = tmp_path / "out.json"
        assert main(["eval", "--model", str(run), "--output", str(output), *words]) == 0
        (found,) = json.loads(output.read_text())["evaluations"]
        problems.append([c["prompt"] for c in found["completions"]])
    assert problems[0] == problems[1]


def test_a_bare_model_is_said_to_have_no_settings(
    model_folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", "--model", model_folder, "--prompt", "1+1", "--greedy"]) == 0
    assert "No settings are saved with" in said(capsys)


def test_generation_has_the_system_prompt_of_training(
    run: Path, sampled: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["generate", "--model", str(run), "--prompt", "1 + 1"]
    others = [
        ["--system_prompt", "null"],
        ["--system_prompt", "Hi."],
        ["--task", "gsm8k"],
        ["--prompt_format", "text", "--system_prompt", "null"],
        ["--task", "gsm8k", "--task_params", '{"instruction": "Be brief.", "system_prompt": ""}'],
    ]
    for more in ([], *others):
        assert main([*words, *more]) == 0
    asked = [prompt_of(call) for call in sampled]
    assert asked[0] == f"<|system|>{SYSTEM}<|user|>1 + 1<|assistant|>"
    assert asked[1] == "<|user|>1 + 1<|assistant|>"
    assert asked[2] == "<|system|>Hi.<|user|>1 + 1<|assistant|>"
    assert asked[3].startswith("<|system|>Please reason step by step")
    assert asked[4] == "1 + 1"
    assert asked[5] == "<|user|>1 + 1\nBe brief.<|assistant|>"
    assert f"system_prompt='{SYSTEM}'" in said(capsys)


def test_generation_writes_bare_text_where_training_did(
    python_run: Path, sampled: list[dict[str, Any]]
) -> None:
    assert main(["generate", "--model", str(python_run), "--prompt", "1+1="]) == 0
    assert (
        main(
            ["generate", "--model", str(python_run), "--prompt", "1+1=", "--prompt_format", "chat"]
        )
        == 0
    )
    assert [prompt_of(call) for call in sampled] == ["1+1=", "<|user|>1+1=<|assistant|>"]


def test_an_unknown_prompt_format_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "--prompt", "x", "--prompt_format", "html"]) == 2
    assert "prompt_format: expected chat or text, got 'html'" in capsys.readouterr().err


def test_settings_of_a_model_on_the_hub(
    run: Path, monkeypatch: pytest.MonkeyPatch, sampled: list[dict[str, Any]]
) -> None:
    monkeypatch.setattr("lepo_kernels.tasks.hub.why_unreachable", lambda: None)
    monkeypatch.setattr("huggingface_hub.HfApi.file_exists", lambda self, name, file: True)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda name, file: str(run / file))
    for kind in ("AutoModelForCausalLM", "AutoTokenizer"):
        load = getattr(transformers, kind).from_pretrained
        monkeypatch.setattr(
            getattr(transformers, kind), "from_pretrained", lambda *_, f=load, **k: f(run, **k)
        )
    assert main(["eval", "--model", "someone/model"]) == 0
    assert sampled[0]["config"].latent_length == 2


# What a folder is not trusted with


@pytest.fixture
def foreign(tmp_path: Path, model_folder: str) -> Path:
    """A model's folder from elsewhere, as it is before anyone adds settings to it."""
    folder = tmp_path / "foreign"
    folder.mkdir()
    for file in Path(model_folder).iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


SAMPLING = {key: SETTINGS[key] for key in ("latent_length", "max_completion_length", "top_k")}
TASK = {key: SETTINGS[key] for key in ("task", "task_params", "eval_size")}


@pytest.mark.parametrize("kind", ["config.yaml", FILE])
def test_a_folder_decides_no_output_and_no_code(
    foreign: Path,
    tmp_path: Path,
    kind: str,
    sampled: list[dict[str, Any]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    victim = tmp_path / "precious.txt"
    victim.write_text("precious")
    evil = {
        "output": str(victim),
        "attn_implementation": "org/kernel",
        "dtype": "float16",
        "use_cpu": False,
        "report_to": "all",
        "push_to_hub": True,
        "hub_model_id": "evil/model",
        "model_init_kwargs": {"trust_remote_code": True},
        "model": "evil/model",
        "output_dir": str(tmp_path),
    }
    if kind == FILE:
        sections: dict[str, Any] = {"task": {**TASK, **evil}, "sampling": {**SAMPLING, **evil}}
        text = json.dumps({"schema_version": 1, **sections, "training": evil})
    else:
        text = yaml.safe_dump({**TASK, **SAMPLING, **evil})
    (foreign / kind).write_text(text)
    assert main(["eval", "--model", str(foreign), "--eval_num_samples", "0"]) == 0
    assert victim.read_text() == "precious"
    assert sampled[0]["config"].latent_length == 2
    shown = said(capsys)
    (refused,) = [text for text in shown.split("; ") if text.startswith("not taken: ")]
    for name in ("output", "attn_implementation", "dtype", "use_cpu"):
        assert name in refused
    assert "latent_length=2" in shown


def test_a_checkpoint_of_an_older_release_finds_its_runs_settings(
    foreign: Path, tmp_path: Path, sampled: list[dict[str, Any]]
) -> None:
    run = tmp_path / "old"
    run.mkdir()
    (run / "config.yaml").write_text(yaml.safe_dump({**TASK, **SAMPLING}))
    foreign.rename(run / "checkpoint-7")
    assert main(["eval", "--model", str(run / "checkpoint-7"), "--eval_num_samples", "0"]) == 0
    assert main(["generate", "--model", str(run / "checkpoint-7"), "--prompt", "1"]) == 0
    assert [call["config"].latent_length for call in sampled] == [2, 2]
    assert prompt_of(sampled[1]).startswith(f"<|system|>{SYSTEM}")


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        (FILE, "{", "can't be read"),
        (FILE, '{"schema_version": 99}', "reads up to 1"),
        (FILE, '{"schema_version": 1, "sampling": {"tau": "x"}}', "--tau: invalid float value"),
        (FILE, '{"schema_version": 1, "sampling": {"tau": null}}', "tau: can't be null"),
        (FILE, '{"schema_version": 1, "sampling": {"tau": -1}}', "tau"),
        ("config.yaml", "- a", "expected lines of 'key: value'"),
        ("config.yaml", "{a", "can't be read"),
    ],
)
def test_a_file_that_cannot_be_followed_is_named(
    foreign: Path, file: str, text: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (foreign / file).write_text(text)
    words = ["--task", str(TASK["task"]), "--eval_size", "1"]
    assert main(["eval", "--model", str(foreign), *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    if "-1" not in text:
        assert file in error


def test_what_a_folder_says_cannot_move_the_cursor(
    foreign: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sections = {"sampling": {**SAMPLING, "latent_suffix": "\x9b31m"}, "task": {"ev\x9bil": "x"}}
    (foreign / FILE).write_text(json.dumps({"schema_version": 1, **sections}))
    main(["generate", "--model", str(foreign), "--prompt", "1", "--max_completion_length", "9"])
    assert "\x9b" not in capsys.readouterr().out


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
@pytest.mark.parametrize("command", ["eval", "train"])
def test_a_models_own_configuration_fetches_no_kernel(
    foreign: Path, tmp_path: Path, key: str, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = json.loads((foreign / "config.json").read_text())
    (foreign / "config.json").write_text(json.dumps({**config, "sub": {key: "org/kernel"}}))
    words = ["--task", str(TASK["task"]), "--output_dir", str(tmp_path / "run")]
    words = words if command == "train" else words[:2]
    assert main([command, "--model", str(foreign), *words]) == 2
    assert "attention kernel 'org/kernel' of the hub" in capsys.readouterr().err


def test_completions_are_printed_without_escapes(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        "lepo_kernels.cli.generate.answer_texts", lambda *_: ["\x1b]0;owned\x07\u202e"]
    )
    assert main(["generate", "--model", str(run), "--prompt", "1"]) == 0
    shown = capsys.readouterr().out
    assert "\\x1b]0;owned\\x07\\u202e" in shown
    assert "\x1b]0" not in shown


def test_errors_are_printed_without_escapes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "--model", "./no\x1b[31mwhere", "--task", str(TASK["task"])]) == 2
    error = capsys.readouterr().err
    assert "\x1b" not in error
    assert "\\x1b[31m" in error


def test_a_secret_is_not_written_down(config: Path, tmp_path: Path) -> None:
    words = ["--hub_token", "secret-word", "--report_to", "none"]
    assert main(["train", str(config), *words]) == 0
    for file in (tmp_path / "run").glob("*.*"):
        assert b"secret-word" not in file.read_bytes() or file.suffix == ".bin"
    assert read_settings(tmp_path / "run" / FILE)["task"]["task"] == SETTINGS["task"]


# Methods


def test_a_method_brings_its_settings_along(
    config: Path, tmp_path: Path, sampled: list[dict[str, Any]]
) -> None:
    assert main(["train", str(config), "--method", "soft_grpo"]) == 0
    trained = sampled[0]["config"]
    # The file says which top_k; nothing says which tau.
    assert (trained.tau, trained.noise_clamp, trained.top_k) == (0.1, (-1.5, 3.0), 8)
    assert trained.record_scores == "kept"
    settings = read_settings(tmp_path / "run" / FILE)
    assert settings["sampling"]["method"] == "soft_grpo"
    sampled.clear()
    words = ["--model", str(tmp_path / "run"), "--eval_num_samples", "0"]
    assert main(["eval", *words]) == 0
    assert sampled[0]["config"].tau == 0.1
    sampled.clear()
    # Of another method, what either of them publishes is not taken from the run.
    assert main(["eval", *words, "--method", "soft_thinking"]) == 0
    other = sampled[0]["config"]
    assert (other.noise, other.mixture_top_k, other.temperature) == ("none", 10, 0.6)
    assert other.latent_length == 2


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("soft_grop", "method: there is no 'soft_grop'; did you mean 'soft_grpo'"),
        ("soft_thinking", "method: 'soft_thinking' samples and does not train"),
    ],
)
def test_a_wrong_method_is_refused(
    config: Path, name: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(config), "--method", name]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
