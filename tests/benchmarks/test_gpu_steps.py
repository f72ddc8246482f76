"""The GPU run: what it makes of its steps' output and time."""

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.gpu_run import running
from benchmarks.gpu_run.facts import ROOT
from benchmarks.gpu_run.report import EXIT_STATUS, FILE, Outcome, Report
from benchmarks.gpu_run.step import COUNTS, SECONDS, Step, counts
from benchmarks.gpu_run.steps import LOAD, architecture_of

NOWHERE = Path("/nowhere/counts")


def report(*ends, has_gpu=True):
    outcomes = [Outcome(f"step {i}", end) for i, end in enumerate(ends)]
    facts = {"device": {"name": "a GPU"} if has_gpu else {}}
    return Report("2026-01-01T00:00:00+00:00", 60.0, facts, outcomes)


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


def test_what_failed_is_told_first():
    found = report("passed", "not run", "failed", "passed", "failed")
    words = [line.split()[:3] for line in found.lines()]
    assert words[0][0] == "failed:"
    assert [(x[0], x[2]) for x in words[1:3]] == [("failed", "2"), ("failed", "4")]
    assert len(words) == 6
    assert report("passed", has_gpu=False).lines()[0] == "passed: no GPU"


TESTS = """
import pytest

def test_a(): pass

def test_b(): assert False

@pytest.mark.skip
def test_c(): pass

@pytest.fixture
def broken():
    yield
    raise RuntimeError

def test_d(broken): pass

def test_hangs():
    import os
    os._exit(9)
"""


def counted(tmp_path, text, *words):
    file, tally = tmp_path / "test_planted.py", tmp_path / "it.counts"
    file.write_text(text)
    options = ("-p", "no:benchmark", "-p", "no:cacheprovider", "--rootdir", str(tmp_path))
    command = (sys.executable, "-m", "benchmarks.gpu_run.counting", str(tally), *options)
    subprocess.run([*command, *words, str(file)], cwd=ROOT, capture_output=True, check=False)
    return counts(tally, "")


def test_outcomes_of_tests_are_counted_even_of_half_a_run(tmp_path):
    # It passes, and fails when its fixture is taken down.
    want = {"passed": 2, "failed": 1, "skipped": 1, "error": 1}
    assert counted(tmp_path, TESTS) == want
    assert counted(tmp_path, "import no_such_module") == want | {"error": 2}


def test_outcomes_of_tests_in_several_processes_are_counted(tmp_path):
    pytest.importorskip("xdist")
    whole = TESTS.partition("def test_hangs")[0]
    want = {"passed": 2, "failed": 1, "skipped": 1, "error": 1}
    assert counted(tmp_path, whole, "-n", "2") == want


def test_findings_of_sanitizers_are_counted():
    assert counts(NOWHERE, "16 calls\n========= ERROR SUMMARY: 0 errors\n") == {"findings": 0}
    assert counts(NOWHERE, "========= ERROR SUMMARY: 3 errors\n") == {"findings": 3}
    racecheck = "========= RACECHECK SUMMARY: 2 hazards displayed (1 error, 1 warning)\n"
    assert counts(NOWHERE, racecheck) == {"findings": 2}


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
    assert counts(NOWHERE, 2 * finding) == {"findings": 2}
    # As many as its summary says, once there is one: it prints no more than some.
    assert counts(NOWHERE, 2 * finding + "========= ERROR SUMMARY: 30 errors\n") == {"findings": 30}


def test_architectures():
    assert [architecture_of(x) for x in ((8, 9), (10, 3))] == ["8.9", "10.3"]


