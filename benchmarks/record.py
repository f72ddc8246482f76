"""``python -m benchmarks.record RESULTS.json``: measure without pytest, and save after each case.

For a run that may be cut off, or where pytest-benchmark is not installed. A kernel that faults
takes its process from the device: another one goes on with the next case. The file is the one that
``--benchmark-json`` writes, as far as `results` reads it; cases that it holds already stay there,
and are replaced where they are measured again; it has to be of the same machine.

Exit status: 0 all right; 1 some implementation failed, or gave a wrong result; 2 a bad option; 124
none failed, and the time ended before all cases were measured.
"""

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch

from benchmarks import BEGUN, cases, session
from benchmarks.case import Case, dtype_name
from benchmarks.ceilings import Ceilings
from benchmarks.measure import Measured, measure
from benchmarks.session import Run

SUITES = {"all": cases.FAMILIES, "kernels": cases.KERNELS, "end-to-end": cases.END_TO_END}
ROOT = Path(__file__).parents[1]
# As the command `timeout` has it.
OUT_OF_TIME = 124


class Recording:
    """The file, as it grows.

    What a file tells of its run is that of the first; later ones take its limits where they can.

    Raises:
        ValueError: the file is there, and of another machine, or no results at all.
    """

    def __init__(self, path: Path, run: Run) -> None:
        self.path, self.run = path, run
        self.content: dict[str, Any] = {"benchmarks": []}
        if path.exists():
            self.content = json.loads(path.read_text(encoding="utf-8"))
            self._join()
        else:
            now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
            self.content |= {"datetime": now, "commit_info": _commit()}
            self.content["machine_info"] = run.machine()

    def _join(self) -> None:
        before, now = self.content["machine_info"], self.run.machine()
        versions = before["versions"]
        differ = [name for name, x in now["versions"].items() if versions.get(name, x) != x]
        if before["device"] != now["device"] or differ:
            raise ValueError(f"{self.path}: was taken on another device, or with other versions")
        versions |= now["versions"]
        saved = self.content["run"]["ceilings"]
        if {dtype_name(case.dtype) for case in self.run.cases.values()} <= set(saved["gemm"]):
            self.run.found = Ceilings(**saved)

    def add(self, case: Case, found: dict[str, Measured], missing: dict[str, str]) -> None:
        """Put a case in, in place of what was there of it; the file is never half."""
        failed = {name: f"it failed: {x.error!r}" for name, x in found.items() if x.error}
        rows = [_entry(case, name, one) for name, one in found.items() if one.samples]
        skipped = [
            {"group": case.name, "name": name, "reason": reason}
            for name, reason in (missing | failed).items()
        ]
        now = self.run.about()
        about = self.content.setdefault("run", now)
        about["ceilings"]["gemm"] |= now["ceilings"]["gemm"]
        for part, key, fresh in ((self.content, "benchmarks", rows), (about, "skipped", skipped)):
            part[key] = [*(x for x in part[key] if x["group"] != case.name), *fresh]
        file = self.path.with_suffix(".new")
        file.write_text(json.dumps(self.content, indent=1) + "\n", encoding="utf-8")
        file.replace(self.path)


def record(
    run: Run, recording: Recording, deadline: float, measured: int = 0, failed: int = 0
) -> tuple[int, int]:
    """Measure what there is time for; how many cases, and how many implementations failed.

    A case that may take longer than what is left is not begun: one takes about as long as another.
    None is begun on a device that no longer works.

    Args:
        run: its cases.
        recording: where they go.
        deadline: a reading of `time.monotonic`.
        measured: cases that were measured before, the first ones.
        failed: implementations of these that failed.
    """
    longest = 0.0
    for case in list(run.cases.values())[measured:]:
        start = time.monotonic()
        if start + longest > deadline or not run.device.works():
            break
        reasons = {x.name: x.why_not(run.device.torch) for x in run.implementations(case)}
        here = [x for x in run.implementations(case) if reasons[x.name] is None]
        run.device.free()
        try:
            found = measure(case, here, run.device, run.ceilings(), run.effort)
        except Exception as error:
            # Its inputs cannot even be made.
            too_large = isinstance(error, torch.OutOfMemoryError)
            found = {one.name: Measured(error=error, unavailable=too_large) for one in here}
        missing = {name: why for name, why in reasons.items() if why is not None}
        recording.add(case, found, missing | run.left_out(case))
        errors = [one.error for one in found.values() if one.error and not one.unavailable]
        for shown in set(errors):
            traceback.print_exception(shown)
        measured, failed = measured + 1, failed + len(errors)
        longest = max(longest, time.monotonic() - start)
        print(f"{time.monotonic() - start:6.1f} s  {case.name}: {_medians(found)}", flush=True)
    return measured, failed


