"""Measuring without pytest: what the file holds, case by case."""

import json
import subprocess
import sys
import time
from dataclasses import dataclass

import pytest
import torch

from benchmarks import record
from benchmarks.case import Case, Family, Implementation
from benchmarks.ceilings import Ceilings
from benchmarks.device import Device
from benchmarks.measure import Effort
from benchmarks.results import Result
from benchmarks.session import Run
from benchmarks.tables import text

# Each starts processes that load everything anew.
pytestmark = pytest.mark.slow

CPU = torch.device("cpu")


@dataclass
class Inputs:
    x: torch.Tensor


def right(inputs, result):
    assert torch.equal(result, 2 * inputs.x), "not twice as much"


def implementation(name, factor=2, missing=None):
    return Implementation(name, "ours", lambda x: factor * x.x, right, lambda _: missing)


def case(op, *implementations, make=lambda _: Inputs(torch.ones(4))):
    return Case(op, "shape", make, implementations, 32, tokens=6)


def run_of(*cases):
    ceilings = Ceilings(1e9, 1e9, {"float32": 1e9})
    by_name = {one.name: one for one in cases}
    device = Device(CPU, time.perf_counter)
    return Run(device, Effort(0.0, 0), by_name, True, False, "a note", 0.0, found=ceilings)


def recorded(path, *cases, deadline=float("inf")):
    run = run_of(*cases)
    return record.record(run, record.Recording(path, run), deadline)


def test_what_is_saved_is_read_as_pytests_own(tmp_path):
    path = tmp_path / "results.json"
    rows = (implementation("fast"), implementation("absent", missing="it is not here"))
    assert recorded(path, case("one", *rows)) == (1, 0)
    result = Result.read(path)
    (group,) = result.groups
    assert (group.name, group.op) == ("one shape", "one")
    assert [row.name for row in group.rows] == ["fast"]
    assert group.skipped == {"absent": "it is not here"}
    assert group.rows[0].info["tokens_per_s"] == pytest.approx(6 / group.rows[0].median)
    assert "token/s" in text(result)
    assert "a note" in text(result)


def test_a_failure_is_named_and_stops_nothing(tmp_path, capsys):
    def make(device):
        raise MemoryError("too large")

    path = tmp_path / "results.json"
    cases = (
        case("wrong", implementation("off", factor=3), implementation("right")),
        case("unmade", implementation("never"), make=make),
        case("last", implementation("fine")),
    )
    assert recorded(path, *cases) == (3, 2)
    groups = {group.op: group for group in Result.read(path).groups}
    assert list(groups) == ["wrong", "last"]
    assert groups["wrong"].skipped["off"].startswith("it failed: AssertionError")
    assert "not twice as much" in capsys.readouterr().err


def test_a_case_that_is_measured_again_is_replaced_and_others_stay(tmp_path):
    path = tmp_path / "results.json"
    recorded(path, case("one", implementation("before")), case("two", implementation("stays")))
    recorded(path, case("one", implementation("after")))
    rows = {group.op: [row.name for row in group.rows] for group in Result.read(path).groups}
    assert rows == {"one": ["after"], "two": ["stays"]}


def test_a_file_keeps_what_it_tells_of_its_run_and_is_of_one_machine(tmp_path):
    path = tmp_path / "results.json"
    recorded(path, case("one", implementation("before")))
    later = run_of(case("two", implementation("after")))
    later.note, later.found = "another note", None
    record.record(later, record.Recording(path, later), float("inf"))
    result = Result.read(path)
    assert result.run["note"] == "a note"
    # The limits are not measured again.
    assert result.run["ceilings"]["read"] == later.ceilings().read == 1e9
    assert [group.op for group in result.groups] == ["one", "two"]
    other = run_of(case("two", implementation("after")))
    other.device = Device(CPU, time.process_time)
    with pytest.raises(ValueError, match="another device"):
        record.Recording(path, other)


def test_the_file_is_whole_after_each_case_and_no_case_is_begun_too_late(tmp_path):
    path = tmp_path / "results.json"
    seen = []

    def make(device):
        seen.append(len(json.loads(path.read_text())["benchmarks"]) if path.exists() else 0)
        return Inputs(torch.ones(4))

    cases = [case(f"op {i}", implementation("one"), make=make) for i in range(3)]
    assert recorded(path, *cases) == (3, 0)
    assert seen == [0, 1, 2]
    assert recorded(path, *cases, deadline=time.monotonic() - 1) == (0, 0)