# What is not there, does not load, or has no code for the GPU at hand must not be taken for what
# the simulator has shown.
@pytest.mark.parametrize(
    ("missing", "no_code", "ends"),
    [("why not", None, "why not"), (None, "no code for it", "no code for it"), (None, None, "")],
)
def test_a_library_that_cannot_be_used_ends_the_step_with_its_reason(missing, no_code, ends):
    table = {} if missing is None else {"cuda": missing}
    code = f"""
from lepo_kernels import dispatch
dispatch.MISSING = {table!r}
dispatch.why_no_code = lambda name, device: {no_code!r} if device.type == name else "other"
{LOAD}"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == (1 if ends else 0)
    assert done.stderr.strip().endswith(ends)


def python(name, code, needs_library=True, gives_library=False, part=1.0, **environment):
    words = (sys.executable, "-c", code)
    return Step(name, part, words, environment, needs_library, gives_library)


def says(name, more="", part=1.0, **numbers):
    """A step that counts, and then does something."""
    code = f"import sys; open(sys.argv[1], 'w').write({json.dumps(numbers)!r}){more}"
    step = python(name, code, part=part)
    return replace(step, command=(*step.command, COUNTS))


def run(todo, folder, seconds=60.0):
    found = report()
    found.budget_seconds = seconds
    running.run_all(todo, found, folder, time.monotonic() + seconds)
    assert json.loads((folder / FILE).read_text())["status"] == found.status
    return found.outcomes


def test_steps_run_in_order_and_leave_logs(tmp_path):
    build = python("build", "import os; print('built', os.environ['WHAT'])", False, WHAT="it")
    outcomes = run([build, says("a b", passed=1)], tmp_path)
    assert [outcome.outcome for outcome in outcomes] == ["passed", "passed"]
    assert outcomes[1].counts == {"passed": 1}
    assert (tmp_path / "build.log").read_text() == "built it\n"
    assert outcomes[1].log == "a-b.log"


def test_a_failure_does_not_stop_what_does_not_need_it(tmp_path):
    failing, fine = python("one", "raise SystemExit(7)"), python("two", "pass")
    outcomes = run([failing, fine, Step("tool", 1.0, (), missing="no tool")], tmp_path)
    assert [(x.outcome, x.reason) for x in outcomes] == [
        ("failed", "exit status 7"),
        ("passed", ""),
        ("not run", "no tool"),
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


# Half a second is long for the first line of a program, and short to wait for.
def test_a_step_that_takes_too_long_keeps_what_it_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(running, "LEAST_SECONDS", 0.5)
    late = "; import time; time.sleep(60)"
    outcomes = run([says("late", late, 0.5, passed=1), python("next", "pass")], tmp_path, 6.0)
    assert outcomes[0].outcome == "out of time"
    assert outcomes[0].counts == {"passed": 1}
    assert outcomes[1].outcome == "passed"
    (outcome,) = run([says("late two", late, failed=1)], tmp_path, 3.0)
    assert outcome.outcome == "failed"
    found = "print('========= Invalid __global__ write of size 4 bytes', flush=True)"
    (outcome,) = run([python("late three", found + late)], tmp_path, 3.0)
    assert outcome.outcome == "failed"
    (outcome,) = run([python("next", "pass")], tmp_path, 0.1)
    assert (outcome.outcome, outcome.reason) == ("not run", "its part of the budget had ended")


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


def test_a_step_is_told_its_time_and_leaves_the_rest_of_the_budget(tmp_path):
    told = python("told", "import sys; print('within', sys.argv[1])", part=0.5)
    told = replace(told, command=(*told.command, SECONDS))
    late = replace(told, name="late", part=-0.49)
    seen = []
    found = report()
    running.run_all(
        [told, late, Step("tool", 0.5, (), missing="no tool")],
        found,
        tmp_path,
        time.monotonic() + found.budget_seconds,
        lambda: seen.append(len(json.loads((tmp_path / FILE).read_text())["steps"])),
    )
    assert [outcome.outcome for outcome in found.outcomes] == ["passed", "not run", "not run"]
    assert found.outcomes[2].reason == "no tool"
    assert (tmp_path / "told.log").read_text() == "within 29\n"
    assert seen == [1, 2, 3]


def test_time_that_a_step_leaves_is_there_for_the_next(tmp_path):
    code = "import sys; print('within', sys.argv[1])"
    some = [python(name, code, part=0.5) for name in ("one", "two")]
    run([replace(x, command=(*x.command, SECONDS)) for x in some], tmp_path, 1000.0)
    assert (tmp_path / "one.log").read_text() == "within 499\n"
    assert int((tmp_path / "two.log").read_text().split()[1]) > 900


def test_a_step_that_keeps_its_time_says_how_far_it_came(tmp_path):
    step = says("measuring", "; sys.exit(124)", **{"cases measured": 3, "cases": 7})
    (outcome,) = run([step], tmp_path)
    assert (outcome.outcome, outcome.reason) == ("out of time", "it stopped by itself")
    assert outcome.counts == {"cases measured": 3, "cases": 7}
