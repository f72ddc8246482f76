"""The settings that are saved with a model: ``lepo_config.json`` beside its weights.

`LEPOTrainer` writes it with every model and checkpoint; ``lepo eval``, ``lepo generate`` and a
resumed run start from it. transformers and peft ignore the file. Its sections:

    schema_version, lepo_kernels_version
    prompts     "prompt_format" ("chat" or "text") and the "system_prompt" that training used
    task        the options of the task, as ``lepo train`` takes them; null where none is known
    sampling    how the policy samples
    evaluation  how it is evaluated
    training    the other settings of the run, which a resume is compared with
    data        what a resume is compared with besides: processes, rewards, training problems
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from lepo_kernels.trainer.config import LEPOConfig
from lepo_kernels.version import __version__

FILE = "lepo_config.json"
SCHEMA_VERSION = 1
SECTIONS = ("prompts", "task", "sampling", "evaluation", "training", "data")

# Settings of `LEPOConfig` that say how a policy samples and is evaluated.
SAMPLING = (
    "method",
    "latent_length",
    "latent_suffix",
    "noise",
    "tau",
    "noise_scale",
    "noise_clamp",
    "num_draws",
    "draw_weights",
    "mixture_top_k",
    "latent_end",
    "latent_eos",
    "cold_stop_entropy",
    "cold_stop_steps",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "do_latent_sample",
    "do_discrete_sample",
    "max_completion_length",
    "cache_implementation",
    "compile_rollout",
    "seed",
)
EVALUATION = (
    "reward_weights",
    "reward_timeout",
    "eval_num_samples",
    "eval_greedy",
    "success_threshold",
    "per_device_eval_batch_size",
)
# Settings of TrainingArguments that decide what an update is.
UPDATE = (
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "data_seed",
    "optim",
    "optim_args",
    "optim_target_modules",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "max_grad_norm",
    "lr_scheduler_type",
    "lr_scheduler_kwargs",
    "warmup_steps",
    "warmup_ratio",
)
# Those that do not: how long a run is, and what is done beside its updates.
COURSE = (
    "max_steps",
    "num_train_epochs",
    "bf16",
    "fp16",
    "tf32",
    "eval_strategy",
    "eval_steps",
    "save_strategy",
    "save_steps",
    "save_total_limit",
    "load_best_model_at_end",
    "greater_is_better",
)
# Of `LEPOConfig`'s own: one that is fixed, one of the call, and one that may name code to run.
_NOT_SAVED = ("remove_unused_columns", "resume_from_checkpoint", "model_init_kwargs")


def own_settings() -> list[str]:
    """The names of the settings that `LEPOConfig` adds to transformers', or gives a new default."""
    inherited = {field.name: field for field in dataclasses.fields(TrainingArguments)}
    return [
        field.name
        for field in dataclasses.fields(LEPOConfig)
        if field.init and field is not inherited.get(field.name)
    ]


def settings_of(args: LEPOConfig) -> dict[str, dict[str, Any]]:
    """The sections that follow from the trainer's settings: sampling, evaluation and training."""
    values = args.to_dict()
    apart = {*SAMPLING, *EVALUATION, *_NOT_SAVED}
    training = [name for name in own_settings() if name not in apart]
    names = {"sampling": SAMPLING, "evaluation": EVALUATION, "training": (*training, *UPDATE)}
    names["training"] += COURSE
    return {
        section: {name: values[name] for name in chosen if name in values}
        for section, chosen in names.items()
    }


def prompts_of(*datasets: Any) -> dict[str, str | None]:
    """The form of the prompts, and the system turn that they all share; None where they differ.

    Args:
        datasets: each None, a dataset with a column ``prompt``, or a dict of such.
    """
    forms, systems = set(), set()
    for row in _rows(*datasets):
        prompt = row["prompt"]
        forms.add("text" if isinstance(prompt, str) else "chat")
        first = {} if isinstance(prompt, str) or not prompt else prompt[0]
        said = first.get("content") if first.get("role") == "system" else None
        systems.add(said if isinstance(said, str) else None)
        if len(forms) > 1 and len(systems) > 1:
            break
    return {
        "prompt_format": forms.pop() if len(forms) == 1 else None,
        "system_prompt": systems.pop() if len(systems) == 1 else None,
    }


def data_digest(dataset: Any) -> str | None:
    """A short text that identifies a training set: its length and a hash of its rows."""
    if dataset is None:
        return None
    digest = hashlib.sha256()
    count = 0
    for row in _rows(dataset):
        # What is no JSON (a picture, an object) may have no text that is the same in every process.
        columns = sorted(row.items())
        text = json.dumps(columns, default=lambda value: type(value).__name__, skipkeys=True)
        digest.update(text.encode() + b"\n")
        count += 1
    return f"{count} rows, {digest.hexdigest()[:12]}"


def write_settings(folder: Path | str, sections: dict[str, Any]) -> None:
    """Write ``lepo_config.json`` into a model's folder, whole or not at all.

    Args:
        folder: made if it is not there.
        sections: by name; see the module's text.
    """
    stamp = {"schema_version": SCHEMA_VERSION, "lepo_kernels_version": __version__}
    text = json.dumps({**stamp, **sections}, indent=2, default=str) + "\n"
    target = Path(folder) / FILE
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = target.with_name(f".{FILE}.new")
    fresh.write_text(text, encoding="utf-8")
    os.replace(fresh, target)


def read_settings(file: Path | str) -> dict[str, dict[str, Any]]:
    """The sections of a ``lepo_config.json``, each a mapping; one that is missing is empty.

    Raises:
        ValueError: it cannot be read, is no such file, or a newer release wrote it.
    """
    try:
        found = json.loads(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{file}: can't be read: {error}") from error
    if not isinstance(found, dict) or not isinstance(found.get("schema_version"), int):
        raise ValueError(f"{file}: expected a JSON object with a schema_version")
    if found["schema_version"] > SCHEMA_VERSION:
        raise ValueError(
            f"{file}: written by lepo_kernels {found.get('lepo_kernels_version')} with "
            f"schema_version {found['schema_version']}; this release reads up to {SCHEMA_VERSION}"
        )
    sections = {name: found.get(name) or {} for name in SECTIONS}
    for name, section in sections.items():
        if not isinstance(section, dict):
            raise ValueError(f"{file}: {name}: expected a JSON object, got {section!r}")
    return sections


def _rows(*datasets: Any) -> Iterator[dict[str, Any]]:
    for dataset in datasets:
        if isinstance(dataset, dict):
            yield from _rows(*dataset.values())
        elif dataset is not None:
            for index in range(len(dataset)):
                yield dataset[index]
