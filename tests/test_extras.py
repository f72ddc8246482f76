"""A package that is missing is said in one line, with the extra that brings it, at once."""

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lepo_kernels import extras

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="cases run in forks")

# Triton is looked for when the package is imported, before the cases block anything.
ALL = sorted(set(extras.EXTRAS) - {"triton"})
TRAIN = "pip install 'lepo_kernels[train]'"


def outcomes(
    folder: Path, cases: list[dict[str, Any]], preload: tuple[str, ...] = ()
) -> list[dict[str, Any]]:
    file = folder / "cases.json"
    file.write_text(json.dumps({"preload": preload, "cases": cases}))
    done = subprocess.run(
        [sys.executable, "-m", "tests.without_packages", str(file)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    found: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_commands_without_any_extra(tmp_path: Path) -> None:
    commands = {"train": TRAIN, "eval": TRAIN, "generate": TRAIN, "bench": "lepo_kernels[bench]'"}
    cases = [{"blocked": ALL, "lepo": [command]} for command in commands]
    for found, remedy in zip(outcomes(tmp_path, cases), commands.values(), strict=True):
        assert found["status"] == 2, found
        assert remedy in found["err"]
        assert found["err"].count("\n") == 1


def test_what_works_without_any_extra(tmp_path: Path) -> None:
    cases = [
        {"blocked": ALL, "lepo": ["--version"]},
        {"blocked": ALL, "lepo": ["--help"]},
        {"blocked": ALL, "lepo": ["info"]},
        {"blocked": ["transformers"], "lepo": ["info"]},
        {"blocked": ALL, "load": "lepo_kernels.tasks"},
    ]
    found = outcomes(tmp_path, cases)
    assert [one["status"] for one in found] == [0] * len(cases), found
    assert found[0]["out"] == f"lepo_kernels {importlib.metadata.version('lepo_kernels')}\n"
    assert "sample_latent" in found[2]["out"]


@pytest.mark.parametrize("module", ["transformers", "accelerate", "datasets", "rich", "yaml"])
def test_one_package_of_the_trainer_is_named(
    tmp_path: Path, module: str, without_one: dict[str, dict[str, Any]]
) -> None:
    package = "pyyaml" if module == "yaml" else module
    expected = f"lepo train: error: the package {package} is not installed; run: {TRAIN}\n"
    assert without_one[module]["err"] == expected


@pytest.fixture(scope="module")
def without_one(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    modules = ["transformers", "accelerate", "datasets", "rich", "yaml"]
    cases = [{"blocked": [module], "lepo": ["train"]} for module in modules]
    found = outcomes(tmp_path_factory.mktemp("cases"), cases)
    return dict(zip(modules, found, strict=True))


def test_imports_from_python_say_so_too(tmp_path: Path) -> None:
    places = [
        "lepo_kernels:LEPOTrainer",
        "lepo_kernels:LEPOConfig",
        "lepo_kernels:latent_generate",
        "lepo_kernels.trainer.trainer",
        "lepo_kernels.trainer.config",
        "lepo_kernels.report.callbacks",
        "lepo_kernels.rollout.decoder",
    ]
    for found in outcomes(tmp_path, [{"blocked": ALL, "load": place} for place in places]):
        assert str(found["status"]).startswith("MissingExtraError: the package"), found
        assert TRAIN in found["status"]


def test_what_only_some_settings_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    problems = tmp_path / "problems.jsonl"
    lines = (f'{{"problem": "{n} + 1?", "answer": "{n + 1}"}}\n' for n in range(4))
    problems.write_text("".join(lines))
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    of_file = ["--task", "file", "--task_params", json.dumps({"path": str(problems)})]
    exact = json.dumps({"path": str(problems), "reward": "exact_answer"})
    sums = ["--task", "reasoning_gym:chain_sum"]
    run = ["train", "--use_cpu", "true", "--output_dir", str(tmp_path / "run")]
    exact_run = [*run, "--task", "file", "--task_params", exact, "--eval_size", "1"]
    # Blocked module, words, and what must be said: before a model is looked for, let alone loaded.
    asked = [
        ("math_verify", [*run, *of_file, "--model", "/no/model"], "'lepo_kernels[math]'"),
        ("math_verify", ["eval", *of_file, "--model", "/no/model"], "'exact_answer'"),
        ("reasoning_gym", [*run, *sums, "--model", "/no/model"], "'lepo_kernels[demo]'"),
        ("tensorboard", [*run, *sums, "--report_to", "tensorboard"], "the package tensorboard"),
        ("peft", [*exact_run, "--model", "/no/model", "--lora_r", "2"], "'lepo_kernels[peft]'"),
        ("peft", ["generate", "--prompt", "x", "--model", str(adapter)], "'lepo_kernels[peft]'"),
        ("gguf", [*exact_run, "--model", "smollm2-135m-instruct"], "run: pip install"),
    ]
    cases = [{"blocked": [module, "tensorboardX"], "lepo": words} for module, words, _ in asked]
    monkeypatch.setenv("LEPO_CACHE", str(tmp_path / "cache"))
    preload = ("lepo_kernels.cli.train", "lepo_kernels.cli.eval", "lepo_kernels.cli.generate")
    found = outcomes(tmp_path, cases, preload)
    for one, (_, _, message) in zip(found, asked, strict=True):
        assert one["status"] == 2, one
        assert message in one["err"], one
        assert one["err"].splitlines()[-1].startswith("lepo ")


def test_the_table_of_extras_is_that_of_the_project() -> None:
    declared: dict[str, set[str]] = {}
    for line in importlib.metadata.requires("lepo_kernels") or ():
        requirement, _, marker = line.partition(";")
        name = requirement.split("[")[0]
        for sign in "<>=!~ ":
            name = name.split(sign)[0]
        if 'extra == "' in marker:
            extra = marker.split('extra == "')[1].split('"')[0]
            declared.setdefault(extra, set()).add(name.lower().replace("_", "-"))
    packages = {"yaml": "pyyaml"}
    for module, extra in extras.EXTRAS.items():
        # Comes with transformers.
        if module != "huggingface_hub":
            assert packages.get(module, module.replace("_", "-")) in declared[extra], module


def test_another_missing_module_is_not_explained_away() -> None:
    with pytest.raises(ModuleNotFoundError, match="no_such_module"), extras.explained():
        import no_such_module  # noqa: F401
    # The package is here, a part of it is not: no extra would bring it.
    with pytest.raises(ModuleNotFoundError, match=r"rich\.no_such_part"), extras.explained():
        import rich.no_such_part  # noqa: F401
