"""Runs the steps, one after the other, until the budget ends."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.gpu_run.facts import ROOT
from benchmarks.gpu_run.report import FILE, Outcome, Report
from benchmarks.gpu_run.step import COUNTS, SECONDS, Step, counts

# With less left than this, a step is not begun.
LEAST_SECONDS = 5.0
# The exit status of a step that ends itself in time and could not do all, as `timeout` has it.
OUT_OF_TIME = 124
# What is shown of the log of a step that fails.
LAST_LINES = 25
LINE_WIDTH = 160


def run_all(
    todo: Sequence[Step],
    report: Report,
    folder: Path,
    deadline: float,
    after: Callable[[], None] = lambda: None,
) -> None:
    """Run what there is time for; the file is up to date after each step, before ``after``.

    A step may take its part of the budget and what those before it left of theirs.
    """
    library_built = True
    begun, ends = deadline - report.budget_seconds, 0.0
    for step in todo:
        ends += step.part
        outcome = run_step(step, folder, begun + ends * report.budget_seconds, library_built)
        if step.gives_library and outcome.outcome != "passed":
            library_built = False
        report.outcomes.append(outcome)
        report.write(folder / FILE)
        after()
        print(outcome.line(), flush=True)
        if outcome.outcome == "failed":
            # The log may stay behind on a machine that is gone.
            print(last_lines(folder / outcome.log), flush=True)


def run_step(step: Step, folder: Path, deadline: float, library_built: bool) -> Outcome:
    """Run one step, or say why not."""
    if step.needs_library and not library_built:
        return Outcome(step.name, "not run", "there is no library that can be used")
    if not step.command:
        return Outcome(step.name, "not run", step.missing)
    start = time.monotonic()
    limit = deadline - start
    if limit < LEAST_SECONDS:
        return Outcome(step.name, "not run", "its part of the budget had ended")
    stem = step.name.replace(" ", "-")
    log, tally = folder / f"{stem}.log", folder / f"{stem}.counts"
    words = [
        word.replace(SECONDS, str(int(limit))).replace(COUNTS, str(tally)) for word in step.command
    ]
    status = _run(words, step.environment, log, limit)
    outcome = Outcome(step.name, "", seconds=round(time.monotonic() - start, 1), log=log.name)
    outcome.counts = counts(tally, log.read_text(errors="replace"))
    if status is None:
        outcome.outcome, outcome.reason = "out of time", f"stopped after {limit:.0f} s"
        if any(outcome.counts.get(word) for word in ("failed", "error", "findings")):
            outcome.outcome = "failed"
    elif status == OUT_OF_TIME:
        outcome.outcome, outcome.reason = "out of time", "it stopped by itself"
    elif status == 0:
        outcome.outcome = "passed"
    else:
        outcome.outcome, outcome.reason = "failed", f"exit status {status}"
    return outcome


def last_lines(log: Path) -> str:
    """The end of a log, where pytest names what failed, and a compiler why."""
    lines = log.read_text(errors="replace").rstrip().splitlines()[-LAST_LINES:]
    return "\n".join("    " + line[:LINE_WIDTH] for line in lines)


def _run(
    words: Sequence[str], environment: dict[str, str], log: Path, seconds: float
) -> int | None:
    """The exit status; None if the time ended first, and with it all that the step had begun."""
    with log.open("w") as output:
        process = subprocess.Popen(
            words,
            cwd=ROOT,
            env={**os.environ, **environment},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            return process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            _kill(process)
            return None
        except BaseException:
            # Ctrl-C does not reach another session: nothing of it may stay on the GPU.
            _kill(process)
            raise


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a process, and all that it has begun."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
