import importlib.util
import threading

import pytest

from lepo_kernels.tasks import rewards

RIGHT = [
    ("12", "12"),
    ("The answer is 12.", "12"),
    ("3 + 9 = 12", "12"),
    (r"so \boxed{12}, not 13", "12"),
    (r"first \boxed{5}, then \boxed{12}", "12"),
    (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
    ("<answer> 12 </answer> and more 13", "12"),
    ("work\n#### 1,234\nmore 5", "1234"),
    ("12.0", "12"),
    ("\N{MINUS SIGN}4", "-4"),
    ("5 - 9 = -4", "-4"),
    ("1/2", "0.5"),
    ("Blue.", "blue"),
    ("Answer: blue\nbecause", "blue"),
]
WRONG = [
    ("", "12"),
    ("no idea", "12"),
    ("12 or 13", "12"),
    ("112", "12"),
    ("-12", "12"),
    ("20-12", "-12"),
    ("1/0", "12"),
    (r"\boxed{12", "13"),
    ("red", "blue"),
    ("blue and red", "blue"),
]


@pytest.mark.parametrize(("completion", "right"), RIGHT)
def test_right_answers(completion: str, right: str) -> None:
    assert rewards.exact_answer([completion], answer=[right]) == [1.0]


@pytest.mark.parametrize(("completion", "right"), WRONG)
def test_wrong_answers(completion: str, right: str) -> None:
    assert rewards.exact_answer([completion], answer=[right]) == [0.0]


def test_chat_messages_and_other_columns_are_welcome() -> None:
    turn = [{"role": "assistant", "content": "it is 7"}]
    assert rewards.exact_answer(
        prompts=["?", "?"],
        completions=[turn, "8"],
        completion_ids=[[1], [2]],
        answer=["7", "7"],
        problem_index=[0, 1],
    ) == [1.0, 0.0]


def test_content_may_be_parts_or_missing() -> None:
    parts = [{"type": "image"}, {"type": "text", "text": "it is "}, {"type": "text", "text": "7"}]
    completion = [
        {"role": "assistant", "content": None},
        {"role": "tool"},
        {"role": "assistant", "content": parts},
    ]
    assert rewards.exact_answer([completion], answer=["7"]) == [1.0]


def test_answers_may_be_numbers_or_missing() -> None:
    assert rewards.exact_answer(["it is 7", "None", "None"], answer=[7, None, 7.5]) == [
        1.0,
        None,
        0.0,
    ]


def test_math_verify_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    rewards._math_verifier.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"math-verify; run: pip install"):
        rewards.math_verify(["1"], answer=["1"])


def test_math_verify_knows_equal_forms_in_any_thread() -> None:
    pytest.importorskip("math_verify")
    rewards._math_verifier.cache_clear()
    completions = [r"so \boxed{\frac{1}{2}}", "it is 0.5", "The answer is 73.", "none"]
    answers = ["0.5", r"\frac12", "72", "3"]
    expected = [1.0, 1.0, 0.0, 0.0]
    assert rewards.math_verify(completions, answer=answers) == expected
    found: list[float] = []
    thread = threading.Thread(
        target=lambda: found.extend(rewards.math_verify(completions, answer=answers))
    )
    thread.start()
    thread.join()
    assert found == expected
