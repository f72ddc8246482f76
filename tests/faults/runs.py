"""Starting runs, and comparing what they left."""

import json
import os
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from tests.faults.job import Fault, to_environment, train
from tests.torchrun import environment, torchrun

ROOT = Path(__file__).parents[2]
LATEST = ("--resume_from_checkpoint", "latest")


class FaultError(AssertionError):
    """What a run did is not what it must do."""


def demand(holds: bool, what: str, log: Path | None = None) -> None:
    """Raise `FaultError` with the end of a run's output unless it holds."""
    if not holds:
        said = "" if log is None else "\n" + log.read_text(errors="replace")[-3000:]
        raise FaultError(what + said)


class Run:
    """A ``lepo train`` in a process of its own.

    Processes are forked where one is enough: importing torch takes longer than the run does.
    """

    def __init__(self, config: Path, folder: Path, *words: str, fault: Fault | None = None):
        self.log = folder.with_name(folder.name + ".log")
        arguments = [str(config), "--output_dir", str(folder), *words]
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                output = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                os.dup2(output, 1)
                os.dup2(output, 2)
                status = train(arguments, fault)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)

    def wait(self) -> int:
        """The exit status; minus the signal's number if one ended it."""
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def running(self) -> bool:
        """Whether it has not ended yet; it must still be waited for."""
        flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
        return os.waitid(os.P_PID, self.pid, flags) is None


def two_processes(config: Path, folder: Path, *words: str, fault: Fault | None = None) -> int:
    """The same by torchrun, as a run of two processes; its exit status."""
    command = [*torchrun(2), "-m", "tests.faults.job"]
    with folder.with_name(folder.name + ".log").open("w") as log:
        return subprocess.run(
            [*command, str(config), "--output_dir", str(folder), *words],
            cwd=ROOT,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**environment(), **to_environment(fault)},
            timeout=300,
            check=False,
        ).returncode


def how_to_resume(folder: Path) -> tuple[str, ...]:
    """The words with which a person goes on after a fault."""
    if any(folder.glob("checkpoint-*/checkpoint_manifest.json")):
        return LATEST
    return ("--overwrite_output_dir",)


def same(folder: Path, whole: Path) -> None:
    """Demand that a run left what an unbroken one left: weights, evaluations and logged steps."""
    log = folder.with_name(folder.name + ".log")
    expected, got = (load_file(path / "model.safetensors") for path in (whole, folder))
    differing = [name for name in expected if not expected[name].equal(got[name])]
    demand(not differing, f"{folder}: other weights: {differing[:3]}", log)
    for name, part in (("evaluations.jsonl", None), ("metrics.jsonl", "loss")):
        expected_rows, rows = (recorded(path / name, part) for path in (whole, folder))
        demand(rows == expected_rows, f"{folder}: {name} differs: {rows} {expected_rows}", log)


def recorded(file: Path, part: str | None) -> list[Any]:
    """The rows of a file; of metrics, the steps of those that hold ``part``."""
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    return rows if part is None else [row["step"] for row in rows if part in row]
