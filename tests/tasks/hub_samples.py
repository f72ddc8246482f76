"""Stands for the hub: small samples of its data sets, written for these tests, in their schemas."""

from pathlib import Path
from typing import Any

import datasets
import pytest

SAMPLES = Path(__file__).with_name("samples")


def sample_file(hub_id: str, config: str | None, split: str) -> Path:
    """Where the sample of a split is."""
    return SAMPLES / hub_id.replace("/", "--") / (config or "default") / f"{split}.jsonl"


def serve(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str | None, str]]:
    """Have ``load_dataset`` give the samples; returns the list of what it will be asked for."""
    asked: list[tuple[str, str | None, str]] = []

    def load_dataset(hub_id: str, config: str | None, *, split: str) -> Any:
        asked.append((hub_id, config, split))
        return datasets.Dataset.from_json(str(sample_file(hub_id, config, split)))

    monkeypatch.setattr("lepo_kernels.tasks.question_sets.dataset_unreachable", lambda hub_id: None)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked
