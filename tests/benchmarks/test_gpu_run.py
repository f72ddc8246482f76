"""The one command for a GPU: its order, what it does without one, and what it leaves."""

import json
import os
import subprocess
import sys
import tarfile

import pytest

from benchmarks import shapes
from benchmarks.gpu_run import __main__ as command
from benchmarks.gpu_run import left_out, steps
from benchmarks.gpu_run.facts import ROOT
from benchmarks.gpu_run.folder import ARCHIVE, AT_HAND, collect
from benchmarks.gpu_run.planning import planned_items
from benchmarks.gpu_run.step import COUNTS, SECONDS
from benchmarks.results import Result


def on_gpu(tmp_path, sanitizer="compute-sanitizer"):
    do = steps.Commands("python", tmp_path / "out", tmp_path / "work")
    return steps.on_gpu(do, (9, 0), sanitizer)


def test_what_matters_most_comes_first(tmp_path):
    found = on_gpu(tmp_path)
    names = [step.name for step in found]
    assert names[:4] == ["build", "load", "smoke", "facts"]
    assert names[4:9] == ["memcheck", "racecheck", "philox words", "contract", "device"]
    assert names[9:12] == ["kernels", "strategies", "triton"]
    assert set(steps.SANITIZER_TOOLS) < set(names)
    assert names[-1] == "report"
    assert found[0].environment["LEPO_CUDA_ARCH_LIST"] == steps.architecture_of((9, 0))


# Both are planned to be done after two minutes, and get as much.
def test_the_first_two_steps_fit_into_two_minutes(tmp_path):
    parts = {step.name: step.part for step in on_gpu(tmp_path)}
    items = planned_items()
    assert sum(parts[name] * 480 for name in items) == pytest.approx(120)
    for name, planned in items.items():
        assert 0 < sum(planned.values()) < parts[name] * 480


def test_a_library_from_elsewhere_is_not_built(tmp_path):
    do = steps.Commands("python", tmp_path / "out", tmp_path / "work")
    found = steps.on_gpu(do, (9, 0), None, build=False)
    assert [step.name for step in found[:2]] == ["load", "smoke"]
    assert sum(step.part for step in found) == pytest.approx(1.0)


def test_a_library_that_cannot_be_used_is_built_after_all(tmp_path, monkeypatch, capsys):
    """And the report says why."""
    todo = []

    def run_all(steps, report, *rest):
        todo.extend(step.name for step in steps)

    def plan_of(load):
        todo.clear()
        monkeypatch.setattr(command, "LOAD", load)
        command.main(["--out", str(tmp_path), "--no-build"])
        return todo[0], capsys.readouterr().out

    gpu = {"device": {"name": "a GPU", "capability": "10.3"}}
    monkeypatch.setattr(command, "facts", lambda: dict(gpu))
    monkeypatch.setattr(command, "run_all", run_all)
    first, shown = plan_of("import sys; sys.exit('it has no code for this GPU')")
    assert first == "build"
    status, why, *_ = shown.splitlines()[-3:]
    assert (status, why) == (
        "incomplete: a GPU",
        "--no-build: it has no code for this GPU: building it after all",
    )
    first, shown = plan_of("pass")
    assert first == "load"
    assert "--no-build" not in shown


def test_the_plan_of_a_gpu_is_shown_with_what_is_missing(tmp_path):
    found = "\n".join(command.plan(on_gpu(tmp_path, sanitizer=None), 480.0))
    assert "38.4 s  smoke" in found
    assert "memcheck: compute-sanitizer was not found" in found
    assert "latent_step, N 512" in found


@pytest.mark.parametrize("where", ["gpu", "cpu"])
def test_the_parts_are_the_whole_budget(tmp_path, where):
    do = steps.Commands("python", tmp_path, tmp_path)
    found = on_gpu(tmp_path) if where == "gpu" else steps.on_cpu(do)
    assert sum(step.part for step in found) == pytest.approx(1.0)
    assert all(step.part > 0 for step in found)
    assert len({step.name for step in found}) == len(found)


