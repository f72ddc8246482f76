"""What is wrong is said in one line, with exit status 2, before any model is loaded."""

import dataclasses
from pathlib import Path

import pytest
import transformers

import lepo_kernels
from lepo_kernels.cli import aliases, parsing
from lepo_kernels.cli.main import main
from lepo_kernels.cli.options import ALL
from lepo_kernels.trainer.config import LEPOConfig


@pytest.fixture(autouse=True)
def no_model_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", fail)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], "there is no command 'trian'; did you mean 'train'?"),
        (["train", "{config}", "--tua", "1"], "unknown option --tua; did you mean 'tau'"),
        (["train", "{config}", "--tau", "-1"], "tau: expected a number in [0, inf), got -1.0"),
        (["train", "{config}", "--task", "gsm"], "there is no task 'gsm'; did you mean 'gsm8k'?"),
        (["train", "{config}", "--task_params", '{"min_digit": 1}'], "did you mean 'min_digits'"),
        (["train", "{config}", "--train_size", "0"], "has no problems to train on"),
        (["train", "{config}", "--model", "./nowhere"], "model: there is no folder ./nowhere"),
        (["train", "{config}", "--dtype", "int8"], "dtype: expected one of auto, float32"),
        (["train", "{config}", "--resume_from_checkpoint", "latest"], "no complete checkpoint in"),
        (["train", "{config}", "--resume_from_checkpoint", "x"], "x is no complete checkpoint"),
        (["train", "--model", "m"], "task: missing"),
        (["train", "--task", "reasoning_gym:chain_sum"], "model: missing"),
        (["eval", "{config}", "--eval_num_samples", "0", "--eval_greedy", "false"], "eval_greedy"),
        (["eval", "{config}", "--per_device_eval_batch_size", "0"], "per_device_eval_batch_size: "),
        (["eval", "{config}", "--eval_num_samples", "-1"], "eval_num_samples: expected"),
        (["eval", "{config}", "--success_threshold", "nan"], "success_threshold: expected"),
        (["train", "{config}", "--lr", "1"], "--lr; it is called 'learning_rate' here"),
        (["train", "{config}", "--use-vllm", "true"], "--use-vllm; rollouts run on the policy"),
        (["train", "{config}", "--qwertz", "1"], "--qwertz; lepo train --help lists them"),
        (["train", "{config}", "--max_steps", "0"], "max_steps: expected at least 1, or -1"),
        (["eval", "--model", "m"], "task: missing"),
        (["generate", "--model", "m"], "prompt: missing"),
        (["generate", "--prompt", "x", "--num_samples", "0"], "num_samples: expected at least 1"),
        (["generate", "--prompt", "x"], "model: missing"),
    ],
)
def test_usage_errors(
    words: list[str], message: str, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([word.format(config=config) if "{config}" in word else word for word in words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("lepo")
    assert error.count("\n") == 1


def test_an_earlier_run_is_not_overwritten(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text("")
    assert main(["train", str(config)]) == 2
    assert "holds an earlier run" in capsys.readouterr().err
    assert (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.parametrize(("words", "status"), [([], 2), (["--help"], 0)])
def test_help_names_the_commands(
    words: list[str], status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == status
    text = capsys.readouterr().out
    for command in ("train", "eval", "generate", "info"):
        assert f"  {command}" in text


# The same hints for a file's keys: what it is called here, what there is not, and no long list.
@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("lr", "unknown key 'lr'; it is called 'learning_rate' here"),
        ("batch_size", "it is called 'per_device_train_batch_size' here"),
        ("use_vllm", "there is no vLLM engine"),
        ("qwertz", "lepo train --help lists them"),
    ],
)
def test_unknown_keys(
    key: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(f"{key}: 1\n")
    assert main(["train", str(file)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error) < 200 + len(str(file))


def test_aliases_name_settings_that_there_are() -> None:
    known = {field.name for kind in ALL for field in dataclasses.fields(kind)}
    assert set(aliases.ALIASES.values()) <= known
    assert not aliases.UNSUPPORTED.keys() & known
    # A name of ours for all commands needs no other.
    assert not aliases.ALIASES.keys() & {field.name for field in dataclasses.fields(LEPOConfig)}


def test_true_and_false_switch_a_setting_that_is_also_a_text() -> None:
    parser = parsing._make_parser("train", (LEPOConfig,), ())
    for said, read in (("true", True), ("False", None), ("full_shard", "full_shard")):
        values, _ = parser.parse_known_args(["--fsdp", said, "--output_dir", "true"])
        assert (values.fsdp, values.output_dir) == (read, "true")
        parser.set_yaml_defaults({"fsdp": said, "output_dir": "true"})
        values, _ = parser.parse_known_args([])
        assert (values.fsdp, values.output_dir) == (read, "true")


def test_packages_of_settings_are_looked_for_first(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    absent = ("wandb", "tensorboard", "tensorboardX")
    monkeypatch.setattr("lepo_kernels.extras.is_here", lambda module: module not in absent)
    for name in ("wandb", "tensorboard"):
        assert main(["train", str(config), "--report_to", name]) == 2
        assert f"report_to: {name} needs the package {name}" in capsys.readouterr().err

    def fail(*_: object) -> None:
        raise ImportError("You need to install `bitsandbytes`")

    monkeypatch.setattr(transformers.Trainer, "get_optimizer_cls_and_kwargs", fail)
    assert main(["train", str(config)]) == 2
    assert "optim: You need to install `bitsandbytes`" in capsys.readouterr().err


def test_the_version_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"lepo_kernels {lepo_kernels.__version__}\n"


@pytest.mark.parametrize("command", ["train", "eval", "generate", "info"])
def test_each_command_has_its_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert f"lepo {command}" in text
    assert ("--latent_length" in text) == (command != "info")
    assert "--adafactor" not in text
