"""The check on a GPU: what it makes of its steps' output, time and machine."""

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

import tools.gpu_check.__main__ as command
from tools.gpu_check import running
from tools.gpu_check.facts import ROOT
from tools.gpu_check.report import EXIT_STATUS, Outcome, Report
from tools.gpu_check.steps import (
    LOAD,
    SANITIZER_TOOLS,
    SECONDS,
    Step,
    architecture_of,
    counts,
    steps,
)


def report(*ends, has_gpu=True):
    outcomes = [Outcome(f"step {i}", end) for i, end in enumerate(ends)]
    facts = {"device": {"name": "a GPU"} if has_gpu else {}}
    return Report("2026-01-01T00:00:00+00:00", 60.0, facts, has_gpu, outcomes)


@pytest.mark.parametrize(
    ("ends", "status", "exit_status"),
    [
        (("passed", "passed"), "passed", 0),
        (("passed", "failed", "not run"), "failed", 1),
        (("failed", "out of time"), "failed", 1),
        (("passed", "not run"), "incomplete", 3),
        (("passed", "out of time"), "incomplete", 3),
        ((), "incomplete", 3),
    ],
)
def test_the_status_follows_from_the_steps(ends, status, exit_status):
    assert report(*ends).status == status
    assert EXIT_STATUS[status] == exit_status


def test_without_a_gpu_nothing_passes():
    assert report("not run", has_gpu=False).status == "no GPU"
    assert EXIT_STATUS["no GPU"] == 2


def test_outcomes_of_tests_are_counted_even_of_half_a_run():
    output = """
tests/gpu/test_device.py::test_a[philox_words] PASSED                    [ 10%]
tests/gpu/test_device.py::test_b[1 - 2] FAILED                           [ 20%]
tests/gpu/test_device.py::test_c SKIPPED (no GPU: FAILED to find one)    [ 30%]
tests/gpu/test_device.py::test_d PASSED                                  [ 40%]
tests/gpu/test_device.py::test_e """
    assert counts(output) == {"passed": 2, "failed": 1, "skipped": 1}


def test_outcomes_of_tests_in_several_processes_are_counted():
    output = """
tests/ops/test_philox.py::test_a[cuda]
[gw0] [  1%] PASSED tests/ops/test_philox.py::test_a[cuda]
[gw11] [ 99%] FAILED tests/ops/test_philox.py::test_b[cuda]
FAILED tests/ops/test_philox.py::test_b[cuda] - assert 1 == 2
"""
    assert counts(output) == {"passed": 1, "failed": 1}


def test_findings_of_sanitizers_are_counted():
    assert counts("16 calls\n========= ERROR SUMMARY: 0 errors\n") == {"findings": 0}
    assert counts("========= ERROR SUMMARY: 3 errors\n") == {"findings": 3}
    racecheck = "========= RACECHECK SUMMARY: 2 hazards displayed (1 error, 1 warning)\n"
    assert counts(racecheck) == {"findings": 2}


# Words of the tools' own, one of each, with what follows a finding.
@pytest.mark.parametrize(
    "line",
    [
        "Invalid __global__ write of size 4 bytes",
        "Error: Race reported between Write access at kernel+0x40 and Read access at kernel+0x80",
        "Barrier error detected. Divergent thread(s) in warp.",
        "Uninitialized __global__ memory read of size 4 bytes",
    ],
)
def test_findings_of_a_sanitizer_that_was_stopped_are_counted(line):
    finding = f"========= {line}\n=========     at kernel+0x40 in kernels.cuh:7\n"
    assert counts(2 * finding) == {"findings": 2}
    # As many as its summary says, once there is one: it prints no more than some.
    assert counts(2 * finding + "========= ERROR SUMMARY: 30 errors\n") == {"findings": 30}


@pytest.mark.parametrize(
    ("capability", "name"),
    [((8, 0), "8.0"), ((8, 9), "8.9"), ((9, 0), "9.0a"), ((10, 0), "10.0a"), ((12, 0), "12.0")],
)
def test_architectures(capability, name):
    assert architecture_of(capability) == name


def test_steps_build_for_the_device_first_and_end_with_the_sanitizers():
    found = steps("python", "9.0a", "/opt/compute-sanitizer")
    names = ["build", "load", "philox words", "contract", "device", "triton"]
    assert [step.name for step in found] == [*names, *SANITIZER_TOOLS]
    assert found[0].environment["LEPO_CUDA_ARCH_LIST"] == "9.0a"
    assert [step.name for step in found if not step.needs_library] == ["build", "triton"]
    assert [step.name for step in found if step.gives_library] == ["build", "load"]
    assert all(step.name in step.command for step in found[-4:])
    assert not any(step.command for step in steps("python", "9.0a", None)[-4:])


# What is not there, or does not load, must not be taken for what the simulator has shown.
def test_a_library_that_cannot_be_used_ends_the_step_with_its_reason():
    code = f"from lepo_kernels import dispatch; dispatch.MISSING['cuda'] = 'why not'; {LOAD}"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.strip().endswith("why not")
    code = f"from lepo_kernels import dispatch; dispatch.MISSING.pop('cuda', None); {LOAD}"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def python(name, code, needs_library=True, gives_library=False, **environment):
    words = (sys.executable, "-c", code)
    return Step(name, words, environment, needs_library, gives_library)


def run(todo, folder, seconds=60.0):
    found = report()
    running.run_all(todo, found, folder, time.monotonic() + seconds)
    assert json.loads((folder / "gpu_check.json").read_text())["status"] == found.status
    return found.outcomes


