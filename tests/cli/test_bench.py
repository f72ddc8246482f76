"""``lepo bench``: what it says where it cannot run, its progress, and a tiny run."""

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


def test_progress_follows_what_pytest_says() -> None:
    start = "benchmarks/test_kernels.py::test_kernel"
    pieces = [
        "collecting ... collected 3 items\n\n",
        f"{start}[draw m: [4] | ours (cpu)] ",
        f"PASSED [ 33%]\n{start}[draw m: [4] | floor: amax] SKIPPED (no) [ 66%]\n{start}[loss |",
        " eager] FAILED\n",
    ]
    assert list(bench.progress_of(iter(pieces))) == [
        (0, 3, "preparing ..."),
        (0, 3, "draw m: [4]"),
        (2, 3, "draw m: [4]"),
        (3, 3, "loss"),
    ]


# What pytest says of two rows that failed, one of them twice, and of one that was left out.
LONG = """collecting ... collected 3 items

benchmarks/test_kernels.py::test_kernel[draw m: [4] | ours (cpu)] PASSED [ 33%]
benchmarks/test_kernels.py::test_kernel[draw m: [4] | ours (cpu)] ERROR [ 33%]
benchmarks/test_kernels.py::test_kernel[draw m: [4] | peer] SKIPPED (no peer) [ 66%]
benchmarks/test_kernels.py::test_kernel[loss | eager] FAILED [100%]
=========================== short test summary info ============================
SKIPPED [1] benchmarks/conftest.py:105: no peer
FAILED benchmarks/test_kernels.py::test_kernel[loss | eager] - AssertionError: FAILED
ERROR benchmarks/test_kernels.py::test_kernel[draw m: [4] | ours (cpu)] - RuntimeError
============== 1 failed, 1 passed, 1 skipped, 1 error in 1.00s ===============
"""


def test_no_row_counts_twice() -> None:
    *_, (done, total, _) = bench.progress_of(iter([LONG[:200], LONG[200:500], LONG[500:]]))
    assert (done, total) == (3, 3)


def test_what_failed_is_named(tmp_path: Path) -> None:
    log = tmp_path / "pytest.log"
    log.write_text(LONG)
    assert bench._failures(log) == "2 of 3 failed: draw m: [4] | ours (cpu); loss | eager"
    log.write_text("nothing of the kind")
    assert "outside of the measurements" in bench._failures(log)


def test_fewer_items_may_be_selected() -> None:
    said = "collecting ... collected 86 items / 82 deselected / 4 selected\n"
    assert list(bench.progress_of(iter([said]))) == [(0, 4, "preparing ...")]


@pytest.mark.slow
def test_a_tiny_run_leaves_results_and_pictures(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["--tiny", "--no-compile", "--threads", "1", "--device", "cpu", "-k", "philox"]
    assert main(["bench", "--out", str(tmp_path), *words]) == 0
    assert "torch.randint" in capfd.readouterr().out
    names = {file.name for file in tmp_path.iterdir()}
    assert names >= {bench.RESULTS, bench.LOG, "report.md", "summary.png", "roofline.png"}


@pytest.mark.slow
def test_what_pytest_refuses_is_passed_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "--out", str(tmp_path), "--rowz", "3"]) == 2
    assert "unrecognized arguments: --rowz 3" in capsys.readouterr().err


# Pytest's collection alone takes seconds.
@pytest.mark.slow
def test_a_word_that_no_case_has_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "--out", str(tmp_path), "--tiny", "-k", "no_such_op"]) == 2
    assert "no case matches -k" in capsys.readouterr().err
