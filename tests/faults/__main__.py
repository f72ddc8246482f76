"""``python -m tests.faults``: inject faults into runs for a while, and count what happened.

Options: ``--minutes``, or ``--rounds`` of every scenario; ``--seed``; ``--only NAME``. A failure
leaves its folder, and is told with the seed and the run's output. docs/checkpoints.md says what is
promised.
"""

import argparse
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

# Before torch: a process with threads cannot be forked safely.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import torch

import lepo_kernels.cli.train  # noqa: F401 - once, for all the processes that are forked
from tests.faults.runs import FaultError
from tests.faults.scenarios import ALL, QUICK, Place


def main(words: list[str]) -> int:
    """Run scenarios; 0 if all held what is promised."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults")
    parser.add_argument("--minutes", type=float, help="go on for so long")
    parser.add_argument("--rounds", type=int, default=1, help="or this often through all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=ALL, action="append", help="only this scenario")
    parser.add_argument("--two-processes", action="store_true", help="those by torchrun, too")
    parser.add_argument("--verbose", action="store_true", help="a line for each fault")
    options = parser.parse_args(words)
    torch.set_num_threads(1)
    chosen = options.only or list(ALL if options.two_processes else QUICK)
    root = Path(tempfile.mkdtemp(prefix="lepo-faults-"))
    place = Place.make(root, options.seed)
    print(f"An unbroken run takes {place.seconds:.1f} s. In {root}:", flush=True)
    end = time.monotonic() + 60 * (options.minutes or 0)
    passed: Counter[str] = Counter()
    failed: Counter[str] = Counter()
    rounds = 0
    while time.monotonic() < end if options.minutes else rounds < options.rounds:
        rounds += 1
        for name in chosen:
            try:
                told = ALL[name](place)
            except FaultError as error:
                failed[name] += 1
                print(f"FAILED {name} (seed {options.seed}): {error}", flush=True)
            else:
                passed[name] += 1
                if options.verbose:
                    print(f"{name}: {told}", flush=True)
    for name in chosen:
        print(f"{name}: {passed[name]} passed, {failed[name]} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
