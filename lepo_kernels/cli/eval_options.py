"""What ``lepo eval`` is to evaluate: its lists of tasks, latent lengths and ablations."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from lepo_kernels.cli.errors import UsageError
from lepo_kernels.cli.loading import evaluation_task, task_options
from lepo_kernels.cli.options import EvalOptions, TaskOptions
from lepo_kernels.cli.parsing import Parsed, mapping
from lepo_kernels.suggest import did_you_mean
from lepo_kernels.tasks import Task


def listed(name: str, words: Sequence[Any] | None) -> list[str]:
    """The words of a list option, each perhaps several, separated by commas.

    Raises:
        UsageError: a word is empty, or comes twice.
    """
    found = [part.strip() for word in words or () for part in str(word).split(",")]
    for word in found:
        if not word:
            raise UsageError(f"{name}: expected words separated by commas, one is empty")
        if found.count(word) > 1:
            raise UsageError(f"{name}: {word!r} comes twice")
    return found


def latent_lengths(options: EvalOptions, own: int) -> list[int]:
    """The latent lengths to evaluate with; ``own`` alone where none are listed.

    Raises:
        UsageError: one is no integer, or comes twice.
    """
    words = listed("latent_lengths", options.latent_lengths)
    for word in words:
        if not word.isdecimal():
            raise UsageError(f"latent_lengths: expected integers >= 0, got {word!r}")
    lengths = [int(word) for word in words] or [own]
    if len(set(lengths)) < len(lengths):
        raise UsageError(f"latent_lengths: a length comes twice in {lengths}")
    return lengths


def evaluation_tasks(
    parsed: Parsed, tasks: TaskOptions, options: EvalOptions, seed: int
) -> list[Task]:
    """The tasks to evaluate on.

    The model's own task among them keeps its parameters and its size; of the others
    ``tasks_params`` has the parameters, and ``eval_size`` counts where a person set it.

    Raises:
        UsageError: no task is named, one comes twice, or parameters are of none of them.
        TaskError: see `load_task`.
    """
    tasks = task_options(parsed, tasks)
    if "task" in parsed.cli_given and "eval_task" not in parsed.cli_given:
        tasks = replace(tasks, eval_task=None)
    names = listed("tasks", options.tasks)
    params = mapping("tasks_params", options.tasks_params)
    for name in params:
        if name not in names:
            raise UsageError(f"tasks_params: no task {name!r}; {did_you_mean(name, names)}")
    if not names:
        return [evaluation_task(tasks, seed)]
    return [evaluation_task(_named(name, params, parsed, tasks), seed) for name in names]


def _named(name: str, params: dict[str, Any], parsed: Parsed, tasks: TaskOptions) -> TaskOptions:
    """The options of one of the listed tasks."""
    if name in params:
        given = mapping(f"tasks_params: {name}", params[name])
    else:
        own = {tasks.task: tasks.task_params, tasks.eval_task: tasks.eval_task_params}
        given = mapping("task_params", own.get(name))
    is_own = name in (tasks.task, tasks.eval_task)
    asked = "eval_size" in parsed.cli_given or "eval_size" in parsed.from_file
    return replace(
        tasks,
        eval_task=name,
        eval_task_params=given,
        eval_size=tasks.eval_size if is_own or asked else None,
    )
