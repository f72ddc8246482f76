"""Confirms on this machine's GPU what was proven without one, and writes down how it went.

    python -m tools.gpu_check --out DIR [--budget SECONDS]

Builds the native libraries for the GPU at hand into the tree, compares Philox words, runs the tests
on the device, Triton's too, and lets compute-sanitizer watch every kernel. It needs torch for CUDA,
a CUDA toolkit, pytest, hypothesis, scipy, cmake and ninja, and no network. DIR/gpu_check.json is
written after each step, beside a log of each.

Exit status: 0 all passed; 1 something failed; 2 there is no GPU, and nothing was run; 3 nothing
failed, and not all was run.
"""

import argparse
import datetime
import sys
import time
from pathlib import Path

from tools.gpu_check.facts import facts, find_sanitizer
from tools.gpu_check.report import EXIT_STATUS, Outcome, Report
from tools.gpu_check.running import run_all
from tools.gpu_check.steps import architecture_of, steps


def main(words: list[str] | None = None) -> int:
    """Run the check; the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.gpu_check",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--budget", type=float, default=480.0, metavar="SECONDS")
    options = parser.parse_args(words)
    deadline = time.monotonic() + options.budget
    options.out.mkdir(parents=True, exist_ok=True)
    found = facts()
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    report = Report(now, options.budget, found, bool(found["device"]))
    if report.has_gpu:
        major, minor = map(int, found["device"]["capability"].split("."))
        todo = steps(sys.executable, architecture_of((major, minor)), find_sanitizer())
        print(f"{found['device']['name']}, driver {found['driver']}", flush=True)
        run_all(todo, report, options.out, deadline)
    else:
        todo = steps(sys.executable, "", find_sanitizer())
        report.outcomes = [Outcome(step.name, "not run", "no GPU") for step in todo]
    report.write(options.out / "gpu_check.json")
    print("\n".join(report.lines()))
    return EXIT_STATUS[report.status]


if __name__ == "__main__":
    sys.exit(main())
