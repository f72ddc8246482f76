"""The callbacks, driven by hand in the order in which a Trainer calls them."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console
from transformers import TrainerControl, TrainerState, TrainingArguments

from lepo_kernels.report import callbacks
from lepo_kernels.report.callbacks import ProgressCallback, RunFolderCallback, clock


@pytest.fixture
def args(tmp_path: Path) -> TrainingArguments:
    return TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to=[])


def state_at(step: int) -> TrainerState:
    return TrainerState(global_step=step, max_steps=4, is_world_process_zero=True)


def drive(callback: Any, args: TrainingArguments, first: int, last: int) -> None:
    control = TrainerControl()
    callback.on_train_begin(args, state_at(first), control)
    if first == 0:
        callback.on_log(args, state_at(0), control, logs={"eval_greedy_accuracy": 0.25})
    for step in range(first + 1, last + 1):
        callback.on_step_end(args, state_at(step), control)
        callback.on_log(args, state_at(step), control, logs={"loss": 1.0, "reward": step / 10})
    callback.on_train_end(args, state_at(last), control)


def steps_logged(folder: Path) -> list[int]:
    return [
        json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()
    ]


def test_run_folder_is_filled(args: TrainingArguments, tmp_path: Path) -> None:
    drive(RunFolderCallback({"latent_length": 2}, "title"), args, 0, 4)
    assert steps_logged(tmp_path) == [0, 1, 2, 3, 4]
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == {"latent_length": 2}
    assert (tmp_path / "curves.png").stat().st_size > 1000


def test_resumed_run_goes_on_and_a_new_run_starts_anew(
    args: TrainingArguments, tmp_path: Path
) -> None:
    drive(RunFolderCallback(), args, 0, 4)
    drive(RunFolderCallback(), args, 2, 4)
    assert steps_logged(tmp_path) == [0, 1, 2, 3, 4]
    drive(RunFolderCallback(), args, 0, 1)
    assert steps_logged(tmp_path) == [0, 1]
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["output_dir"] == str(tmp_path)


def test_other_processes_write_nothing(args: TrainingArguments, tmp_path: Path) -> None:
    state = TrainerState(global_step=1, is_world_process_zero=False)
    callback = RunFolderCallback()
    callback.on_train_begin(args, state, TrainerControl())
    callback.on_log(args, state, TrainerControl(), logs={"reward": 1.0})
    callback.on_train_end(args, state, TrainerControl())
    assert list(tmp_path.iterdir()) == []


def test_progress_in_plain_lines(args: TrainingArguments, monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(0, 1000, 10))
    monkeypatch.setattr(callbacks.time, "monotonic", lambda: float(next(now)))
    console = Console(file=io.StringIO(), width=100)
    drive(ProgressCallback(console), args, 0, 2)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert lines[0] == "step 0/4  accuracy 0.250  elapsed 0:10  left ?"
    assert lines[1].startswith("step 1/4  reward 0.100  accuracy 0.250  elapsed 0:20  left 1:00")
    assert len(lines) == 3


def test_progress_bar_on_a_terminal(args: TrainingArguments) -> None:
    console = Console(file=io.StringIO(), width=120, force_terminal=True)
    callback = ProgressCallback(console)
    drive(callback, args, 0, 4)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "4/4" in text
    assert "reward 0.400  accuracy 0.250" in text
    assert callback._bar is None


def test_evaluation_time_is_not_training_time(
    args: TrainingArguments, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(callbacks.time, "monotonic", lambda: now[0])
    console = Console(file=io.StringIO(), width=100)
    callback = ProgressCallback(console)
    callback.on_train_begin(args, state_at(0), TrainerControl())
    callback.evaluation(1, 2)
    now[0] = 100.0
    callback.evaluation(2, 2)
    now[0] = 101.0
    callback.on_log(args, state_at(1), TrainerControl(), logs={"reward": 0.5})
    assert "elapsed 1:41  left 0:03" in console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (3725, "1:02:05")])
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text
