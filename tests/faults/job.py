"""The run that faults are injected into: ``lepo train`` on a tiny model, a second or two long.

It has everything that a resume must bring back: rollouts that serve several updates, evaluations,
an epoch's end, and rewards that draw from a global random generator.
"""

import json
import os
import random
import sys
import threading
import time
from dataclasses import asdict, dataclass
from functools import wraps
from pathlib import Path
from typing import Any

import torch
import yaml
from torch.distributed.elastic.multiprocessing.errors import record

from tests.tiny import tiny_model, tiny_tokenizer

# The run has its steps 2, 4, ... at the ends of rollouts, 4 and 8 at those of epochs.
SETTINGS = {
    "task": "reasoning_gym:chain_sum",
    "task_params": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1},
    "train_size": 8,
    "eval_size": 3,
    "latent_length": 2,
    "max_completion_length": 6,
    "top_k": 8,
    "num_generations": 4,
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 2,
    "steps_per_generation": 2,
    "num_iterations": 2,
    "per_device_eval_batch_size": 8,
    "learning_rate": 1e-3,
    "max_steps": 10,
    "eval_strategy": "steps",
    "eval_steps": 3,
    "eval_num_samples": 1,
    "save_strategy": "steps",
    "save_steps": 1,
    "use_cpu": True,
}

# What a run does, and where: its module, class and method.
PHASES = {
    "rollout": ("lepo_kernels.trainer.collect", "Collector", "_sample"),
    "update": ("lepo_kernels.trainer.trainer", "LEPOTrainer", "compute_loss"),
    "evaluation": ("lepo_kernels.trainer.trainer", "LEPOTrainer", "evaluate"),
    "save": ("lepo_kernels.trainer.trainer", "LEPOTrainer", "_save_checkpoint"),
    "manifest": ("lepo_kernels.trainer.checkpoint_saving", None, "write_manifest"),
    "last save": ("lepo_kernels.trainer.trainer", "LEPOTrainer", "save_model"),
}

FAULT = "LEPO_TEST_FAULT"


@dataclass
class Fault:
    """A signal some time into the n-th time that the run does something.

    Attributes:
        signum: the signal.
        phase: one of `PHASES`.
        nth: 1 is the first time.
        delay: seconds after its begin.
        rank: the process that gets it.
    """

    signum: int
    phase: str
    nth: int
    delay: float
    rank: int = 0


def write_config(folder: Path, settings: dict[str, Any]) -> Path:
    """A tiny model, and the file of settings that trains it."""
    tiny_model().save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump({"model": str(folder / "model"), **settings}))
    return config


def noisy_reward(completions: list[Any], **_: Any) -> list[float]:
    """The share of letters, and a draw from a global generator."""
    texts = [completion[0]["content"] for completion in completions]
    return [sum(map(str.isalpha, text)) / 3 + random.random() for text in texts]


def train(words: list[str], fault: Fault | None) -> int:
    """Run ``lepo train``; its exit status, or that of the signal's way out."""
    import lepo_kernels.tasks.generated as generated
    from lepo_kernels.cli.main import main

    generated.exact_answer = noisy_reward
    torch.set_num_threads(1)
    if fault is not None and int(os.environ.get("RANK", "0")) == fault.rank:
        plant(fault)
    try:
        return main(["train", *words])
    except SystemExit as end:
        return int(str(end.code))


def plant(fault: Fault) -> None:
    """Make the fault happen when its time comes."""
    module, owner, method = PHASES[fault.phase]
    where: Any = sys.modules.get(module) or __import__(module, fromlist=[method])
    if owner is not None:
        where = getattr(where, owner)
    real = getattr(where, method)
    times = 0

    @wraps(real)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        nonlocal times
        times += 1
        if times == fault.nth:
            threading.Thread(target=strike, daemon=True).start()
        return real(*args, **kwargs)

    def strike() -> None:
        time.sleep(fault.delay)
        os.kill(os.getpid(), fault.signum)

    setattr(where, method, wrapped)


def to_environment(fault: Fault | None) -> dict[str, str]:
    """How a process that is started anew learns of its fault."""
    return {} if fault is None else {FAULT: json.dumps(asdict(fault))}


@record
def main() -> None:
    told = os.environ.get(FAULT)
    sys.exit(train(sys.argv[1:], None if told is None else Fault(**json.loads(told))))


if __name__ == "__main__":
    main()