def test_steps_run_in_order_and_leave_logs(tmp_path):
    build = python("build", "import os; print('built', os.environ['WHAT'])", False, WHAT="it")
    outcomes = run([build, python("a b", "print('x::t PASSED')")], tmp_path)
    assert [outcome.outcome for outcome in outcomes] == ["passed", "passed"]
    assert outcomes[1].counts == {"passed": 1}
    assert (tmp_path / "build.log").read_text() == "built it\n"
    assert outcomes[1].log == "a-b.log"


def test_a_failure_does_not_stop_what_does_not_need_it(tmp_path):
    failing, fine = python("one", "raise SystemExit(7)"), python("two", "pass")
    outcomes = run([failing, fine, Step("tool", ())], tmp_path)
    assert [(x.outcome, x.reason) for x in outcomes] == [
        ("failed", "exit status 7"),
        ("passed", ""),
        ("not run", "compute-sanitizer was not found"),
    ]
    other = python("other", "pass", needs_library=False)
    build = python("build", "raise SystemExit(1)", False, gives_library=True)
    outcomes = run([build, fine, other], tmp_path)
    reason = "there is no library that can be used"
    assert (outcomes[1].outcome, outcomes[1].reason) == ("not run", reason)
    assert outcomes[2].outcome == "passed"


def test_the_end_of_a_log_of_failure_is_shown(tmp_path, capsys):
    code = "import sys; print(*range(1000), sep='\\n', flush=True); sys.exit('it broke')"
    run([python("one", code), python("two", "print('not shown')")], tmp_path)
    shown = capsys.readouterr().out
    assert "it broke" in shown
    assert "\n    999\n" in shown
    assert "    900\n" not in shown
    assert "not shown" not in shown


# A second is long for the first line of a program, and short to wait for.
def test_a_step_that_takes_too_long_keeps_what_it_said(tmp_path, monkeypatch):
    monkeypatch.setattr(running, "LEAST_SECONDS", 0.5)
    late = "import time; print('x::t PASSED', flush=True); time.sleep(60)"
    outcomes = run([python("late", late), python("next", "pass")], tmp_path, 2.0)
    assert outcomes[0].outcome == "out of time"
    assert outcomes[0].counts == {"passed": 1}
    assert outcomes[1].outcome == "passed"
    outcomes = run([python("late", late.replace("PASSED", "FAILED"))], tmp_path, 2.0)
    assert outcomes[0].outcome == "failed"
    found = "========= Invalid __global__ write of size 4 bytes"
    outcomes = run([python("late", late.replace("x::t PASSED", found))], tmp_path, 2.0)
    assert outcomes[0].outcome == "failed"
    outcomes = run([python("next", "pass")], tmp_path, 0.1)
    assert (outcomes[0].outcome, outcomes[0].reason) == ("not run", "the budget had ended")


def test_an_interruption_ends_what_was_begun(tmp_path, monkeypatch):
    begun = []

    def interrupted(process, timeout):
        begun.append(process)
        raise KeyboardInterrupt

    wait = subprocess.Popen.wait
    monkeypatch.setattr(
        subprocess.Popen,
        "wait",
        lambda self, timeout=None: interrupted(self, timeout) if timeout else wait(self),
    )
    with pytest.raises(KeyboardInterrupt):
        run([python("long", "import time; time.sleep(600)")], tmp_path)
    assert begun[0].poll() == -signal.SIGKILL


def test_a_machine_without_a_gpu_is_told_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("tools.gpu_check.facts.device", dict)
    assert command.main(["--out", str(tmp_path / "out"), "--budget", "1"]) == 2
    found = json.loads((tmp_path / "out" / "gpu_check.json").read_text())
    assert (found["status"], found["exit_status"], found["device"]) == ("no GPU", 2, {})
    assert {step["outcome"] for step in found["steps"]} == {"not run"}
    assert {step["reason"] for step in found["steps"]} == {"no GPU"}
    assert len(found["steps"]) == 10
    assert capsys.readouterr().out.startswith("no GPU")


def test_a_step_is_told_its_time_and_leaves_the_rest_of_the_budget(tmp_path):
    told = python("told", "import sys; print('within', sys.argv[1])")
    told = replace(told, command=(*told.command, SECONDS), share=1.0, until=0.5)
    late = replace(told, name="late", until=0.01)
    seen = []
    found = report()
    running.run_all(
        [told, late, Step("tool", (), missing="no tool")],
        found,
        tmp_path,
        time.monotonic() + found.budget_seconds,
        lambda: seen.append(len(json.loads((tmp_path / found.file).read_text())["steps"])),
    )
    assert [outcome.outcome for outcome in found.outcomes] == ["passed", "not run", "not run"]
    assert found.outcomes[2].reason == "no tool"
    assert (tmp_path / "told.log").read_text() == "within 29\n"
    assert seen == [1, 2, 3]


def test_a_step_that_keeps_its_time_says_how_far_it_came(tmp_path):
    code = "import sys; print('measured 3 of 7 cases; 0 implementations failed'); sys.exit(124)"
    (outcome,) = run([python("measuring", code)], tmp_path)
    assert (outcome.outcome, outcome.reason) == ("out of time", "it stopped by itself")
    assert outcome.counts == {"measured": 3, "cases": 7}


def test_what_runs_anywhere_is_judged_by_its_steps():
    found = report("passed", has_gpu=False)
    found.runs_anywhere = True
    assert found.status == "passed"
    assert found.lines()[0] == "passed: no GPU"
