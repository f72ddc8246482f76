"""The file that is saved after each case: what it holds, and what it refuses."""

import time

import pytest
import torch

from benchmarks.device import Device
from benchmarks.results import Result
from benchmarks.saving import SavedResults
from tests.benchmarks.sessions import case, config_of, implementation, run_of


def save(path, run, *cases):
    plugin = SavedResults(path, run)
    for one in cases:
        plugin.save(config_of(run), one.name)
    return plugin


def groups(path):
    return {group.op: [row.name for row in group.rows] for group in Result.read(path).groups}


def test_what_is_saved_is_read_as_pytests_own(tmp_path):
    path, one = tmp_path / "results.json", case("one", "fast", "slow")
    run = run_of(one)
    run.skipped.append({"group": one.name, "name": "absent", "reason": "it is not here"})
    save(path, run, one)
    result = Result.read(path)
    (group,) = result.groups
    assert (group.name, group.op) == ("one shape", "one")
    assert group.rows[0].median == 1.0
    assert group.skipped == {"absent": "it is not here"}
    assert result.run["note"] == "a note"
    assert result.commit == "0123"


def test_a_case_that_is_measured_again_is_replaced_and_others_stay(tmp_path):
    path, one, two = tmp_path / "results.json", case("one", "before"), case("two", "stays")
    save(path, run_of(one, two), one, two)
    again = case("one", "after")
    save(path, run_of(again), again)
    assert groups(path) == {"two": ["stays"], "one": ["after"]}


def test_a_case_that_was_not_run_stays_as_it_was(tmp_path):
    path, one = tmp_path / "results.json", case("one", "before")
    save(path, run_of(one), one)
    before = path.read_text()
    compiled = implementation("compiled", compiles=True)
    later = run_of(type(one)("one", "shape", one.make, (compiled,), 32))
    later.compile = False
    # Nothing was measured, and what an option leaves out is no reason to forget it.
    SavedResults(path, later).save(config_of(later), one.name)
    assert path.read_text() == before
    nothing = tmp_path / "nothing.json"
    SavedResults(nothing, run_of(one)).save(config_of(run_of(one), disabled=True), one.name)
    assert not nothing.exists()


def test_a_file_keeps_what_it_tells_of_its_run_and_is_of_one_machine(tmp_path):
    path, one, two = tmp_path / "results.json", case("one", "before"), case("two", "after")
    save(path, run_of(one), one)
    later = run_of(two, note="another note")
    limits, later.limits = later.limits, None
    save(path, later, two)
    # The limits are not measured again.
    assert later.limits == limits
    assert Result.read(path).run["note"] == "a note"
    assert list(groups(path)) == ["one", "two"]
    other = run_of(two)
    other.device = Device(torch.device("cpu"), time.process_time)
    with pytest.raises(ValueError, match="another device"):
        SavedResults(path, other)


@pytest.mark.parametrize("text", ["{}", "[]", "half a fi"])
def test_another_file_is_not_overwritten(tmp_path, text):
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="holds no results of these benchmarks"):
        SavedResults(path, run_of(case("one", "row")))
    assert path.read_text() == text


def test_what_an_option_leaves_out_is_said(tmp_path):
    path, one = tmp_path / "results.json", case("one", "fast")
    compiled = implementation("compiled", compiles=True)
    one = type(one)("one", "shape", one.make, (*one.implementations, compiled), 32)
    run = run_of(one)
    run.compile = False
    save(path, run, one)
    (group,) = Result.read(path).groups
    assert group.skipped == {"compiled": "left out by --no-compile"}
