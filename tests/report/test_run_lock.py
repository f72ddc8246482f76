"""One folder, one run: who holds it, and what gives it back."""

import errno
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from lepo_kernels.report import run_lock
from lepo_kernels.report.run_folder import RunFolder
from lepo_kernels.report.run_lock import LOCK, FolderInUseError, RunLock

ROOT = Path(__file__).parents[2]
# Loads the file alone: importing the package would cost seconds per process.
HOLD = f"""
    import importlib.util, sys, time
    spec = importlib.util.spec_from_file_location("run_lock", {run_lock.__file__!r})
    run_lock = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(run_lock)
    lock = run_lock.RunLock(sys.argv[1])
    lock.acquire()
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock on ``tmp_path / "run"``."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(HOLD), str(tmp_path / "run")],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_second_run_is_refused_by_name(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    with pytest.raises(FolderInUseError, match=rf"in use .*\(process {holder.pid} on .* since 20"):
        RunLock(tmp_path / "run").acquire()
    with pytest.raises(FolderInUseError):  # by another name
        RunLock(tmp_path / "run" / ".." / "run").acquire()


def test_a_running_runs_files_are_not_removed(
    holder: subprocess.Popen[str], tmp_path: Path
) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.append_metrics({"step": 1})
    with pytest.raises(FolderInUseError):
        folder.clear()
    assert folder.metrics() == [{"step": 1}]


def test_a_crash_gives_it_back(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (tmp_path / "run" / LOCK).exists()
    with RunLock(tmp_path / "run"):
        pass


def test_the_holder_may_take_it_again(tmp_path: Path) -> None:
    outer, inner = RunLock(tmp_path / "run"), RunLock(tmp_path / "run")
    with outer:
        with inner:
            assert str(os.getpid()) in (tmp_path / "run" / LOCK).read_text()
        assert (tmp_path / "run" / LOCK).exists()
    outer.release()  # once more does nothing


def test_it_leaves_nothing_behind(tmp_path: Path) -> None:
    with RunLock(tmp_path / "run"):
        pass
    assert not (tmp_path / "run").exists()
    (tmp_path / "mine").mkdir()
    with RunLock(tmp_path / "mine"):
        pass
    assert list((tmp_path / "mine").iterdir()) == []
    with RunLock(tmp_path / "run"):
        (tmp_path / "run" / "file").touch()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["file"]


def test_a_forked_child_does_not_keep_it(tmp_path: Path) -> None:
    lock = RunLock(tmp_path / "run")
    lock.acquire()
    read, write = os.pipe()
    started, starts = os.pipe()
    child = os.fork()
    if child == 0:  # a data loader's worker that outlives its parent
        os.write(starts, b".")
        os.close(write)
        os.read(read, 1)
        os._exit(0)
    try:
        os.read(started, 1)  # it lets go of the lock before it runs anything
        descriptor, _ = run_lock._held.pop(str((tmp_path / "run").resolve()))
        os.close(descriptor)  # as the parent's death does
        with RunLock(tmp_path / "run"):
            pass
    finally:
        os.close(write)
        os.waitpid(child, 0)
        for end in (read, started, starts):
            os.close(end)


def test_a_file_system_without_locks_is_said_to_be_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(run_lock.fcntl, "flock", fail)
    with RunLock(tmp_path / "run"):
        assert "knows no locks (No locks available)" in caplog.text
