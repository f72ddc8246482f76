"""Fetching toolkits: a plain refusal of what is not published, and all or nothing of what is."""

import subprocess

import pytest

from tools import build_wheel, toolkits
from tools.native_build import REFERENCE_TOOLKIT, BuildError


@pytest.fixture
def pip(monkeypatch, tmp_path):
    """A pip that makes a toolkit, or fails in the middle; its calls."""
    calls = []

    def install(*words, **environment):
        calls.append((words, environment))
        target = toolkits.Path(words[words.index("--target") + 1])
        home = target / "nvidia" / "cu13"
        (home / "bin").mkdir(parents=True)
        (home / "bin" / "nvcc").touch()
        if len(calls) in install.failing:
            raise BuildError("failed: pip")
        (home / "include").mkdir()

    install.calls, install.failing = calls, ()
    monkeypatch.setattr(toolkits, "FOLDER", tmp_path / "toolkits")
    monkeypatch.setattr(toolkits, "pip", install)
    return install


@pytest.mark.parametrize(
    ("version", "message"),
    [
        ("13.9", "there are no packages of CUDA 13.9."),
        ("14.0", "there are no packages of CUDA 14.0."),
        ("12.4", "there are no packages of CUDA 12.4 (those of 12.x lack nvcc: docs/wheels.md)."),
    ],
)
def test_what_is_not_published_is_refused_with_the_list(version, message, pip):
    with pytest.raises(BuildError) as error:
        build_wheel.main(["cuda", "--toolkit", version])
    assert message in str(error.value)
    assert "Published: 13.0, 13.1, 13.2, 13.3, 13.4, 13.5. " in str(error.value)
    assert "LEPO_CUDA_HOME" in str(error.value)
    assert pip.calls == []


@pytest.mark.parametrize("version", ["13", "13.4.1", "cu134", "latest"])
def test_what_is_no_version_is_refused(version, pip):
    with pytest.raises(BuildError, match=f"expected a version such as 13.5, got '{version}'"):
        toolkits.fetch_toolkit(version)
    assert pip.calls == []


def test_a_toolkit_is_fetched_once(pip):
    home = toolkits.fetch_toolkit("13.4")
    assert home == toolkits.fetch_toolkit("13.4")
    assert (home / "bin" / "nvcc").is_file()
    ((words, environment),) = pip.calls
    assert words[-1] == "cuda-toolkit[nvcc,crt,nvvm,cudart,cccl]==13.4.*"
    # The locked set pins another version of the runtime, for torch.
    assert environment == {"PIP_CONSTRAINT": ""}


def test_a_fetch_that_breaks_off_leaves_no_toolkit(pip):
    pip.failing = (1,)
    with pytest.raises(BuildError, match=r"could not be fetched(?s:.*)point LEPO_CUDA_HOME"):
        toolkits.fetch_toolkit("13.4")
    assert (toolkits.fetch_toolkit("13.4") / "include").is_dir()
    assert [path.name for path in toolkits.FOLDER.iterdir()] == ["13.4"]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("13.5.0, 13.4.1.0, 13.0.0, 12.4.1, 11.8.0", []),
        ("14.0.0, 13.10.1, 13.10.0, 13.5.0, 12.4.1", ["13.10", "14.0"]),
    ],
)
def test_newer_toolkits_are_noticed(answer, expected, monkeypatch):
    output = f"cuda-toolkit (13.5.0)\nAvailable versions: {answer}\n  INSTALLED: 13.0.2\n"
    done = subprocess.CompletedProcess((), 0, output, "")
    monkeypatch.setattr(toolkits.subprocess, "run", lambda *words, **options: done)
    assert toolkits.unlisted() == expected


def test_an_index_without_an_answer_is_named(monkeypatch):
    done = subprocess.CompletedProcess((), 1, "", "ERROR: no matching distribution")
    monkeypatch.setattr(toolkits.subprocess, "run", lambda *words, **options: done)
    with pytest.raises(BuildError, match=r"the package index gives no versions(?s:.*)no matching"):
        toolkits.unlisted()


def test_the_reference_is_published():
    assert REFERENCE_TOOLKIT in toolkits.PUBLISHED
