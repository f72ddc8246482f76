"""``lepo bench``: what it says where it cannot run, its progress, and a tiny run."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

import lepo_kernels
from lepo_kernels.cli import bench
from lepo_kernels.cli.main import main


@pytest.fixture(autouse=True)
def _not_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    # pytest-benchmark measures nothing in what it takes for a worker of pytest-xdist.
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)


def test_an_installed_package_has_no_benchmarks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(lepo_kernels, "__file__", str(tmp_path / "lepo_kernels" / "__init__.py"))
    assert main(["bench"]) == 2
    error = capsys.readouterr().err
    assert "they run from a source checkout" in error
    assert error.count("\n") == 1


def test_a_missing_package_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "NEEDS", (*bench.NEEDS, "no_such_module"))
    assert main(["bench"]) == 2
    assert (
        "needs no_such_module, not installed; run: pip install 'lepo_kernels[bench]'"
        in capsys.readouterr().err
    )


@dataclass
class Report:
    """Of a test's setup, call or teardown, as pytest makes it."""

    nodeid: str
    when: str = "call"
    outcome: str = "passed"

    @property
    def passed(self) -> bool:
        return self.outcome == "passed"

    @property
    def failed(self) -> bool:
        return self.outcome == "failed"


@dataclass
class Session:
    items: list[str]


def node_of(row: str) -> str:
    return f"benchmarks/test_kernels.py::test_kernel[{row}]"


def test_progress_counts_a_row_once_and_names_the_case_at_hand() -> None:
    progress = bench.Progress()
    seen: list[tuple[int, str]] = []
    progress.tell = lambda: seen.append((len(progress.done), progress.case))
    rows = [node_of(x) for x in ("draw m: [4] | ours (cpu)", "draw m: [4] | peer", "loss | eager")]
    progress.pytest_collection_finish(Session(rows))
    assert progress.total == 3
    ends = [
        # It passes, and fails when its fixture is taken down.
        (Report(rows[0]), Report(rows[0], "teardown", "failed")),
        (Report(rows[1], "setup", "skipped"), Report(rows[1], "teardown")),
        (Report(rows[2], "setup"), Report(rows[2], "call", "failed")),
    ]
    for row, reports in zip(rows, ends, strict=True):
        progress.pytest_runtest_logstart(row, None)
        for report in reports:
            progress.pytest_runtest_logreport(report)
    assert seen[0] == (0, "preparing ...")
    assert seen[-1] == (3, "loss")
    assert (1, "draw m: [4]") in seen
    assert progress.failures() == "2 of 3 failed: draw m: [4] | ours (cpu); loss | eager"
    assert "outside of the measurements" in bench.Progress().failures()


def test_where_no_bar_can_move_there_is_a_line_for_each_case(
    capsys: pytest.CaptureFixture[str],
) -> None:
    progress = bench.Progress()
    with bench._shown(progress):
        progress.pytest_collection_finish(Session(["", "", ""]))
        for row in ("one | ours", "one | eager", "two [4] | ours"):
            progress.pytest_runtest_logstart(node_of(row), None)
            progress.pytest_runtest_logreport(Report(node_of(row)))
    assert capsys.readouterr().out.splitlines() == ["   0 of 3  one", "   2 of 3  two [4]"]


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ("ERROR: there is no model 'x'\n", "ERROR: there is no model 'x'"),
        (
            "ERROR: usage: pytest.main() [options]\npytest.main(): error: unknown: --x\n  root: y",
            "pytest.main(): error: unknown: --x",
        ),
        ("something else\n", "something else"),
        ("", "nothing"),
    ],
)
def test_what_kept_pytest_from_running_is_one_line(tmp_path: Path, said: str, why: str) -> None:
    log = tmp_path / "pytest.log"
    log.write_text(said)
    assert bench._why(4, log).startswith(f"pytest could not run the benchmarks: {why} (all it said")


def lepo_bench(*words: str, interrupted: bool = False) -> subprocess.CompletedProcess[str]:
    """In a process of its own: pytest in pytest would leave its settings behind."""
    command = [sys.executable, "-m", "lepo_kernels.cli.main", "bench", *words]
    environment = {**os.environ, "LEPO_TEST_WORK": "1"}
    if interrupted:
        environment["LEPO_TEST_INTERRUPTED"] = "1"
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


TINY = ("--tiny", "--no-compile", "--threads", "1", "--device", "cpu")


@pytest.mark.slow
def test_a_tiny_run_leaves_results_and_pictures(tmp_path: Path) -> None:
    done = lepo_bench("--out", str(tmp_path), *TINY, "-k", "philox")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "torch.randint" in done.stdout
    names = {file.name for file in tmp_path.iterdir()}
    assert names >= {bench.RESULTS, bench.LOG, "report.md", "summary.png", "roofline.png"}


@pytest.mark.slow
def test_an_interrupted_run_says_where_its_results_are(tmp_path: Path) -> None:
    words = ("--out", str(tmp_path), *TINY, "-p", "tests.benchmarks.artificial")
    done = lepo_bench(*words, interrupted=True)
    assert done.returncode == 130
    file = tmp_path / bench.RESULTS
    assert f"interrupted; the cases measured so far are in {file}" in done.stderr
    assert "Traceback" not in done.stderr
    shows = done.stderr.splitlines()[-1].split()
    assert shows[1:3] == ["-m", "benchmarks.report"]
    root = Path(bench.__file__).parents[2]
    report = subprocess.run(shows, cwd=root, capture_output=True, text=True, check=True)
    assert "artificial shape" in report.stdout


@pytest.mark.slow
def test_what_pytest_refuses_is_passed_on(tmp_path: Path) -> None:
    done = lepo_bench("--out", str(tmp_path), "--rowz", "3")
    assert done.returncode == 2
    assert "unrecognized arguments: --rowz 3" in done.stderr


@pytest.mark.slow
def test_a_word_that_no_case_has_is_named(tmp_path: Path) -> None:
    done = lepo_bench("--out", str(tmp_path), "--tiny", "-k", "no_such_op")
    assert done.returncode == 2
    assert "no case matches -k" in done.stderr
