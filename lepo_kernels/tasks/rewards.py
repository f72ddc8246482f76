"""Rewards of tasks with one right answer: 1 if the completion's answer is right, else 0.

They follow TRL's convention, ``f(prompts, completions, completion_ids, **columns) -> list``, and
need the column ``answer``. A completion is text, or the chat messages of the model's turn.
"""

import functools
import importlib.util
import os
from collections.abc import Callable, Sequence
from typing import Any

from lepo_kernels.tasks.answer_checker import AnswerChecker
from lepo_kernels.tasks.answers import extract_answer, same_answer
from lepo_kernels.tasks.choices import chosen_option

__all__ = [
    "REWARDS",
    "completion_text",
    "exact_answer",
    "extract_answer",
    "math_verify",
    "multiple_choice",
]

# What math-verify may take for each of its steps; elsewhere each would start a process.
_SOFT_SECONDS = 5 if os.name == "posix" else None
# Text, or chat messages whose content is text or a list of parts.
Completion = str | list[dict[str, Any]]


def exact_answer(
    completions: Sequence[Completion], answer: Sequence[Any], **_: Any
) -> list[float | None]:
    """1 where the extracted answer equals the right one, else 0; see `same_answer`.

    None where the right answer is None: the problem has none, and is for another reward.
    """
    return [
        None if right is None else float(same_answer(completion_text(completion), str(right)))
        for completion, right in zip(completions, answer, strict=True)
    ]


def math_verify(
    completions: Sequence[Completion], answer: Sequence[Any], **_: Any
) -> list[float | None]:
    """1 where the package ``math-verify`` finds the answer mathematically equal, else 0.

    It runs in a process of its own, on whatever thread it is called from. An answer that takes too
    long counts as wrong after 20 seconds at most, and so does one on which ``math-verify`` crashes;
    see `lepo_kernels.tasks.answer_checker`. None as in `exact_answer`.

    Raises:
        ImportError: ``math-verify`` is not installed, or cannot be imported.
    """
    checker = _math_verifier()
    return [
        None if right is None else float(bool(checker.ask(str(right), completion_text(completion))))
        for completion, right in zip(completions, answer, strict=True)
    ]


def multiple_choice(
    completions: Sequence[Completion],
    answer: Sequence[Any],
    choices: Sequence[Sequence[str] | None],
    **_: Any,
) -> list[float | None]:
    """1 where the completion chooses the right option, by its letter or its text, else 0.

    See `lepo_kernels.tasks.choices.chosen_option`. ``answer`` is the letter of the right option,
    ``choices`` are the texts of all; None where either is None.
    """
    return [
        None
        if right is None or texts is None
        else float(chosen_option(completion_text(completion), texts) == right)
        for completion, right, texts in zip(completions, answer, choices, strict=True)
    ]


def completion_text(completion: Completion) -> str:
    """The text of a completion that may be chat messages."""
    if isinstance(completion, str):
        return completion
    return "".join(_content_text(message.get("content")) for message in completion)


def _content_text(content: Any) -> str:
    """The text of a message: its content may be missing, or parts of which some are no text."""
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(part if isinstance(part, str) else part.get("text") or "" for part in content)


@functools.cache
def _math_verifier() -> AnswerChecker:
    if importlib.util.find_spec("math_verify") is None:
        raise ImportError(
            "the reward math_verify needs the package math-verify; run: "
            "pip install 'lepo_kernels[math]', or use the reward exact_answer"
        )
    return AnswerChecker({"checker": "math_verify", "soft_seconds": _SOFT_SECONDS})


REWARDS: dict[str, Callable[..., list[float | None]]] = {
    "exact_answer": exact_answer,
    "math_verify": math_verify,
    "multiple_choice": multiple_choice,
}
