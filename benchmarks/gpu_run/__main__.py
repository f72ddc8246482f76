"""Checks and measures everything on this machine's GPU within a budget of time.

    python -m benchmarks.gpu_run --out DIR [--budget SECONDS]

Builds the native libraries for the GPU at hand into the tree, runs the tests of `tools.gpu_check`,
the kernel and end-to-end benchmarks and compute-sanitizer, and makes a report: docs/gpu.md. Without
a GPU it runs a few tests and tiny benchmarks on the CPU, to see that everything works. It takes no
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
from pathlib import Path

from benchmarks.gpu_run import left_out
from benchmarks.gpu_run.folder import collect
from benchmarks.gpu_run.steps import on_cpu, on_gpu
from tools.gpu_check.facts import facts, find_sanitizer
from tools.gpu_check.report import EXIT_STATUS, Report
from tools.gpu_check.running import run_all


def main(words: Sequence[str] | None = None) -> int:
    """Run it; the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_run",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--budget", type=float, default=480.0, metavar="SECONDS")
    options = parser.parse_args(words)
    deadline = time.monotonic() + options.budget
    out = options.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    found = facts()
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    report = Report(
        now, options.budget, found, bool(found["device"]), file="gpu_run.json", runs_anywhere=True
    )
    report.facts["left_out"] = left_out.here()
    print(f"{found['device'].get('name', 'no GPU: tiny sizes on the CPU')}", flush=True)
    for line in report.facts["left_out"]:
        print(f"left out: {line}", flush=True)
    # Of a rented machine one often gets few files back, and none that lies deep.
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        if report.has_gpu:
            capability = tuple(map(int, found["device"]["capability"].split(".")))
            todo = on_gpu(sys.executable, capability, find_sanitizer(), out, work)
        else:
            todo = on_cpu(sys.executable, out, work)
        run_all(todo, report, work, deadline, lambda: collect(work, out))
    print("\n".join(report.lines()))
    print(f"in {out}: {', '.join(sorted(file.name for file in out.iterdir()))}")
    return EXIT_STATUS[report.status]


if __name__ == "__main__":
    sys.exit(main())
