"""A tiny problem that a tiny model can learn in seconds, and a trainer for it."""

import pytest
import torch
from datasets import Dataset

from lepo_kernels.trainer.config import LEPOConfig
from lepo_kernels.trainer.trainer import LEPOTrainer
from tests.tiny import tiny_model, tiny_tokenizer


def digits_reward(completions, **_):
    """The share of digits among the first four characters that were said."""
    return [sum(c.isdigit() for c in text[:4]) / 4 for text in completions]


@pytest.fixture(autouse=True)
def one_thread():
    """Bit-for-bit comparisons must not depend on how many cores the machine has."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def make_trainer(tmp_path):
    """Build a trainer on the tiny problem; keyword arguments change its settings."""

    def make(model=None, reward=digits_reward, rows=12, eval_rows=0, **changes):
        arguments = {
            name: changes.pop(name) for name in ("peft_config", "callbacks") if name in changes
        }
        settings = {
            "output_dir": str(tmp_path / "run"),
            "per_device_train_batch_size": 8,
            "num_generations": 4,
            "max_steps": 2,
            "learning_rate": 1e-3,
            "latent_length": 2,
            "max_completion_length": 6,
            "top_k": 8,
            "report_to": "none",
            "save_strategy": "no",
            "disable_tqdm": True,
            "use_cpu": True,
            **changes,
        }
        return LEPOTrainer(
            model=tiny_model() if model is None else model,
            reward_funcs=reward,
            args=LEPOConfig(**settings),
            train_dataset=problems(rows),
            eval_dataset=problems(eval_rows) if eval_rows else None,
            processing_class=tiny_tokenizer(),
            **arguments,
        )

    return make


def problems(rows):
    """Prompts of different lengths, so that padding happens."""
    return Dataset.from_dict(
        {
            "prompt": ["say " + "ab"[i % 2] * (i % 5 + 1) + ":" for i in range(rows)],
            "answer": [str(i) for i in range(rows)],
        }
    )
