"""What a task is, and the errors of one that cannot be loaded."""

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import Dataset

Reward = Callable[..., Sequence[float | None]]
Problem = dict[str, Any]  # "prompt": chat messages, "answer": text, and columns of the task's own


class TaskError(ValueError):
    """A task that is unknown, has wrong parameters, or whose problems cannot be loaded."""


@dataclass(frozen=True)
class Task:
    """Problems with a reward that checks their answers.

    Args:
        name: as given to `load_task`.
        train_dataset: columns ``prompt`` (chat messages) and ``answer``, perhaps more; None if
            the task is for evaluation only.
        eval_dataset: the same columns; holds no problem of ``train_dataset``.
        reward_funcs: called as ``f(prompts, completions, completion_ids, **columns)``.
    """

    name: str
    train_dataset: "Dataset | None"
    eval_dataset: "Dataset"
    reward_funcs: list[Reward]


def chat_prompt(question: str, system_prompt: str | None) -> list[dict[str, str]]:
    """The chat messages that ask ``question``; without a system turn if the prompt is empty."""
    system = [{"role": "system", "content": system_prompt}] if system_prompt else []
    return [*system, {"role": "user", "content": question}]


def without(problems: Iterable[Problem], held_out: Iterable[Problem]) -> list[Problem]:
    """The problems whose question (last chat message) is not asked in ``held_out``."""
    taken = {question_of(problem) for problem in held_out}
    return [problem for problem in problems if question_of(problem) not in taken]


def distinct(problems: Iterable[Problem]) -> list[Problem]:
    """The problems in their order, each question once."""
    first: dict[str, Problem] = {}
    for problem in problems:
        first.setdefault(question_of(problem), problem)
    return list(first.values())


def question_of(problem: Problem) -> str:
    """What the problem asks, blind to spacing."""
    return " ".join(problem["prompt"][-1]["content"].split())


def take(problems: list[Problem], size: int | None, seed: int, what: str) -> list[Problem]:
    """``size`` problems drawn without replacement, or all of them, in an order given by ``seed``.

    Raises:
        TaskError: there are fewer.
    """
    if size is not None and size > len(problems):
        raise TaskError(f"{what}: {size} problems wanted, but there are only {len(problems)}")
    return random.Random(seed).sample(problems, len(problems) if size is None else size)


def as_dataset(problems: list[Problem]) -> "Dataset":
    """The problems as a dataset."""
    from datasets import Dataset

    return Dataset.from_list(problems)
