"""Answers are found in linear time, and as the plain definitions find them."""

import re
import signal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lepo_kernels.tasks import answers
from lepo_kernels.tasks.answers import extract_answer, same_answer
from lepo_kernels.tasks.rewards import exact_answer


class Counted(str):
    """A text that counts how many characters are looked at one by one, or by a search."""

    looked_at = 0

    def find(self, *arguments):
        found = str.find(self, *arguments)
        start = arguments[1] if len(arguments) > 1 else 0
        self.looked_at += (found if found >= 0 else len(self)) - start
        return found


# Definitions, as slow as they like.
def boxed_by_definition(text):
    for start in reversed([found.end() for found in re.finditer(r"\\boxed\s*\{", text)]):
        depth = 1
        for end in range(start, len(text)):
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            if depth == 0:
                return text[start:end]
    return None


def tagged_by_definition(text):
    found = re.findall(r"<answer>(.*?)</answer>", text, re.DOTALL)
    return found[-1] if found else None


PIECES = st.lists(
    st.sampled_from(["\\boxed{", "\\boxed {", "{", "}", "<answer>", "</answer>", "1", "\n", "a"]),
    max_size=14,
).map("".join)


@given(PIECES)
def test_the_last_box_and_tag_are_those_of_the_definition(text):
    assert answers.last_boxed(text) == boxed_by_definition(text)
    assert answers._last_tagged(text) == tagged_by_definition(text)


@pytest.fixture
def hang_guard():
    """Ends a test that would go on for many minutes, where milliseconds should do."""

    def give_up(*_):
        pytest.fail("this takes more than linear time")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(100)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


# On a million characters quadratic searches take 10 minutes (tags) and more than an hour (boxes).
@pytest.mark.parametrize(
    "piece",
    [
        *(
            "\\boxed{",
            "\\boxed {{",
            "\\boxed",
            "{",
            "}",
            "<answer>",
            "<answer></answer>",
            "</answer>",
        ),
        *(
            "answer ",
            "answer is ",
            "#",
            " ",
            "7",
            "-7",
            "1,",
            "1,111",
            "1.",
            "1/",
            "7/7 ",
            "\\,",
            "{,}",
        ),
    ],
)
def test_any_text_takes_linear_time(piece, hang_guard):
    text = piece * (1_000_000 // len(piece))
    extract_answer(text)
    assert exact_answer([text, f"answer {text}", f"{text}x"], ["7", "x", text]) is not None


def test_searches_pass_over_the_text_once():
    text = Counted("<answer>" * 5000)
    assert answers._last_tagged(text) is None
    assert text.looked_at <= 2 * len(text)


@pytest.mark.parametrize(
    ("given", "right", "same"),
    [
        ("7" * 4301, "7", 0.0),
        ("7" * 5000, "7" * 5000, 1.0),
        ("7" * 5000 + ".0", "0" * 5000 + "7" * 5000, 1.0),
        ("0" * 5000 + "7", "7", 1.0),
        ("7." + "0" * 5000, "7", 1.0),
        ("7." + "0" * 5000 + "1", "7", 0.0),
        ("-" + "0" * 5000, "0", 1.0),
        ("1/" + "3" * 5000, "1/" + "3" * 5000, 1.0),
        ("1/" + "0" * 5000, "1", 0.0),
        (f"{10**400}", f"{Fraction(10**400)}", 1.0),
        ("007", "7", 1.0),
        ("0.50", "1/2", 1.0),
        ("-0.0", "0", 1.0),
        ("1,000.10", "1000.1", 1.0),
        ("6/4", "1.5", 1.0),
        ("1/00", "0", 0.0),
    ],
)
def test_numbers_of_any_length(given, right, same):
    assert exact_answer([given], [right]) == [same]
    assert same_answer(rf"\boxed{{{given}}}", right) == bool(same)
