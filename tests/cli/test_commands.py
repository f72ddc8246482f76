"""The commands end to end on a tiny model."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

import lepo_kernels
from lepo_kernels.cli.main import main


def letters(completions: list[Any], **_: Any) -> list[float]:
    """The share of letters: a reward that random weights meet in part."""
    texts = [completion[0]["content"] for completion in completions]
    return [sum(map(str.isalpha, text)) / 3 for text in texts]


@pytest.fixture(autouse=True)
def reward_within_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lepo_kernels.tasks.generated.exact_answer", letters)


def train(config: Path, *words: str) -> None:
    assert main(["train", str(config), *words]) == 0


def read_lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_train_leaves_a_whole_run(
    config: Path, tmp_path: Path, model_folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    train(config)
    run = tmp_path / "run"
    metrics = read_lines(run / "metrics.jsonl")
    evaluated = [row["step"] for row in metrics if "eval_greedy_accuracy" in row]
    assert evaluated == [0, 2]
    assert [row["step"] for row in metrics if "reward" in row] == [1, 2]
    assert len(read_lines(run / "completions.jsonl")) == 2 * 8
    assert len(read_lines(run / "evaluations.jsonl")) == 2 * 4 * (1 + 2)
    assert (run / "curves.png").stat().st_size > 1000
    settings = yaml.safe_load((run / "config.yaml").read_text())
    assert settings["model"] == model_folder
    assert settings["task_params"]["max_digits"] == 1
    before = load_file(Path(model_folder) / "model.safetensors")
    after = load_file(run / "model.safetensors")
    assert any(not torch.equal(before[name], after[name]) for name in before)

    shown = capsys.readouterr().out
    for text in ("greedy_accuracy", "mean@2", "step 0", "change", "State the final answer"):
        assert text in shown


def test_run_folder_is_enough_to_evaluate_and_generate(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(config)
    run = tmp_path / "run"
    last = read_lines(run / "metrics.jsonl")[-1]
    evaluated = [row for row in read_lines(run / "evaluations.jsonl") if row["step"] == 2]
    output = tmp_path / "out" / "eval.json"
    assert main(["eval", "--model", str(run), "--output", str(output)]) == 0
    (found,) = json.loads(output.read_text())["evaluations"]
    assert found["problems"] == 4
    for name, value in found["metrics"].items():
        assert value == pytest.approx(last.get(f"eval_{name}", value))
    assert [c["completion"] for c in found["completions"]] == [c["completion"] for c in evaluated]
    assert "greedy_accuracy" in capsys.readouterr().out
    # Another seed is other noise, not other problems: those might be ones it was trained on.
    assert main(["eval", "--model", str(run), "--seed", "7", "--output", str(output)]) == 0
    (other,) = json.loads(output.read_text())["evaluations"]
    assert [c["prompt"] for c in other["completions"]] == [c["prompt"] for c in evaluated]
    capsys.readouterr()

    words = ["--model", str(run), "--prompt", "1 + 2", "--num_samples", "2"]
    assert main(["generate", *words, "--show_tokens", "3"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("Soft steps") == 2
    assert "█" in shown
    assert "sample 2" in shown


@pytest.mark.slow
def test_resumed_run_ends_like_an_unbroken_one(config: Path, tmp_path: Path) -> None:
    saving = ["--save_strategy", "steps", "--save_steps", "1"]
    train(config, *saving)
    run = tmp_path / "run"
    whole = load_file(run / "model.safetensors")
    names = ("metrics.jsonl", "completions.jsonl", "evaluations.jsonl")
    rows = {name: len(read_lines(run / name)) for name in names}
    # As if it had been killed after the second step, before anything else was written.
    first = str(run / "checkpoint-1")
    train(config, *saving, "--resume_from_checkpoint", first)
    resumed = load_file(run / "model.safetensors")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert {name: len(read_lines(run / name)) for name in names} == rows
    train(config, *saving, "--max_steps", "3", "--resume_from_checkpoint", "latest")
    assert read_lines(run / "metrics.jsonl")[-1]["step"] == 3
    train(config, "--overwrite_output_dir")
    assert not list(run.glob("checkpoint-*"))
    assert {name: len(read_lines(run / name)) for name in names} == rows


def test_adapter_and_grpo(config: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    words = ["--lora_r", "2", "--latent_length", "0", "--eval_num_samples", "0"]
    train(config, *words, "--lora_target_modules", "q_proj", "v_proj")
    run = tmp_path / "run"
    assert json.loads((run / "adapter_config.json").read_text())["r"] == 2
    assert main(["eval", "--model", str(run)]) == 0


def test_another_task_than_the_files(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    problems = tmp_path / "problems.jsonl"
    problems.write_text('{"problem": "1 + 1?", "answer": "2"}\n' * 2)
    settings = yaml.safe_load(config.read_text())
    settings |= {"eval_task": "file", "eval_task_params": {"path": "/nowhere.jsonl"}}
    config.write_text(yaml.safe_dump(settings))
    params = json.dumps({"path": str(problems), "reward": "exact_answer"})
    words = ["--eval_size", "1", "--eval_num_samples", "0"]
    assert main(["eval", str(config), *words]) == 2
    assert "there is no file /nowhere.jsonl" in capsys.readouterr().err
    assert main(["eval", str(config), *words, "--task", "file", "--task_params", params]) == 0
    assert main(["eval", str(config), *words, "--task", "reasoning_gym:leg_counting"]) == 0
    assert "reasoning_gym:leg_counting" in capsys.readouterr().out


def test_info(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(lepo_kernels.info()))
    assert main(["info"]) == 0
    shown = capsys.readouterr().out
    assert "sample_latent" in shown
    assert torch.__version__ in shown


def test_info_needs_torch_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "rich.console", None)  # importing it now fails
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["info"]) == 0
    assert json.loads(capsys.readouterr().out)["backends"]["reference"] is None


def test_info_shows_the_native_libraries(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = {"torch": "2.11", "compiler": "GNU 12.2.0"}
    found = lepo_kernels.info() | {
        "libraries": {
            "_C_cpu.so": facts | {"instruction_set": "avx2", "best_instruction_set": "avx512"},
            "_C_cuda.so": facts | {"cuda": "13.0", "architectures": ["8.0", "12.0+PTX"]},
            "_C_other.so": None,
        }
    }
    monkeypatch.setattr("lepo_kernels.cli.info.info", lambda: found)
    assert main(["info"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert (
        "_C_cpu.so: for torch 2.11 and later; compiled by GNU 12.2.0; uses avx2 (this machine "
        "offers avx512)" in shown
    )
    assert "GNU 12.2.0; CUDA 13.0 for 8.0, 12.0+PTX" in shown
    assert "_C_other.so: not here" in shown


def test_info_says_why_a_backend_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(lepo_kernels.dispatch.MISSING, "triton", "no reason")
    found = lepo_kernels.info()
    assert found["backends"]["reference"] is None
    assert found["backends"]["triton"]["reason"] == "no reason"
    assert "triton" in found["backends"]["triton"]["remedy"]
    assert main(["info"]) == 0
    assert "pip install 'lepo_kernels[triton]'" in " ".join(capsys.readouterr().out.split())
    assert found["kernels"]["sample_latent"]["chosen"] in found["backends"]
    assert found["kernels"]["sample_latent"]["backends"]["reference"] is None


@pytest.mark.parametrize(
    "words",
    [
        ["--train_size", "1"],  # fewer prompts than a rollout takes
        ["--eval_greedy", "false", "--eval_num_samples", "0"],
        ["--epsilon", "1.5"],
        ["--per_device_train_batch_size", "0"],
        ["--latent_suffix", "far too long a suffix for it"],
    ],
    ids=lambda words: words[0],
)
def test_wrong_settings_do_not_cost_an_earlier_run(
    config: Path, tmp_path: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "metrics.jsonl").write_text('{"step": 1, "reward": 0.5}\n')
    assert main(["train", str(config), "--overwrite_output_dir", *words]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("lepo train: error: ")
    assert (run / "metrics.jsonl").exists()
