"""Loading what the options name."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from lepo_kernels.cli.errors import UsageError
from lepo_kernels.cli.options import ModelOptions, TaskOptions
from lepo_kernels.cli.parsing import Parsed, mapping
from lepo_kernels.console import say
from lepo_kernels.tasks import Task, load_task, resolve_model
from lepo_kernels.tasks.hub import ModelNotFoundError, reach_model

DTYPES = ("auto", "float32", "bfloat16", "float16")


def from_pretrained_options(options: ModelOptions, auto: str) -> dict[str, Any]:
    """The arguments of ``from_pretrained`` for a model.

    Args:
        options: the model's options.
        auto: the dtype that "auto" stands for.

    Raises:
        UsageError: an unknown dtype.
    """
    import torch

    if options.dtype not in DTYPES:
        raise UsageError(f"dtype: expected one of {', '.join(DTYPES)}, got {options.dtype!r}")
    chosen: dict[str, Any] = {
        "dtype": getattr(torch, auto if options.dtype == "auto" else options.dtype)
    }
    if options.attn_implementation is not None:
        chosen["attn_implementation"] = options.attn_implementation
    return chosen


def model_name(options: ModelOptions, console: Console) -> str:
    """What ``from_pretrained`` takes for the model; a built-in one is made ready.

    Raises:
        UsageError: no model is named, or one that asks for code of the hub.
        ModelNotInstalledError: see `resolve_model`.
    """
    if options.model is None:
        raise UsageError("model: missing; name a model, such as --model smollm2-135m-instruct")
    kernel = _attention_kernel(Path(options.model) / "config.json")
    if kernel not in (None, options.attn_implementation):
        raise UsageError(
            f"model: config.json of {options.model} asks for the attention kernel {kernel!r} of "
            "the hub, which is code; name it with --attn_implementation if you trust it, or remove "
            "it there"
        )
    return resolve_model(options.model, lambda line: say(console, line))


def _attention_kernel(config: Path) -> str | None:
    """The kernel of the hub that a model's configuration asks for, in any of its parts."""
    try:
        parts = [json.loads(config.read_text(encoding="utf-8"))]
    except (OSError, ValueError):
        return None  # from_pretrained says what is wrong
    while parts:
        part = parts.pop()
        for name, value in part.items() if isinstance(part, dict) else ():
            if name.endswith("attn_implementation") and "/" in str(value):
                return str(value)
            parts.append(value)
    return None


def device_for(use_cpu: bool) -> Any:
    """The GPU if there is one, unless the CPU is asked for."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() and not use_cpu else "cpu")


def load_for_inference(options: ModelOptions, use_cpu: bool, console: Console) -> tuple[Any, Any]:
    """The model, on its device, and its tokenizer.

    Raises:
        UsageError: no model is named, or it cannot be loaded.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    device = device_for(use_cpu)
    auto = "bfloat16" if device.type == "cuda" else "float32"
    name = model_name(options, console)
    arguments = from_pretrained_options(options, auto)
    try:
        arguments = reach_model(name, **arguments)
        # First what is quick: a tokenizer may need a package of its own.
        tokenizer = AutoTokenizer.from_pretrained(name, **reach_model(name))
        model = AutoModelForCausalLM.from_pretrained(name, **arguments)
    except ModelNotFoundError as error:
        raise UsageError(str(error)) from error
    except (OSError, ValueError, ImportError) as error:
        raise UsageError(f"model: can't load {options.model}: {error}") from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model.to(device).eval(), tokenizer


def task_options(parsed: Parsed, options: TaskOptions) -> TaskOptions:
    """The task's options, without the parameters that the file has for another task."""
    below = {**parsed.saved, **parsed.from_file}
    another = "task" in parsed.cli_given and options.task != below.get("task")
    if another and "task_params" not in parsed.cli_given:
        return replace(options, task_params=None)
    return options


def task_seed(options: TaskOptions, seed: int) -> int:
    """The seed that draws and splits the problems: its own, or else the run's ``seed``."""
    return seed if options.task_seed is None else options.task_seed


def training_task(options: TaskOptions, seed: int) -> Task:
    """The task to train on.

    Raises:
        UsageError: no task is named, or it has no training problems.
        TaskError: see `load_task`.
    """
    # With a task of its own for evaluation, nothing is held out of this one.
    apart = options.eval_task is not None
    task = load_task(
        _named(options),
        train_size=options.train_size,
        eval_size=0 if apart else options.eval_size,
        seed=task_seed(options, seed),
        **mapping("task_params", options.task_params),
    )
    if task.train_dataset is None:
        raise UsageError(f"task: {task.name} has no problems to train on")
    return task


def evaluation_task(options: TaskOptions, seed: int) -> Task:
    """The task to evaluate on: ``eval_task``, or the held-out problems of ``task``.

    Raises:
        UsageError: no task is named.
        TaskError: see `load_task`.
    """
    if options.eval_task is None:
        name, params = _named(options), mapping("task_params", options.task_params)
    else:
        name, params = options.eval_task, mapping("eval_task_params", options.eval_task_params)
    seed = task_seed(options, seed)
    return load_task(name, train_size=0, eval_size=options.eval_size, seed=seed, **params)


def _named(options: TaskOptions) -> str:
    if options.task is None:
        raise UsageError("task: missing; name a task, such as --task reasoning_gym:chain_sum")
    return options.task
