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


def test_a_picture_that_fails_ends_no_run(
    args: TrainingArguments,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("no font")

    monkeypatch.setattr(callbacks, "plot_curves", fail)
    monkeypatch.setattr(callbacks, "_MIN_SECONDS_BETWEEN_PICTURES", 0.0)
    drive(RunFolderCallback(), args, 0, 4)
    assert steps_logged(tmp_path) == [0, 1, 2, 3, 4]
    # Once, not at every log.
    assert caplog.text.count("could not be drawn, the run continues: no font") == 1


def test_progress_within_a_step(args: TrainingArguments, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(callbacks.time, "monotonic", lambda: now[0])
    console = Console(file=io.StringIO(), width=120, force_terminal=True)
    callback = ProgressCallback(console)
    callback.on_train_begin(args, state_at(0), TrainerControl())
    assert callback._bar is not None
    (task,) = callback._bar.tasks
    shown = []
    for step in range(1, 101):
        now[0] += 0.01
        callback.activity("rollout", step, 2048)
        shown.append(task.description)
    # At most ten times a second, however short the steps are.
    assert 8 <= len(set(shown)) <= 11
    assert shown[-1].startswith("rollout ")
    assert shown[-1].endswith("/2048")
    for what in ("rewards", "log-probs", "training"):
        callback.activity(what, 0, 0)
        assert task.description == what
    callback.evaluation(4, 16)
    now[0] += 1.0
    callback.activity("evaluation", 5, 64)
    assert task.description == "evaluating 4/16, step 5/64"
    callback.evaluation(16, 16)
    assert task.description == "training"
    # The clock moves at every refresh, not at every step of training.
    now[0] = 65.0
    assert "elapsed 1:05" in callback.values_now()
    callback.close()


# Where no cursor can move: a file, and a terminal that says so.
@pytest.mark.parametrize("settings", [{}, {"force_terminal": True, "_environ": {"TERM": "dumb"}}])
def test_a_long_rollout_says_a_line_a_minute(
    args: TrainingArguments, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    now = [0.0]
    monkeypatch.setattr(callbacks.time, "monotonic", lambda: now[0])
    console = Console(file=io.StringIO(), width=120, **settings)
    callback = ProgressCallback(console)
    callback.on_train_begin(args, state_at(1), TrainerControl())
    for step in range(1, 151):
        now[0] = float(step)
        callback.activity("rollout", step, 2048)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert [line.rstrip() for line in lines] == [
        "step 1/4  rollout 60/2048  elapsed 1:00  left ?",
        "step 1/4  rollout 120/2048  elapsed 2:00  left ?",
    ]


def test_other_processes_show_nothing(args: TrainingArguments) -> None:
    console = Console(file=io.StringIO(), width=100, force_terminal=True)
    callback = ProgressCallback(console)
    state = TrainerState(global_step=1, max_steps=4, is_world_process_zero=False)
    callback.on_train_begin(args, state, TrainerControl())
    callback.activity("rollout", 1, 8)
    callback.on_log(args, state, TrainerControl(), logs={"reward": 1.0})
    callback.on_train_end(args, state, TrainerControl())
    assert console.file.getvalue() == ""  # type: ignore[attr-defined]


# One column, less than the bar takes, and more than all takes.
@pytest.mark.parametrize("width", [1, 20, 200])
def test_a_terminal_of_any_width(args: TrainingArguments, width: int) -> None:
    for settings in ({"force_terminal": True}, {}):
        console = Console(file=io.StringIO(), width=width, **settings)
        drive(ProgressCallback(console), args, 0, 4)
