"""``python -m benchmarks.gpu_run.measuring RESULTS.json COUNTS --within SECONDS WORD ...``

Drives pytest-benchmark in this process, for a run that has to end in time. Results are saved after
each case. A kernel that faults takes its process from the device: another process goes on with the
next case. The words are options of ``pytest benchmarks/ --benchmark-only``.

Exit status: pytest's; 124 if nothing failed, and the time ended before all cases were measured.
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from benchmarks import BEGUN
from benchmarks.gpu_run.counting import Counts
from benchmarks.gpu_run.ending import Ending

# As the command `timeout` has it.
OUT_OF_TIME = 124


def main(words: Sequence[str], begun: float = BEGUN) -> int:
    """Measure and save; the exit status.

    Args:
        words: of the command line.
        begun: the reading of `time.monotonic` from which ``--within`` counts.
    """
    import pytest

    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_run.measuring")
    parser.add_argument("results", type=Path)
    parser.add_argument("counts", type=Path)
    parser.add_argument("--within", type=float, required=True, metavar="SECONDS")
    # Of the process that this one goes on for: cases that it did, and whether something failed.
    parser.add_argument("--after", type=int, nargs=2, default=(0, 0), help=argparse.SUPPRESS)
    wanted, rest = parser.parse_known_args(words)
    skip, status_before = wanted.after
    ending = Ending(begun + wanted.within, skip)
    counts = Counts(wanted.counts)
    options = ["benchmarks", "--benchmark-only", "-v", "-p", "no:cacheprovider"]
    options += ["--results", str(wanted.results), *rest]
    status = max(status_before, int(pytest.main(options, plugins=[ending, counts])))
    if ending.lost and ending.measured > 0:
        _go_on(words, skip + ending.measured, status, begun + wanted.within)
    counts.add("cases measured", skip + ending.measured)
    counts.add("cases", skip + ending.measured + ending.left)
    return OUT_OF_TIME if ending.left and status == 0 else status


def _go_on(words: Sequence[str], measured: int, status: int, deadline: float) -> NoReturn:
    """Put a new process in the place of this one, whose memory on the device ends with it."""
    print("the device takes no more work from this process: another one goes on", flush=True)
    sys.stderr.flush()
    more = ["--after", str(measured), str(status)]
    more += ["--within", str(deadline - time.monotonic())]
    module = "benchmarks.gpu_run.measuring"
    os.execv(sys.executable, [sys.executable, "-m", module, *words, *more])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