@pytest.mark.parametrize(
    ("factor", "within", "status"), [(2, "60", 0), (3, "60", 1), (2, "-1", record.OUT_OF_TIME)]
)
def test_the_exit_status_tells_how_it_went(tmp_path, monkeypatch, factor, within, status):
    family = Family(lambda plan: [], (case("one", implementation("only", factor)),))
    monkeypatch.setitem(record.SUITES, "kernels", [family])
    words = [str(tmp_path / "results.json"), "--suite", "kernels", "--tiny", "--within", within]
    assert record.main([*words, "--device", "cpu"]) == status


def test_time_counts_from_where_the_process_began(tmp_path, monkeypatch):
    family = Family(lambda plan: [], (case("one", implementation("only")),))
    monkeypatch.setitem(record.SUITES, "kernels", [family])
    words = [str(tmp_path / "results.json"), "--suite", "kernels", "--tiny", "--within", "60"]
    imported = time.monotonic() - 61
    assert record.main([*words, "--device", "cpu"], begun=imported) == record.OUT_OF_TIME


def test_the_clock_starts_before_torch_is_imported():
    code = (
        "import benchmarks, sys, time; assert 'torch' not in sys.modules;"
        "assert 0 <= time.monotonic() - benchmarks.BEGUN < 60"
    )
    subprocess.run([sys.executable, "-c", code], cwd=record.ROOT, check=True)


def test_suites_are_all_there_is():
    parts = record.SUITES["kernels"] + list(record.SUITES["end-to-end"])
    assert record.SUITES["all"] == parts
    assert all(len(suite) > 0 for suite in record.SUITES.values())


class Faulty(Device):
    """A device that takes no more work after some cases."""

    def works(self):
        return not Faulty.lost


def test_after_a_fault_another_process_goes_on_with_the_next_case(tmp_path, monkeypatch):
    def make(device):
        Faulty.lost = True
        return Inputs(torch.ones(4))

    one = (implementation("off", factor=3), implementation("right"))
    families = [
        Family(lambda plan: [], (case("one", *one),)),
        Family(lambda plan: [], (case("two", implementation("faulty"), make=make),)),
        Family(lambda plan: [], (case("three", implementation("fine")),)),
    ]
    monkeypatch.setitem(record.SUITES, "kernels", families)
    monkeypatch.setattr("benchmarks.session.Device", Faulty)
    monkeypatch.setattr(Faulty, "lost", False, raising=False)

    def replaced(program, words):
        Faulty.lost = False
        raise SystemExit(record.main(words[3:]))

    monkeypatch.setattr("os.execv", replaced)
    path = tmp_path / "results.json"
    words = [str(path), "--suite", "kernels", "--tiny", "--within", "60", "--device", "cpu"]
    with pytest.raises(SystemExit) as ended:
        record.main(words)
    # The first one's failure is not forgotten.
    assert ended.value.code == 1
    assert [group.op for group in Result.read(path).groups] == ["one", "two", "three"]


def test_a_device_that_never_works_ends_it(tmp_path, monkeypatch):
    family = Family(lambda plan: [], (case("one", implementation("only")),))
    monkeypatch.setitem(record.SUITES, "kernels", [family])
    monkeypatch.setattr("benchmarks.session.Device", Faulty)
    monkeypatch.setattr(Faulty, "lost", True, raising=False)
    words = [str(tmp_path / "results.json"), "--suite", "kernels", "--tiny", "--device", "cpu"]
    assert record.main(words) == record.OUT_OF_TIME


def test_what_an_option_leaves_out_is_said(tmp_path):
    path = tmp_path / "results.json"
    compiled = Implementation("compiled", "other", lambda x: 2 * x.x, right, compiles=True)
    run = run_of(case("one", implementation("fast"), compiled))
    run.compile = False
    record.record(run, record.Recording(path, run), float("inf"))
    (group,) = Result.read(path).groups
    assert group.skipped == {"compiled": "left out by --no-compile"}
