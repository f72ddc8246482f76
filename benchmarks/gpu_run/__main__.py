"""Checks and measures everything on this machine's GPU within a budget of time.

    python -m benchmarks.gpu_run --out DIR [--budget SECONDS] [--steps NAME,NAME]

Builds the native libraries for the GPU at hand into the tree, runs the tests on the device, the
kernel and end-to-end benchmarks and compute-sanitizer, and makes a report: docs/gpu.md. Without a
GPU it runs a few tests and tiny benchmarks on the CPU, to see that everything works. It takes no
network; what it lacks is left out, and named. DIR is up to date after each step, and the results in
it after each case.

Exit status: 0 all passed; 1 something failed; 3 nothing failed, and not all was run.
"""

import argparse
import datetime
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.gpu_run import left_out
from benchmarks.gpu_run.facts import facts, find_sanitizer
from benchmarks.gpu_run.folder import collect
from benchmarks.gpu_run.report import EXIT_STATUS, Report
from benchmarks.gpu_run.running import run_all
from benchmarks.gpu_run.step import Step
from benchmarks.gpu_run.steps import Commands, on_cpu, on_gpu


def main(words: Sequence[str] | None = None) -> int:
    """Run it; the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_run",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--budget", type=float, default=480.0, metavar="SECONDS")
    parser.add_argument("--steps", metavar="NAME,NAME", help="these alone; default: all")
    options = parser.parse_args(words)
    deadline = time.monotonic() + options.budget
    out = options.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    found = facts() | {"left_out": left_out.here()}
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    report = Report(now, options.budget, found)
    print(f"{found['device'].get('name', 'no GPU: tiny sizes on the CPU')}", flush=True)
    for line in found["left_out"]:
        print(f"left out: {line}", flush=True)
    # Of a rented machine one often gets few files back, and none that lies deep.
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        do = Commands(sys.executable, out, work)
        if found["device"]:
            major, minor = map(int, found["device"]["capability"].split("."))
            todo = on_gpu(do, (major, minor), find_sanitizer())
        else:
            todo = on_cpu(do)
        try:
            todo = chosen(todo, options.steps)
        except ValueError as error:
            parser.error(str(error))
        run_all(todo, report, work, deadline, lambda: collect(work, out))
    print("\n".join(report.lines()))
    print(f"in {out}: {', '.join(sorted(file.name for file in out.iterdir()))}")
    return EXIT_STATUS[report.status]


def chosen(todo: list[Step], names: str | None) -> list[Step]:
    """The steps that were asked for, which share the whole budget as they would their parts.

    Raises:
        ValueError: there is no such step.
    """
    if names is None:
        return todo
    wanted = [name.strip() for name in names.split(",")]
    for name in wanted:
        if name not in (known := [step.name for step in todo]):
            raise ValueError(f"--steps: there is no step {name!r}; known: {'; '.join(known)}")
    some = [step for step in todo if step.name in wanted]
    whole = sum(step.part for step in some) or 1.0
    return [replace(step, part=step.part / whole) for step in some]


if __name__ == "__main__":
    sys.exit(main())
