"""Rewards of tasks with one right answer: 1 if the completion's answer is right, else 0.

They follow TRL's convention, ``f(prompts, completions, completion_ids, **columns) -> list``, and
need the column ``answer``. A completion is text, or the chat messages of the model's turn.
"""

import functools
import importlib.util
import logging
import re
import threading
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

Completion = str | list[dict[str, str]]

# What introduces an answer, surest first; the last occurrence in the text counts.
_ANSWER_TAG = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_ANSWER_MARK = re.compile(r"####|\banswer\s*(?:is|:|=)+", re.IGNORECASE)
# A minus sign after a digit is a subtraction, not a sign.
_NUMBER = re.compile(r"(?<![\d.])-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:/\d+)?")
_VERIFY_SECONDS = 5


def exact_answer(completions: Sequence[Completion], answer: Sequence[str], **_: Any) -> list[float]:
    """1 where the extracted answer equals the right one, else 0; see `same_answer`."""
    return [
        float(same_answer(completion_text(completion), right))
        for completion, right in zip(completions, answer, strict=True)
    ]


def math_verify(completions: Sequence[Completion], answer: Sequence[str], **_: Any) -> list[float]:
    """1 where the package ``math-verify`` finds the answer mathematically equal, else 0.

    Raises:
        ImportError: ``math-verify`` is not installed.
    """
    equal = _math_verifier()
    return [
        float(equal(right, completion_text(completion)))
        for completion, right in zip(completions, answer, strict=True)
    ]


def completion_text(completion: Completion) -> str:
    """The text of a completion that may be chat messages."""
    if isinstance(completion, str):
        return completion
    return "".join(message["content"] for message in completion)


def extract_answer(text: str) -> str:
    r"""The part of a completion that states its answer.

    The last ``\boxed{...}``, else the last ``<answer>`` tag, else what follows the last ``####``
    or "answer is" or "answer:" on its line, else all of the text.
    """
    boxed = _last_boxed(text)
    if boxed is not None:
        return boxed.strip()
    tags = _ANSWER_TAG.findall(text)
    if tags:
        return str(tags[-1]).strip()
    marks = list(_ANSWER_MARK.finditer(text))
    rest = text[marks[-1].end() :].strip() if marks else ""
    return rest.splitlines()[0].strip() if rest else text.strip()


def same_answer(completion: str, right: str) -> bool:
    """Whether the completion's answer is ``right``.

    A numeric answer is compared by value with the last number of the extracted answer; any other
    answer as text, blind to case, spacing and closing punctuation.
    """
    given = extract_answer(completion)
    value = _as_number(right.strip())
    if value is not None:
        numbers = _NUMBER.findall(_plain(given))
        return bool(numbers) and _as_number(numbers[-1]) == value
    return _normalized(given) == _normalized(right)


def _as_number(text: str) -> Fraction | None:
    text = _plain(text)
    if _NUMBER.fullmatch(text) is None:
        return None
    try:
        if "/" in text:
            over, under = text.split("/")
            return Fraction(over.replace(",", "")) / Fraction(under)
        return Fraction(text.replace(",", ""))
    except ZeroDivisionError:
        return None


def _plain(text: str) -> str:
    """The text with one kind of minus sign and thousands separator."""
    return text.replace("\N{MINUS SIGN}", "-").replace(r"\,", "").replace("{,}", ",")


def _normalized(text: str) -> str:
    return " ".join(text.casefold().split()).strip(" .!\"'`*")


def _last_boxed(text: str) -> str | None:
    r"""The content of the last ``\boxed{...}`` whose braces close."""
    for start in reversed([found.end() for found in re.finditer(r"\\boxed\s*\{", text)]):
        depth = 1
        for end in range(start, len(text)):
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            if depth == 0:
                return text[start:end]
    return None


@functools.cache
def _math_verifier() -> Callable[[str, str], bool]:
    """``equal(right, completion)`` by math-verify."""
    if importlib.util.find_spec("math_verify") is None:
        raise ImportError(
            "the reward math_verify needs the package math-verify; run: "
            "pip install 'lepo_kernels[math]', or use the reward exact_answer"
        )
    from math_verify import parse, verify

    # It warns once a call that it was told to run without a timeout.
    logging.getLogger("math_verify").setLevel(logging.ERROR)

    def equal(right: str, completion: str) -> bool:
        # Its timeouts are Unix alarms, which only the main thread may set.
        in_main = threading.current_thread() is threading.main_thread()
        seconds = _VERIFY_SECONDS if in_main else None
        gold = parse(rf"\boxed{{{right}}}", parsing_timeout=seconds)
        given = parse(completion, parsing_timeout=seconds)
        return bool(verify(gold, given, timeout_seconds=seconds))

    return equal


REWARDS: dict[str, Callable[..., list[float]]] = {
    "exact_answer": exact_answer,
    "math_verify": math_verify,
}
