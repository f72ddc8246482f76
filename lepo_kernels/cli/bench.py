"""``lepo bench``: time every op beside what one would use otherwise, and draw the results."""

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import lepo_kernels
from lepo_kernels import extras
from lepo_kernels.cli.errors import UsageError

RESULTS, LOG = "results.json", "pytest.log"
NEEDS = ("pytest", "pytest_benchmark", "matplotlib", "rich")
# pytest's exit statuses where the run is worth reporting: all passed, or some tests failed.
PASSED, SOME_FAILED = 0, 1

_COLLECTED = re.compile(r"\bcollected (\d+) items?")
_SELECTED = re.compile(r"\b(\d+) selected")
# A row and its outcome. The summary at the end tells of rows once more, the outcome before the row.
_OUTCOME = re.compile(r"::test_kernel\[(.*)\] (PASSED|FAILED|SKIPPED|ERROR)\b")
_CASE = re.compile(r"::test_kernel\[(.*) \| ")


def run(words: list[str]) -> None:
    """Run the benchmarks of a source checkout; show tables, and leave results and pictures.

    Raises:
        UsageError: the benchmarks or what they need are not here, or an option is wrong.
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
    status = _measure(root, out, rest)
    if status not in (PASSED, SOME_FAILED) or not results.exists():
        raise UsageError(_why(out / LOG))
    report = [sys.executable, "-m", "benchmarks.report", str(results), "--out", str(out)]
    if subprocess.run(report, cwd=root, check=False).returncode != 0:
        raise UsageError(f"no report could be made of {results}")
    if status == SOME_FAILED:
        sys.exit(f"lepo bench: {_failures(out / LOG)}; {out / LOG} says why")


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
        "--threads, --cpu-time, --graphs, --no-compile, --tiny, --note, -k WORD, "
        "--benchmark-autosave, --benchmark-compare. benchmarks/README.md tells of them.",
    )
    parser.add_argument("--out", default="runs/bench", help="the folder for results and pictures")
    return parser


def _measure(root: Path, out: Path, rest: list[str]) -> int:
    """Run pytest, with its words in a log and a line of progress on the terminal."""
    words = [sys.executable, "-m", "pytest", "benchmarks", "--benchmark-only", "-v"]
    words += [f"--benchmark-json={out / RESULTS}", *rest]
    # Whole lines, at once, and in the log's encoding.
    environment = {**os.environ, "COLUMNS": "400", "PYTHONUNBUFFERED": "1"}
    environment["PYTHONIOENCODING"] = "utf-8"
    with (
        (out / LOG).open("w", encoding="utf-8") as log,
        subprocess.Popen(
            words,
            cwd=root,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        ) as process,
    ):
        assert process.stdout is not None
        try:
            _show(_pieces(process.stdout, log))
        except KeyboardInterrupt:
            process.terminate()
            raise
    return process.returncode


def _pieces(stream: IO[bytes], log: IO[str]) -> Iterator[str]:
    """What the process says, as soon as it says it, and into the log."""
    while piece := os.read(stream.fileno(), 1 << 16):
        text = piece.decode("utf-8", "replace")
        log.write(text)
        log.flush()
        yield text


def _show(pieces: Iterator[str]) -> None:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}", markup=False),
    )
    from lepo_kernels.console import make_console, shows_progress

    console = make_console()
    with Progress(*columns, console=console, disable=not shows_progress(console)) as progress:
        bar = progress.add_task("preparing ...", total=None)
        for done, total, case in progress_of(pieces):
            progress.update(bar, completed=done, total=total, description=case)


def progress_of(pieces: Iterator[str]) -> Iterator[tuple[int, int | None, str]]:
    """Rows done, rows in all, and the case at hand, from what ``pytest -v`` says so far."""
    done: set[str] = set()
    total, case, line = None, "preparing ...", ""
    for piece in pieces:
        *lines, line = (line + piece).split("\n")
        for whole in lines:
            if found := _SELECTED.search(whole) or _COLLECTED.search(whole):
                total = int(found[1])
            # A set: a row may pass, and fail when its fixtures are taken down.
            done |= {row for row, _ in _OUTCOME.findall(whole)}
        if found := _CASE.search(line) or next(filter(None, map(_CASE.search, lines[::-1])), None):
            case = found[1]
        yield len(done), total, case


def _failures(log: Path) -> str:
    """The rows that failed, by name."""
    rows = _OUTCOME.findall(log.read_text(encoding="utf-8"))
    failed = list(dict.fromkeys(row for row, outcome in rows if outcome in ("FAILED", "ERROR")))
    if not failed:
        return "pytest reports a failure outside of the measurements"
    return f"{len(failed)} of {len({row for row, _ in rows})} failed: " + "; ".join(failed)


def _why(log: Path) -> str:
    """The last words of pytest, where it could not run."""
    lines = [line for line in log.read_text(encoding="utf-8").splitlines() if line.strip()]
    if any((found := _SELECTED.search(line)) and found[1] == "0" for line in lines):
        return "no case matches -k; benchmarks/README.md tells what there is"
    errors = [line for line in lines if re.match(r"(.*: )?(error|ERROR):? ", line)]
    said = (errors or lines or ["nothing"])[-1].strip()
    return f"pytest could not run the benchmarks: {said} (all it said is in {log})"
