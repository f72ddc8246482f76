"""Two steps of the real main job: the built-in model, its conversion, and configs/demo.yaml."""

import json
from pathlib import Path

import pytest
import yaml

from lepo_kernels.cli.main import main
from lepo_kernels.cli.options import ALL

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.slow
def test_two_steps_of_the_main_job(tmp_path: Path) -> None:
    words = ["--max_steps", "2", "--eval_size", "4", "--output_dir", str(tmp_path / "run")]
    assert main(["train", str(CONFIGS / "demo.yaml"), *words]) == 0
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    metrics = [json.loads(line) for line in lines]
    assert [row["step"] for row in metrics if "eval_greedy_accuracy" in row] == [0, 2]
    assert [row["step"] for row in metrics if "reward" in row] == [1, 2]
    assert (tmp_path / "run" / "model.safetensors").is_file()
    assert main(["eval", "--model", str(tmp_path / "run"), "--eval_size", "2"]) == 0


@pytest.mark.parametrize("file", sorted(CONFIGS.rglob("*.yaml")), ids=lambda file: file.stem)
def test_settings_are_valid(file: Path) -> None:
    known = {name for kind in ALL for name in kind.__dataclass_fields__}
    assert set(yaml.safe_load(file.read_text())) <= known
