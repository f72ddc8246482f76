"""Nothing that is only shown may end or bend a run: paths, streams, interrupts, damaged logs."""

import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from lepo_kernels.cli.main import main
from lepo_kernels.cli.run_results import _sample_of_each_problem
from lepo_kernels.report.run_folder import RunFolder
from lepo_kernels.report.tables import completions_table
from lepo_kernels.trainer.trainer import LEPOTrainer

FILES = {"config.yaml", "metrics.jsonl", "curves.png", "completions.jsonl", "evaluations.jsonl"}


def run_in(config: Path, folder: Path, *words: str) -> None:
    assert main(["train", str(config), "--output_dir", str(folder), *words]) == 0
    assert {file.name for file in folder.iterdir()} >= FILES


def test_brackets_in_paths_are_no_markup(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # [/y] closes nothing, [red] would vanish, and a dollar sign would start a formula.
    folder = tmp_path / "a[red]b" / "x[" / "y] $\\frac$"
    run_in(config, folder, "--max_steps", "1")
    assert str(folder) in capsys.readouterr().out
    output = folder / "[bold]eval.json"
    assert main(["eval", "--model", str(folder), "--output", str(output)]) == 0
    assert str(output) in capsys.readouterr().out
    assert json.loads(output.read_text())["model"] == str(folder)


# A stand-in for each kind: not UTF-8, nobody reads, none at all.
@pytest.mark.parametrize("kind", ["ascii", "gone", "none"])
def test_any_output_stream_serves_a_run(
    kind: str, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as gone:
        ascii_only = io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True)
        streams = {"ascii": ascii_only, "gone": gone, "none": None}
        monkeypatch.setattr(sys, "stdout", streams[kind])
        run_in(config, tmp_path / "run", "--max_steps", "1", "--log_completions", "true")
        if kind == "ascii":
            assert b"Done in" in ascii_only.buffer.getvalue()  # type: ignore[attr-defined]
            words = ["--model", str(tmp_path / "run"), "--prompt", "1 + 2"]
            assert main(["generate", *words]) == 0
            assert b"#" in ascii_only.buffer.getvalue()  # type: ignore[attr-defined]


def test_a_long_evaluation_says_a_line_now_and_then(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("lepo_kernels.cli.eval.SECONDS_BETWEEN_LINES", 0.0)
    assert main(["eval", str(config)]) == 0
    # Four problems: one greedy batch, then one of two samples each.
    lines = [line for line in capsys.readouterr().out.splitlines() if "evaluated" in line]
    assert lines[0] == "evaluated 0/12, step 1/5"
    assert "evaluated 4/12, step 1/5" in lines


@pytest.mark.parametrize("saved", [False, True])
def test_an_interrupted_run_says_how_to_resume(
    saved: bool,
    config: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    train = LEPOTrainer.train

    def interrupted(self: LEPOTrainer, *args: Any, **kwargs: Any) -> None:
        if saved:
            train(self, *args, **kwargs)
        raise KeyboardInterrupt

    monkeypatch.setattr(LEPOTrainer, "train", interrupted)
    folder = tmp_path / "a run"
    words = ["--eval_strategy", "no", "--save_strategy", "steps", "--save_steps", "1"]
    words += ["--max_steps", "1", "--output_dir", str(folder)]
    assert main(["train", str(config), *words]) == 130
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("lepo train: interrupted; ")
    resume = f"resume with: lepo train --output_dir '{folder}' --resume_from_checkpoint latest"
    assert (resume in last) == saved
    assert ("there is no checkpoint yet" in last) == (not saved)


def test_damaged_evaluations_are_left_out(tmp_path: Path) -> None:
    whole = {"step": 2, "problem": 0, "completion": "x", "reward": 1.0}
    lines = [{"step": 2, "problem": 1}, {"problem": 2}, {**whole, "step": 1}]
    lines += [{**whole, "problem": []}, {**whole, "completion": 1}, {**whole, "reward": "x"}, whole]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "evaluations.jsonl").write_text("no json\n" + text)
    assert _sample_of_each_problem(RunFolder(tmp_path), 2) == {0: whole}
    completions_table(["x"], {"step 2": [{**whole, "reward": None}]})  # no function gave one
    assert _sample_of_each_problem(RunFolder(tmp_path / "nowhere"), 2) == {}


def test_a_home_folder_in_a_file_is_found(
    config: Path, model_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(Path(model_folder).parent))
    settings = yaml.safe_load(config.read_text())
    settings["model"] = f"~/{Path(model_folder).name}"
    config.write_text(yaml.safe_dump(settings))
    assert main(["eval", str(config)]) == 0
