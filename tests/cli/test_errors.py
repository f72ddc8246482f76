"""What is wrong is said in one line, with exit status 2, before any model is loaded."""

from pathlib import Path

import pytest
import transformers

from lepo_kernels.cli.main import main


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
        (["train", "{config}", "--tau", "-1"], "tau: expected a number in (0, inf), got -1.0"),
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


@pytest.mark.parametrize("command", ["train", "eval", "generate", "info"])
def test_each_command_has_its_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert f"lepo {command}" in text
    assert ("--latent_length" in text) == (command != "info")
    assert "--adafactor" not in text