def test_nothing_takes_the_simulator_for_the_device(tmp_path):
    found = {step.name: step for step in on_gpu(tmp_path)}
    need = {"load", "philox words", "contract", "device", *steps.SANITIZER_TOOLS}
    assert {name for name, step in found.items() if step.needs_library} == need
    assert {name for name, step in found.items() if step.gives_library} == {"build", "load"}
    assert all(name in found[name].command for name in steps.SANITIZER_TOOLS)
    bare = {step.name: step for step in on_gpu(tmp_path, sanitizer=None)}
    assert not any(bare[name].command for name in steps.SANITIZER_TOOLS)


def test_every_model_is_measured_within_the_time_of_its_step(tmp_path):
    module = "benchmarks.gpu_run.measuring"
    measuring = [step for step in on_gpu(tmp_path) if module in step.command]
    models = set()
    for step in measuring:
        assert step.command[step.command.index("--within") + 1] == SECONDS
        assert COUNTS in step.command
        if "--models" in step.command:
            models |= set(step.command[step.command.index("--models") + 1].split(","))
    assert models == set(shapes.MODELS)


def test_some_steps_alone_share_the_budget(tmp_path):
    found = command.chosen(on_gpu(tmp_path), "load, build")
    assert [step.name for step in found] == ["build", "load"]
    assert sum(step.part for step in found) == pytest.approx(1.0)
    with pytest.raises(ValueError, match="there is no step 'loads'; known: build; load; "):
        command.chosen(on_gpu(tmp_path), "loads")


def test_a_package_that_is_missing_is_named_and_its_steps_are_left_out(tmp_path, monkeypatch):
    gone = {"pytest", "matplotlib"}
    real = left_out.importlib.util.find_spec
    monkeypatch.setattr(
        left_out.importlib.util, "find_spec", lambda name: None if name in gone else real(name)
    )
    assert left_out.here() == ["tests and benchmarks: no pytest", "pictures: no matplotlib"]
    found = {step.name: step for step in on_gpu(tmp_path)}
    assert not found["contract"].command
    assert found["contract"].missing == "pytest is not installed"
    assert found["kernels"].missing == "pytest is not installed"
    assert found["strategies"].command


def test_few_files_are_left_and_the_rest_is_in_an_archive(tmp_path):
    work, out = tmp_path / "work", tmp_path / "out"
    (work / "report").mkdir(parents=True)
    out.mkdir()
    collect(work, out)
    for name in (*AT_HAND, "kernels.log", *(f"report/bars_{i}.png" for i in range(9))):
        (work / name).write_text(name)
    for name in (steps.RESULTS, steps.FACTS):
        (out / name).write_text("{}")
    collect(work, out)
    assert len(list(out.iterdir())) <= 8
    assert (out / "report.md").read_text() == "report/report.md"
    with tarfile.open(out / ARCHIVE) as archive:
        assert {"gpu_run/kernels.log", "gpu_run/report/bars_8.png"} <= set(archive.getnames())


# All of it at tiny sizes: half a minute and more.
@pytest.mark.slow
def test_without_a_gpu_everything_is_run_at_tiny_sizes(tmp_path):
    words = [sys.executable, "-m", "benchmarks.gpu_run", "--dry-run", "--out", str(tmp_path)]
    words += ["--budget", "900"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    # pytest-benchmark times nothing in a worker of xdist, for which this one would pass itself off.
    environment.pop("PYTEST_XDIST_WORKER", None)
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list(tmp_path.iterdir())) <= 8
    found = json.loads((tmp_path / "gpu_run.json").read_text())
    assert found["status"] == "passed"
    assert [step["step"] for step in found["steps"]] == [
        *("smoke", "facts", "philox words", "kernels", "end to end", "report")
    ]
    facts = json.loads((tmp_path / steps.FACTS).read_text())
    assert facts["dry_run"]
    assert all("seconds" in fact for fact in facts["facts"].values())
    ops = {group.op for group in Result.read(tmp_path / steps.RESULTS).groups}
    assert {"philox_words", "training step", "rollout, latent", "rollout, discrete"} <= ops
    assert "token/s" in (tmp_path / "report.md").read_text()
