"""A run of the benchmarks that has to end in time, and outlives a fault of a kernel."""

import os
import subprocess
import sys
import time

import pytest

from benchmarks import cases, session
from benchmarks.gpu_run import measuring
from benchmarks.gpu_run.ending import Ending
from benchmarks.gpu_run.facts import ROOT
from benchmarks.gpu_run.step import counts
from benchmarks.results import Result
from tests.benchmarks.sessions import case, item_of, run_of

CASES = [case(f"op {i}", "one", "two") for i in range(4)]


def begun(ending, run, works=lambda: True, seconds=0.0, clock=None):
    """The cases that are begun, each of two tests."""
    object.__setattr__(run.device, "works", works)
    found = []
    for one in CASES:
        results = [ending.pytest_runtest_protocol(item_of(one, run)) for _ in range(2)]
        assert results in ([None, None], [True, True])
        if results[0] is None:
            found.append(one.op)
            if clock is not None:
                clock[0] += seconds
    return found


def test_no_case_is_begun_that_may_end_too_late(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    ending = Ending(deadline=125.0)
    # The third may end at 130.
    assert begun(ending, run_of(*CASES), seconds=10.0, clock=clock) == ["op 0", "op 1"]
    assert (ending.measured, ending.left, ending.lost) == (2, 2, False)
    late = Ending(deadline=99.0)
    assert begun(late, run_of(*CASES)) == []
    assert (late.measured, late.left) == (0, 4)


def test_no_case_is_begun_on_a_device_that_no_longer_works():
    answers = iter([True, True, False])
    ending = Ending(float("inf"))
    run = run_of(*CASES)
    assert begun(ending, run, lambda: next(answers)) == ["op 0", "op 1"]
    assert (ending.measured, ending.left, ending.lost) == (2, 2, True)
    ending = Ending(float("inf"), skip=2)
    assert begun(ending, run_of(*CASES)) == ["op 2", "op 3"]
    assert (ending.measured, ending.left, ending.lost) == (2, 0, False)


def planned(monkeypatch, tmp_path, status, measured, left=0, lost=False, words=(), start=None):
    """``main`` where pytest ends like this; its status, and what the plugin was told."""
    seen = []

    def main(options, plugins):
        ending = plugins[0]
        seen.append((ending.deadline, ending.skip))
        ending.measured, ending.left, ending.lost = measured, left, lost
        return status

    monkeypatch.setattr(pytest, "main", main)
    files = [str(tmp_path / "results.json"), str(tmp_path / "it.counts")]
    words = [*files, "--within", "60", "--tiny", *words]
    start = time.monotonic() if start is None else start
    return measuring.main(words, begun=start), *seen[0]


@pytest.mark.parametrize(
    ("status", "left", "want"), [(0, 0, 0), (1, 0, 1), (0, 1, measuring.OUT_OF_TIME), (1, 1, 1)]
)
def test_the_exit_status_tells_how_it_went(monkeypatch, tmp_path, status, left, want):
    assert planned(monkeypatch, tmp_path, status, 3, left)[0] == want
    assert counts(tmp_path / "it.counts", "") == {"cases measured": 3, "cases": 3 + left}


def test_time_counts_from_where_the_process_began(monkeypatch, tmp_path):
    assert planned(monkeypatch, tmp_path, 0, 1, start=1000.0)[1] == 1060.0


def test_the_clock_starts_before_torch_is_imported():
    code = (
        "import benchmarks, sys, time; assert 'torch' not in sys.modules;"
        "assert 0 <= time.monotonic() - benchmarks.BEGUN < 60"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_after_a_fault_another_process_goes_on_with_the_next_case(monkeypatch, tmp_path):
    def replaced(program, words):
        raise SystemExit(words)

    monkeypatch.setattr("os.execv", replaced)
    with pytest.raises(SystemExit) as ended:
        planned(monkeypatch, tmp_path, 1, 2, left=2, lost=True)
    words = ended.value.code[3:]
    assert words[words.index("--after") :][1:3] == ["2", "1"]
    assert 0 < float(words[-1]) <= 60
    # The first one's failure is not forgotten, nor its cases.
    assert planned(monkeypatch, tmp_path, 0, 2, words=["--after", "2", "1"])[::2] == (1, 2)
    assert counts(tmp_path / "it.counts", "") == {"cases measured": 4, "cases": 4}


def test_a_device_that_never_works_ends_it(monkeypatch, tmp_path):
    monkeypatch.setattr("os.execv", lambda *_: pytest.fail("another process would fare no better"))
    status, *_ = planned(monkeypatch, tmp_path, 0, 0, left=4, lost=True)
    assert status == measuring.OUT_OF_TIME


def test_suites_are_all_there_is():
    suites = session.SUITES
    assert suites["all"] == suites["kernels"] + list(suites["end-to-end"])
    assert suites["all"] == cases.FAMILIES
    assert all(len(suite) > 0 for suite in suites.values())


# Each starts a process that loads everything anew.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("within", "wrong", "status"), [("600", "", 0), ("600", "steady", 1), ("-1", "", 124)]
)
def test_it_measures_in_earnest(tmp_path, within, wrong, status):
    path, tally = tmp_path / "results.json", tmp_path / "it.counts"
    command = [sys.executable, "-m", "benchmarks.gpu_run.measuring", str(path), str(tally)]
    command += [
        "--within",
        within,
        "--tiny",
        "--device",
        "cpu",
        "-p",
        "tests.benchmarks.artificial",
    ]
    environment = {**os.environ, "LEPO_TEST_WORK": "1", "LEPO_TEST_WRONG": wrong}
    environment.pop("PYTEST_XDIST_WORKER", None)
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == status, done.stdout + done.stderr
    assert counts(tally, "")["cases"] == 1
    if status != measuring.OUT_OF_TIME:
        assert [group.op for group in Result.read(path).groups] == ["artificial"]
    assert path.exists() == (status != measuring.OUT_OF_TIME)