def _entry(case: Case, name: str, one: Measured) -> dict[str, Any]:
    samples = one.samples
    low, median, high = statistics.quantiles(samples, n=4, method="inclusive")
    return {
        "group": case.name,
        "name": f"{case.name} | {name}",
        "fullname": f"{case.name} | {name}",
        "params": None,
        "extra_info": one.derived | {"implementation": name},
        "stats": {
            "min": min(samples),
            "max": max(samples),
            "mean": statistics.fmean(samples),
            "stddev": statistics.stdev(samples),
            "median": median,
            "q1": low,
            "q3": high,
            "iqr": high - low,
            "rounds": len(samples),
        },
    }


def _medians(found: dict[str, Measured]) -> str:
    return ", ".join(
        f"{name} {1e3 * statistics.median(one.samples):.3g} ms" if one.samples else f"{name} failed"
        for name, one in found.items()
    )


def _go_on(
    arguments: Sequence[str] | None, measured: int, failed: int, deadline: float
) -> NoReturn:
    """Put a new process in the place of this one, whose memory on the device ends with it."""
    print("the device takes no more work from this process: another one goes on", flush=True)
    sys.stderr.flush()
    words = list(sys.argv[1:] if arguments is None else arguments)
    words += ["--after", str(measured), str(failed)]
    if deadline < float("inf"):
        words += ["--within", str(deadline - time.monotonic())]
    os.execv(sys.executable, [sys.executable, "-m", "benchmarks.record", *words])


def _commit() -> dict[str, Any]:
    """What git knows of the checkout; nothing without git."""
    try:
        commit, changes = (_git(words) for words in ("rev-parse HEAD", "status --porcelain -uno"))
    except OSError:
        return {}
    return {"id": commit, "dirty": bool(changes)}


def _git(words: str) -> str:
    command = ["git", "-C", str(ROOT), *words.split()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def main(arguments: Sequence[str] | None = None, begun: float | None = None) -> int:
    """Measure and save; the exit status.

    Args:
        arguments: the words of the command line.
        begun: the reading of `time.monotonic` from which ``--within`` counts; None takes now.
    """
    begun = time.monotonic() if begun is None else begun
    parser = argparse.ArgumentParser(prog="python -m benchmarks.record", description=__doc__)
    parser.add_argument("results", type=Path, help="the file")
    parser.add_argument("--suite", choices=tuple(SUITES), default="all")
    parser.add_argument(
        "--within",
        type=float,
        default=float("inf"),
        metavar="SECONDS",
        help="since the process began: begin no case that may take longer",
    )
    parser.add_argument("--after", type=int, nargs=2, default=(0, 0), help=argparse.SUPPRESS)
    session.add_options(parser.add_argument)
    wanted = parser.parse_args(arguments)
    deadline = begun + wanted.within
    try:
        run = session.prepare(wanted, SUITES[wanted.suite])
        recording = Recording(wanted.results, run)
    except ValueError as error:
        parser.error(str(error))
    measured, failed = record(run, recording, deadline, *wanted.after)
    if not run.device.works() and wanted.after[0] < measured < len(run.cases):
        _go_on(arguments, measured, failed, deadline)
    print(f"measured {measured} of {len(run.cases)} cases; {failed} implementations failed")
    if failed:
        return 1
    return OUT_OF_TIME if measured < len(run.cases) else 0


if __name__ == "__main__":
    sys.exit(main(begun=BEGUN))
