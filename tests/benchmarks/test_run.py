"""Whole runs of pytest-benchmark, in processes of their own."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.results import Result

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _not_a_worker(monkeypatch):
    # pytest-benchmark measures nothing in what it takes for a worker of pytest-xdist.
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)


def benchmark(*words, **environment):
    return run_pytest("--benchmark-only", "--tiny", *words, **environment)


def run_pytest(*words, **environment):
    command = [sys.executable, "-m", "pytest", "benchmarks", *words]
    return subprocess.run(
        [*command, "-p", "no:xdist", "-p", "no:cacheprovider", "--threads", "1", "--device", "cpu"],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def artificial(work, *words, **environment):
    return benchmark(
        "-p", "tests.benchmarks.artificial", *words, LEPO_TEST_WORK=str(work), **environment
    )


@pytest.mark.slow
def test_a_kernel_made_twice_as_slow_shows_in_a_comparison(tmp_path):
    storage = f"--benchmark-storage={tmp_path}"
    compared = (storage, "--benchmark-compare=0001", "--benchmark-compare-fail=median:50%")
    assert artificial(1, storage, "--benchmark-save=before").returncode == 0
    same = artificial(1, *compared)
    assert same.returncode == 0, same.stdout + same.stderr
    slower = artificial(2, *compared)
    assert slower.returncode != 0
    (regressed,) = re.findall(r"^\t(.*) - .*$", slower.stderr, re.MULTILINE)
    assert "artificial shape | worked" in regressed
    assert re.search(r"worked \(NOW\) +20\.\d+ \(2\.00\)", slower.stdout), slower.stdout


@pytest.mark.slow
def test_a_saved_run_holds_the_columns_and_a_wrong_result_fails_alone(tmp_path):
    files = tmp_path / "pytests.json", tmp_path / "ours.json"
    words = (f"--benchmark-json={files[0]}", f"--results={files[1]}")
    done = artificial(3, *words, LEPO_TEST_WRONG="steady")
    assert done.returncode == 1
    assert "off by a half" in done.stdout
    for file in files:
        (group,) = Result.read(file).groups
        (row,) = group.rows
        assert row.name == "worked"
        assert group.skipped["steady"].startswith("it failed: AssertionError('off by a half")
        assert row.median == pytest.approx(0.03, rel=1e-3)
        assert row.info["input_buffers"] == 64
        assert row.info["gb_per_s"] == pytest.approx(32 / 0.03 / 1e9, rel=1e-3)
        saved = json.loads(file.read_text())
        assert saved["run"]["ceilings"]["gemm"].keys() == {"float32"}
        assert "node" not in saved["machine_info"]
        assert saved["benchmarks"][0]["stats"]["rounds"] == 3


@pytest.mark.slow
def test_an_interrupted_run_keeps_what_it_measured(tmp_path):
    file = tmp_path / "results.json"
    done = artificial(1, f"--results={file}", LEPO_TEST_INTERRUPTED="1")
    assert done.returncode == 2
    (group,) = Result.read(file).groups
    assert (group.op, len(group.rows)) == ("artificial", 2)


@pytest.mark.slow
def test_without_timing_everything_is_checked():
    command = ["--benchmark-disable", "-p", "tests.benchmarks.artificial", "--tiny"]
    done = run_pytest(*command, LEPO_TEST_WORK="1", LEPO_TEST_WRONG="steady")
    assert done.returncode == 1
    assert "1 failed, 1 passed" in done.stdout.replace("1 passed, 1 error", "1 failed, 1 passed")


@pytest.mark.slow
def test_a_case_that_cannot_be_measured_is_tried_once_and_fails_each_of_its_tests():
    done = artificial(1, LEPO_TEST_WRONG="inputs")
    assert done.returncode == 1
    assert re.search(r"^E +RuntimeError: no inputs today$", done.stdout, re.MULTILINE)
    assert "2 errors" in done.stdout
    assert len(re.findall("^inputs were asked for$", done.stdout, re.MULTILINE)) == 1


@pytest.mark.slow
def test_a_warning_of_a_third_party_fails_nothing():
    done = artificial(1, LEPO_TEST_WARNS="1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "DeprecationWarning: a third party deprecates something" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--models", "gpt-2"), "there is no model 'gpt-2'"),
        (("--rows", "0"), "--rows: expected at least 1"),
    ],
)
def test_wrong_options_are_said_in_a_line(words, message):
    done = benchmark(*words)
    assert done.returncode == 4
    assert message in done.stderr
    assert "Traceback" not in done.stderr
