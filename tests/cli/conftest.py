"""A tiny model in a folder, and settings that train it within seconds."""

from pathlib import Path

import pytest
import yaml

from tests.tiny import tiny_model, tiny_tokenizer

SETTINGS = {
    "task": "reasoning_gym:chain_sum",
    "task_params": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1},
    "train_size": 16,
    "eval_size": 4,
    "latent_length": 2,
    "max_completion_length": 5,
    "top_k": 8,
    "num_generations": 4,
    "per_device_train_batch_size": 8,
    "per_device_eval_batch_size": 8,
    "learning_rate": "1e-3",
    "max_steps": 2,
    "eval_num_samples": 2,
    "save_strategy": "no",
    "use_cpu": True,
}


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    tiny_model().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def config(tmp_path: Path, model_folder: str) -> Path:
    """A file of settings whose run goes to ``tmp_path / "run"``."""
    file = tmp_path / "config.yaml"
    settings = {**SETTINGS, "model": model_folder, "output_dir": str(tmp_path / "run")}
    file.write_text(yaml.safe_dump(settings))
    return file
