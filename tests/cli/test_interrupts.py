"""Ctrl-C once, twice, and a second run in the folder of a running one."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lepo_kernels.cli.main import main
from lepo_kernels.report.run_lock import RunLock

ROOT = Path(__file__).parents[2]

# Stands for a command: the first Ctrl-C sets off work that the second one falls into.
COMMAND = """
import os, signal, sys, threading, time, types
import lepo_kernels.cli.errors, lepo_kernels.tasks
from lepo_kernels.cli.main import main
def press(signum=signal.SIGINT):
    os.kill(os.getpid(), signum)
    time.sleep(10)
def run(words):
    try:
        press()
    finally:
        if words == ["twice"]:
            press()
sys.modules["lepo_kernels.cli.info"] = types.SimpleNamespace(run=run)
status = main(["info", *sys.argv[1:]])
if sys.argv[1:] == ["late"]:
    press()
sys.exit(status)
"""


@pytest.mark.parametrize("when", ["once", "twice", "late"])
def test_ctrl_c_leaves_no_traceback(when: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", COMMAND, when],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 130
    assert "Traceback" not in ended.stderr
    if when != "twice":
        assert "lepo info: interrupted" in ended.stderr


def test_training_ended_by_a_terminal_that_closes(config: Path, tmp_path: Path) -> None:
    """The terminal goes, and writing to it fails: there is a checkpoint nevertheless."""
    controller, terminal = os.openpty()
    words = ["train", str(config), "--max_steps", "100000", "--logging_steps", "1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "lepo_kernels.cli.main", *words],
        cwd=ROOT,
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
        preexec_fn=_take_terminal,
        env={**os.environ, "TERM": "xterm"},
    )
    os.close(terminal)
    os.set_blocking(controller, False)
    deadline = time.monotonic() + 120
    run = tmp_path / "run"
    while not (run / "completions.jsonl").exists() and time.monotonic() < deadline:
        _drain(controller)
        time.sleep(0.01)
    time.sleep(0.5)  # some updates
    _drain(controller)
    os.close(controller)
    assert process.wait(timeout=120) == 128 + signal.SIGHUP
    (checkpoint,) = run.glob("checkpoint-*")
    assert (checkpoint / "checkpoint_manifest.json").exists()


def _take_terminal() -> None:
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def _drain(descriptor: int) -> None:
    try:
        while os.read(descriptor, 1 << 16):
            pass
    except BlockingIOError:
        pass


def test_a_running_runs_folder_is_refused(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = (
        "import os, sys, time\n"
        "from lepo_kernels.report.run_lock import RunLock\n"
        "RunLock(sys.argv[1]).acquire()\n"
        "print(os.getpid(), flush=True)\n"
        "time.sleep(60)\n"
    )
    run = tmp_path / "run"
    run.mkdir()
    (run / "metrics.jsonl").write_text('{"step": 1}\n')
    with subprocess.Popen(
        [sys.executable, "-c", code, str(run)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        pid = int(holder.stdout.readline())
        for words in ([], ["--overwrite_output_dir"], ["--resume_from_checkpoint", "latest"]):
            assert main(["train", str(config), *words]) == 2
            error = capsys.readouterr().err
            assert f"{run} is in use by another run (process {pid} on " in error
            assert error.count("\n") == 1
        holder.kill()
    assert (run / "metrics.jsonl").read_text() == '{"step": 1}\n'


def test_the_folder_is_given_back(config: Path, tmp_path: Path) -> None:
    assert main(["train", str(config), "--model", "./nowhere"]) == 2
    assert not (tmp_path / "run").exists()
    with RunLock(tmp_path / "run"):
        pass
