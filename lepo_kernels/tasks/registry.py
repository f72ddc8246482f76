"""The names of tasks."""

import inspect
from typing import Any

from lepo_kernels import extras
from lepo_kernels.suggest import did_you_mean
from lepo_kernels.tasks import generated, question_sets
from lepo_kernels.tasks.sources import SOURCES
from lepo_kernels.tasks.task import Task, TaskError


def task_names() -> list[str]:
    """The names that `load_task` knows; ``reasoning_gym:NAME`` stands for each generator."""
    return [*SOURCES, f"{generated.FAMILY}:NAME"]


def load_task(
    name: str,
    *,
    train_size: int | None = None,
    eval_size: int | None = None,
    seed: int = 0,
    **params: Any,
) -> Task:
    """Load a task: problems to train on, disjoint problems to evaluate on, and a reward.

    Args:
        name: ``reasoning_gym:NAME`` with the name of a generator (see `generated.load`), a data
            set of the hub (a key of ``SOURCES``, such as ``gsm8k``; see `question_sets.load`), or
            ``file`` for problems of your own.
        train_size: number of training problems; None leaves it to the task.
        eval_size: number of held-out problems; None leaves it to the task.
        seed: chooses and shuffles the problems.
        params: the task's own parameters.

    Raises:
        TaskError: the name or a parameter is unknown, or the problems cannot be loaded.
        MissingExtraError: the package ``datasets`` is not installed.
    """
    extras.require("datasets")
    for what, size in (("train_size", train_size), ("eval_size", eval_size)):
        if size is not None and size < 0:
            raise TaskError(f"{what}: expected an int >= 0, got {size}")
    sizes: dict[str, Any] = {"train_size": train_size, "eval_size": eval_size, "seed": seed}
    family, _, generator = name.partition(":")
    if family == generated.FAMILY:
        return generated.load(generator, **sizes, **params)
    if name not in SOURCES:
        raise TaskError(f"there is no task {name!r}; {did_you_mean(name, task_names())}")
    known = set(inspect.signature(question_sets.load).parameters) - {"name", *sizes}
    for param in params:
        if param not in known:
            raise TaskError(f"{name} has no parameter {param!r}; {did_you_mean(param, known)}")
    return question_sets.load(name, **sizes, **params)


def instruction_of(params: Any) -> str | None:
    """What follows each question of a task in the user's turn; None for nothing.

    Args:
        params: the task's own parameters, a mapping; None for none.
    """
    return str(params.get("instruction") or "") or None if isinstance(params, dict) else None


def system_prompt_of(name: Any, params: Any = None) -> str | None:
    """The system turn of a task's problems; None for an unknown task, or where it has none.

    Args:
        name: as given to `load_task`.
        params: the task's own parameters, a mapping; None for none.
    """
    if not isinstance(name, str):
        return None
    if isinstance(params, dict) and "system_prompt" in params:
        return str(params["system_prompt"] or "") or None
    if name.partition(":")[0] == generated.FAMILY:
        return generated.SYSTEM_PROMPT
    return question_sets.SYSTEM_PROMPT if name in SOURCES else None
