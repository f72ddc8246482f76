r"""Finding the answer in a completion, and comparing it: in linear time on any text.

A model that learns writes anything, such as thousands of ``\boxed{`` that never close.
"""

import re
from fractions import Fraction

# What introduces an answer, surest first; the last occurrence in the text counts.
_BOXED = re.compile(r"\\boxed\s*\{")
_BRACE = re.compile(r"[{}]")
_TAG, _END_TAG = "<answer>", "</answer>"
_ANSWER_MARK = re.compile(r"####|\banswer\s*(?:is|:|=)+", re.IGNORECASE)
# A minus sign after a digit is a subtraction, not a sign.
_NUMBER = re.compile(r"(?<![\d.])-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:/\d+)?")
# Python may refuse to convert more digits (`sys.set_int_max_str_digits`), and it takes quadratic
# time; longer numbers are compared as text.
_MOST_DIGITS = 600


def extract_answer(text: str) -> str:
    r"""The part of a completion that states its answer.

    The last ``\boxed{...}``, else the last ``<answer>`` tag, else what follows the last ``####``
    or "answer is" or "answer:" on its line, else all of the text.
    """
    stated = stated_answer(text)
    return text.strip() if stated is None else stated


def stated_answer(text: str) -> str | None:
    """As `extract_answer`, but None where nothing says which part is the answer."""
    for found in (last_boxed(text), _last_tagged(text)):
        if found is not None:
            return found.strip()
    end = None
    for mark in _ANSWER_MARK.finditer(text):
        end = mark.end()
    rest = "" if end is None else text[end:].strip()
    return rest.splitlines()[0].strip() if rest else None


def same_answer(completion: str, right: str) -> bool:
    """Whether the completion's answer is ``right``.

    A numeric answer is compared by value with the last number of the extracted answer; any other
    answer as text, blind to case, spacing and closing punctuation.
    """
    given = extract_answer(completion)
    value = _value_of(right.strip())
    if value is not None:
        numbers = _NUMBER.findall(_plain(given))
        return bool(numbers) and _value_of(numbers[-1]) == value
    return normalized(given) == normalized(right)


def _value_of(text: str) -> Fraction | str | None:
    """The number that the text is, as a text of its own if it is very long; None if it is none."""
    text = _plain(text)
    if _NUMBER.fullmatch(text) is None:
        return None
    over, _, under = text.replace(",", "").partition("/")
    over, under = _shortest(over), _shortest(under or "1")
    if under == "0":
        return None
    if len(over) + len(under) > _MOST_DIGITS:
        return f"{over}/{under}"
    return Fraction(over) / Fraction(under)


def _shortest(number: str) -> str:
    """A decimal number without zeros that say nothing."""
    sign = "-" if number.startswith("-") else ""
    whole, _, decimals = number.removeprefix("-").partition(".")
    whole, decimals = whole.lstrip("0") or "0", decimals.rstrip("0")
    if whole == "0" and not decimals:
        return "0"
    return f"{sign}{whole}.{decimals}" if decimals else f"{sign}{whole}"


def _plain(text: str) -> str:
    """The text with one kind of minus sign and thousands separator."""
    return text.replace("\N{MINUS SIGN}", "-").replace(r"\,", "").replace("{,}", ",")


def normalized(text: str) -> str:
    """The text blind to case, spacing and closing punctuation."""
    return " ".join(text.casefold().split()).strip(" .!\"'`*")


def last_boxed(text: str) -> str | None:
    r"""The content of the last ``\boxed{...}`` whose braces close."""
    starts = {found.end() for found in _BOXED.finditer(text)}
    last: tuple[int, int] | None = None
    open_at: list[int] = []
    # One pass pairs all braces; a brace that closes none counts for nothing.
    for brace in _BRACE.finditer(text) if starts else ():
        if brace[0] == "{":
            open_at.append(brace.end())
        elif open_at:
            start = open_at.pop()
            if start in starts and (last is None or start > last[0]):
                last = start, brace.start()
    return None if last is None else text[last[0] : last[1]]


def _last_tagged(text: str) -> str | None:
    """The content of the last ``<answer>...</answer>``, read from the left."""
    last = None
    end = 0
    while (start := text.find(_TAG, end)) >= 0:
        start += len(_TAG)
        close = text.find(_END_TAG, start)
        if close < 0:
            break
        last = text[start:close]
        end = close + len(_END_TAG)
    return last
