import json
import math
from pathlib import Path

import pytest
import yaml

from lepo_kernels.report.run_folder import RunFolder, read_metrics


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run")


def test_metrics_come_back(run: RunFolder) -> None:
    assert run.metrics() == []
    run.append_metrics({"step": 1, "reward": 0.5})
    run.append_metrics({"step": 2, "reward": math.nan, "kl": math.inf})
    assert run.metrics() == [
        {"step": 1, "reward": 0.5},
        {"step": 2, "reward": None, "kl": None},
    ]


def test_resumed_run_forgets_what_came_after_and_half_lines(run: RunFolder) -> None:
    for step in (1, 2, 3):
        run.append_metrics({"step": step})
    # Completions of step 2 train the update that ends at step 3.
    (run.folder / "completions.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"step": 2, "pro')
    run.forget_after(2)
    assert [row["step"] for row in run.metrics()] == [1, 2]
    assert (run.folder / "completions.jsonl").read_text() == '{"step": 1}\n'


def test_a_broken_line_in_the_middle_is_not_passed_over(run: RunFolder) -> None:
    run.append_metrics({"step": 1})
    with run.metrics_file.open("a") as file:
        file.write("{broken\n" + json.dumps({"step": 2}) + "\n")
    with pytest.raises(json.JSONDecodeError):
        read_metrics(run.metrics_file)


def test_config_is_plain_yaml(run: RunFolder) -> None:
    run.write_config({"path": Path("x"), "list": (1, 2), "none": None, "task_params": {"a": 1}})
    assert yaml.safe_load((run.folder / "config.yaml").read_text()) == {
        "path": "x",
        "list": [1, 2],
        "none": None,
        "task_params": {"a": 1},
    }


def test_clear_removes_the_run_and_nothing_else(run: RunFolder) -> None:
    assert not run.holds_a_run()
    run.append_metrics({"step": 1})
    for name in ("checkpoint-10", "checkpoint-9", "checkpoint-best"):
        (run.folder / name).mkdir()
    (run.folder / "mine.txt").touch()
    assert [path.name for path in run.checkpoints()] == ["checkpoint-9", "checkpoint-10"]
    assert run.holds_a_run()
    run.clear()
    assert not run.holds_a_run()
    assert sorted(path.name for path in run.folder.iterdir()) == ["checkpoint-best", "mine.txt"]
