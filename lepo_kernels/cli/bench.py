"""``lepo bench``: time every op beside what one would use otherwise, and draw the results."""

import argparse
import contextlib
import importlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lepo_kernels
from lepo_kernels import extras
from lepo_kernels.cli.errors import UsageError

RESULTS, LOG = "results.json", "pytest.log"
NEEDS = ("pytest", "pytest_benchmark", "matplotlib", "rich")
# pytest's exit statuses: the run is worth reporting where all passed, or some tests failed.
PASSED, SOME_FAILED, INTERRUPTED, NOTHING_SELECTED = 0, 1, 2, 5


def run(words: list[str]) -> None:
    """Run the benchmarks of a source checkout; show tables, and leave results and pictures.

    Raises:
        UsageError: the benchmarks or what they need are not here, or an option is wrong.
        KeyboardInterrupt: Ctrl-C; it says where the cases that were measured are.
        SystemExit: some implementation failed, or gave a wrong result.
    """
    wanted, rest = _parser().parse_known_args(words)
    root = checkout()
    missing = [name for name in NEEDS if not extras.is_here(name)]
    if missing:
        raise UsageError(
            f"needs {', '.join(missing)}, not installed; run: pip install 'lepo_kernels[bench]'"
        )
    out = Path(wanted.out).absolute()
    out.mkdir(parents=True, exist_ok=True)
    results = out / RESULTS
    results.unlink(missing_ok=True)
    with _inside(root):
        progress = Progress()
        status = _measure(out, rest, progress)
        if status == INTERRUPTED:
            raise KeyboardInterrupt(_what_is_left(results, out))
        if status not in (PASSED, SOME_FAILED) or not results.exists():
            raise UsageError(_why(status, out / LOG))
        importlib.import_module("benchmarks.report").main([str(results), "--out", str(out)])
    if status == SOME_FAILED:
        sys.exit(f"lepo bench: {progress.failures()}; {out / LOG} says why")


def checkout() -> Path:
    """The source tree that this package is in.

    Raises:
        UsageError: it is an installed copy, which has no benchmarks.
    """
    root = Path(lepo_kernels.__file__).parents[1]
    if not (root / "benchmarks" / "test_kernels.py").is_file():
        raise UsageError(
            f"the benchmarks are not part of an installed package, and {root} has none; they run "
            "from a source checkout: in its folder, run: make install, then .venv/bin/lepo bench"
        )
    return root


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lepo bench",
        description="Time every op beside eager PyTorch, torch.compile and peers; check results "
        "against an oracle first; show how much faster, than what, how far from the limit.",
        epilog="Every other option goes to pytest: --device, --models, --rows, --dtype, --seconds, "
        "--threads, --cpu-time, --graphs, --no-compile, --tiny, --note, --suite, -k WORD, "
        "--benchmark-autosave, --benchmark-compare. benchmarks/README.md tells of them. "
        "Results are saved after each case: Ctrl-C loses only the case in progress.",
    )
    parser.add_argument("--out", default="runs/bench", help="the folder for results and pictures")
    return parser


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    """The working directory for a while: git is asked there for the commit."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


class Progress:
    """A plugin of pytest that knows how far the run is.

    Attributes:
        total: rows that were selected, a row being one implementation of a case.
        done: rows that have an outcome.
        failed: rows that failed, or whose fixtures did.
        case: the one in progress.
        tell: is called whenever one of these has changed.
    """

    def __init__(self) -> None:
        self.total: int | None = None
        self.done: dict[str, None] = {}
        self.failed: dict[str, None] = {}
        self.case = "preparing ..."
        self.tell: Callable[[], None] = lambda: None

    def pytest_collection_finish(self, session: Any) -> None:
        """Count what is left of ``-k``."""
        self.total = len(session.items)
        self.tell()

    def pytest_runtest_logstart(self, nodeid: str, location: Any) -> None:
        """Name the case."""
        self.case = _row(nodeid).rpartition(" | ")[0]
        self.tell()

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Count a row once: it may pass, and fail when its fixtures are taken down."""
        row = _row(report.nodeid)
        if report.failed:
            self.failed[row] = None
        if report.when == "call" or not report.passed:
            self.done[row] = None
        self.tell()

    def failures(self) -> str:
        """The rows that failed, by name."""
        if not self.failed:
            return "pytest reports a failure outside of the measurements"
        return f"{len(self.failed)} of {len(self.done)} failed: " + "; ".join(self.failed)


def _row(nodeid: str) -> str:
    """``case | implementation``, of a test's name."""
    return nodeid.partition("[")[2].removesuffix("]")


def _measure(out: Path, rest: list[str], progress: Progress) -> int:
    """Run pytest in this process, with its words in a log and progress on the terminal."""
    import pytest

    words = ["benchmarks", "--benchmark-only", "-v", "--results", str(out / RESULTS), *rest]
    # What a case prints is caught where Python writes: the terminal is for the progress.
    words += ["--capture=sys", "-p", "no:cacheprovider"]
    with (
        (out / LOG).open("w", encoding="utf-8") as log,
        _shown(progress),
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(log),
    ):
        return int(pytest.main(words, plugins=[progress]))


@contextlib.contextmanager
def _shown(progress: Progress) -> Iterator[None]:
    """A moving bar on a terminal, a line for each case elsewhere."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    from lepo_kernels.console import make_console, say, shows_progress

    console = make_console()
    if not shows_progress(console):
        seen = {progress.case: None}

        def line() -> None:
            if progress.total is not None and progress.case not in seen:
                seen[progress.case] = None
                say(console, f"{len(progress.done):>4} of {progress.total}  {progress.case}")

        progress.tell = line
        yield
        return
    words = TextColumn("{task.description}", markup=False)
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), words)
    # Where pytest writes is ours to say.
    moving = Bars(*columns, console=console, redirect_stdout=False, redirect_stderr=False)
    with moving as bars:
        bar = bars.add_task(progress.case, total=None)
        progress.tell = lambda: bars.update(
            bar, completed=len(progress.done), total=progress.total, description=progress.case
        )
        yield


def _what_is_left(results: Path, out: Path) -> str:
    if not results.exists():
        return "before any case was measured"
    return (
        f"the cases measured so far are in {results}; to see them, run in {Path.cwd()}:\n"
        f"  {sys.executable} -m benchmarks.report {results} --out {out}"
    )


def _why(status: int, log: Path) -> str:
    """What kept pytest from running anything."""
    if status == NOTHING_SELECTED:
        return "no case matches -k; benchmarks/README.md tells what there is"
    lines = [line.strip() for line in log.read_text(encoding="utf-8").splitlines()]
    errors = [line for line in lines if "error: " in line or line.startswith("ERROR: ")]
    said = ([x for x in errors if "usage:" not in x] or [x for x in lines if x] or ["nothing"])[-1]
    return f"pytest could not run the benchmarks: {said} (all it said is in {log})"
