"""Checks and measures everything on this machine's GPU within a budget of time.

    python -m benchmarks.gpu_run --out DIR [--budget SECONDS] [--steps NAME,NAME] [--no-build]
                                 [--dry-run]

Builds the native libraries for the GPU at hand into the tree, checks every op, measures what plans
rest on, runs compute-sanitizer, the tests on the device and the benchmarks, and makes a report:
docs/gpu.md. Without a GPU, and with --dry-run, it shows the plan for one, and runs everything that
the CPU allows at tiny sizes, to see that it works. It takes no network; what it lacks is left out,
and named. DIR is up to date after each step, the results in it after each case, and the facts after
each fact.

Exit status: 0 all passed; 1 something failed; 3 nothing failed, and not all was run.
"""

import argparse
import datetime
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.gpu_run import first_facts, left_out
from benchmarks.gpu_run.facts import ROOT, facts, find_sanitizer
from benchmarks.gpu_run.folder import collect
from benchmarks.gpu_run.planning import planned_items
from benchmarks.gpu_run.report import EXIT_STATUS, Report
from benchmarks.gpu_run.running import run_all
from benchmarks.gpu_run.step import Step
from benchmarks.gpu_run.steps import FACTS, LOAD, Commands, of_the_whole, on_cpu, on_gpu

# The compute capability of the GPU for which a dry run shows the plan.
SHOWN = (9, 0)


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
    parser.add_argument(
        "--no-build",
        action="store_true",
        help="take the libraries that lie in the tree; they are built only if they cannot be used",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="tiny sizes on the CPU, even beside a GPU",
    )
    options = parser.parse_args(words)
    deadline = time.monotonic() + options.budget
    out = options.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    found = facts() | {"left_out": left_out.here()}
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    report = Report(now, options.budget, found)
    if options.dry_run:
        found["device"] = {}
    print(f"{found['device'].get('name', 'no GPU: tiny sizes on the CPU')}", flush=True)
    for line in found["left_out"]:
        print(f"left out: {line}", flush=True)
    # Of a rented machine one often gets few files back, and none that lies deep.
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        do = Commands(sys.executable, out, work)
        if found["device"]:
            major, minor = map(int, found["device"]["capability"].split("."))
            if options.no_build and (reason := why_unusable(sys.executable)):
                found["not_used"] = f"--no-build: {reason}: building it after all"
                print(found["not_used"], flush=True)
            build = not options.no_build or "not_used" in found
            todo = on_gpu(do, (major, minor), find_sanitizer(), build=build)
        else:
            print("\n".join(plan(on_gpu(do, SHOWN, find_sanitizer()), options.budget)), flush=True)
            todo = on_cpu(do)
        try:
            todo = chosen(todo, options.steps)
        except ValueError as error:
            parser.error(str(error))
        run_all(todo, report, work, deadline, lambda: collect(work, out))
    print("\n".join(report.lines()))
    for line in first_facts.lines(out / FACTS):
        print(line)
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
    return of_the_whole([step for step in todo if step.name in wanted])


def why_unusable(python: str) -> str | None:
    """Why the CUDA library in the tree cannot be used on this GPU; None if it can."""
    done = subprocess.run([python, "-c", LOAD], cwd=ROOT, capture_output=True, text=True)
    if done.returncode == 0:
        return None
    return (done.stderr.strip().splitlines() or ["no reason"])[-1]


def plan(todo: list[Step], budget: float) -> Iterator[str]:
    """What would be done on a GPU, and how long each step may take."""
    yield f"on a GPU, within {budget:.0f} s:"
    for step in todo:
        yield f"    {step.part * budget:6.1f} s  {step.name}" + (
            f": {step.missing}" if not step.command else ""
        )
    for name, items in planned_items().items():
        yield f"{name}, planned to take {sum(items.values()):.0f} s of it:"
        yield from (f"    {seconds:6.1f} s  {item}" for item, seconds in items.items())


if __name__ == "__main__":
    sys.exit(main())
