import math
from pathlib import Path

import pytest
import yaml

from lepo_kernels.report.run_folder import RunFolder


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


# Not JSON, JSON without a step, no object, a step that is none, bytes that are no UTF-8, too deep.
BAD = [b"{broken", b'{"reward": 1}', b"[1, 2]", b"null", b'{"step": "1"}', b"\xff\xfe", b"[" * 9999]


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad[:10].decode("latin-1"))
def test_a_bad_line_is_skipped_and_named(
    run: RunFolder, bad: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    run.append_metrics({"step": 1})
    with run.metrics_file.open("ab") as file:
        file.write(bad + b"\n")
    run.append_metrics({"step": 2})
    assert [row["step"] for row in run.metrics()] == [1, 2]
    assert f"{run.metrics_file}: no JSON object with a step on line 2" in caplog.text
    run.forget_after(1)
    assert run.metrics_file.read_text() == '{"step": 1}\n'


def test_a_lone_surrogate_is_written_as_json_writes_it(run: RunFolder) -> None:
    run.append_metrics({"step": 1, "text": "a\ud800b"})
    assert run.metrics() == [{"step": 1, "text": "a\ud800b"}]
    run.write_config({"text": "\ud800"})


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


def test_checkpoints_are_numbered_folders_and_nothing_else(tmp_path):
    for name in ("checkpoint-10", "checkpoint-9", "checkpoint-mine-3", "checkpoint-"):
        (tmp_path / name).mkdir()
    (tmp_path / "checkpoint-11").write_text("a file")
    folder = RunFolder(tmp_path)
    assert [path.name for path in folder.checkpoints()] == ["checkpoint-9", "checkpoint-10"]
    folder.clear()
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"checkpoint-mine-3", "checkpoint-", "checkpoint-11"}
