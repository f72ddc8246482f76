"""Commands train and evaluate on data sets by name."""

import json
from pathlib import Path

import pytest
import yaml

from lepo_kernels.cli.main import main
from lepo_kernels.tasks.sources import SOURCES
from tests.tasks.hub_samples import SAMPLES, sample_file


def local(name: str, split: str | None) -> list[str]:
    """The files of the sample of a split."""
    source = SOURCES[name]
    assert source.hub_id is not None
    assert split is not None
    configurations = next(iter(source.subsets.values()))
    return [str(sample_file(source.hub_id, part, split)) for part in configurations]


@pytest.mark.parametrize("name", ["arc-challenge", "mmlu-stem", "gpqa", "aime2025"])
def test_evaluation_by_name(name: str, model_folder: str, tmp_path: Path) -> None:
    params = {"eval_path": local(name, SOURCES[name].eval_split)}
    output = tmp_path / "found.json"
    words = ["--task", name, "--task_params", json.dumps(params), "--output", str(output)]
    words += ["--latent_length", "2", "--max_completion_length", "5", "--eval_num_samples", "2"]
    assert main(["eval", "--model", model_folder, "--use_cpu", *words]) == 0
    found = json.loads(output.read_text())
    assert [each["task"] for each in found["evaluations"]] == [name]
    assert found["evaluations"][0]["metrics"].keys() >= {"greedy_accuracy", "mean@2", "pass@2"}


def test_training_on_multiple_choice(config: Path, tmp_path: Path) -> None:
    settings = yaml.safe_load(config.read_text())
    paths = {
        "path": local("arc-challenge", "train"),
        "eval_path": local("arc-challenge", "test"),
        "shots": 1,
    }
    settings |= {"task": "arc-challenge", "task_params": paths}
    settings |= {"train_size": None, "eval_size": None, "max_steps": 1}
    config.write_text(yaml.safe_dump(settings))
    assert main(["train", str(config)]) == 0
    said = (tmp_path / "run" / "completions.jsonl").read_text().splitlines()
    assert all("Answer with one letter" in json.loads(line)["prompt"] for line in said)


def test_samples_are_of_named_data_sets() -> None:
    folders = {str(source.hub_id).replace("/", "--") for source in SOURCES.values()}
    assert {folder.name for folder in SAMPLES.iterdir()} == folders - {"None"}
