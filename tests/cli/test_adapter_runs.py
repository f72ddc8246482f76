"""A run that goes on from an adapter that `lepo train` left."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lepo_kernels.cli.main import main


def letters(completions: list[Any], **_: Any) -> list[float]:
    """The share of letters: a reward that random weights meet in part."""
    texts = [completion[0]["content"] for completion in completions]
    return [sum(map(str.isalpha, text)) / 3 for text in texts]


@pytest.fixture(autouse=True)
def reward_within_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lepo_kernels.tasks.generated.exact_answer", letters)


def test_an_adapters_run_is_trained_on(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = tmp_path / "run", tmp_path / "second"
    words = ["--eval_num_samples", "0", "--learning_rate", "0.01"]
    assert main(["train", str(config), "--lora_r", "2", *words]) == 0
    start = load_file(first / "adapter_model.safetensors")
    assert any("lora_B" in name and bool(tensor.any()) for name, tensor in start.items())

    again = ["train", str(config), "--model", str(first), "--output_dir", str(second), *words]
    assert main([*again, "--lora_r", "2"]) != 0
    said = " ".join(capsys.readouterr().err.split())
    assert "the model has an adapter already" in said
    assert "lora_r" in said

    assert main([*again, "--beta", "0.1"]) == 0
    end = load_file(second / "adapter_model.safetensors")
    assert start.keys() == end.keys()
    assert any(not torch.equal(start[name], end[name]) for name in start)
    logs = [json.loads(line) for line in (second / "metrics.jsonl").read_text().splitlines()]
    # The reference is the adapter that the run starts from; k3 of rounding differences.
    assert next(log["kl"] for log in logs if "kl" in log) == pytest.approx(0.0, abs=1e-6)
