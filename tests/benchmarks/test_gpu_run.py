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
from benchmarks.gpu_run.step import COUNTS, SECONDS
from benchmarks.results import Result


def on_gpu(tmp_path, sanitizer="compute-sanitizer"):
    do = steps.Commands("python", tmp_path / "out", tmp_path / "work")
    return steps.on_gpu(do, (9, 0), sanitizer)


def test_what_matters_most_comes_first(tmp_path):
    found = on_gpu(tmp_path)
    names = [step.name for step in found]
    assert names[:6] == ["build", "load", "philox words", "contract", "device", "triton"]
    assert names[6:8] == ["kernels", "end to end"]
    assert names[8:12] == list(steps.SANITIZER_TOOLS)
    assert names[-2:] == ["strategies", "report"]
    assert found[0].environment["LEPO_CUDA_ARCH_LIST"] == "9.0a"


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
    (out / steps.RESULTS).write_text("{}")
    collect(work, out)
    assert len(list(out.iterdir())) <= 8
    assert (out / "report.md").read_text() == "report/report.md"
    with tarfile.open(out / ARCHIVE) as archive:
        assert {"gpu_run/kernels.log", "gpu_run/report/bars_8.png"} <= set(archive.getnames())


# All of it at tiny sizes: half a minute and more.
@pytest.mark.slow
def test_without_a_gpu_everything_is_run_at_tiny_sizes(tmp_path):
    words = [sys.executable, "-m", "benchmarks.gpu_run", "--out", str(tmp_path), "--budget", "900"]
    hidden = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    environment = {**os.environ, **hidden}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list(tmp_path.iterdir())) <= 8
    found = json.loads((tmp_path / "gpu_run.json").read_text())
    assert found["status"] == "passed"
    assert [step["step"] for step in found["steps"]] == [
        *("philox words", "kernels", "end to end", "report")
    ]
    ops = {group.op for group in Result.read(tmp_path / steps.RESULTS).groups}
    assert {"philox_words", "training step", "rollout, latent", "rollout, discrete"} <= ops
    assert "token/s" in (tmp_path / "report.md").read_text()
