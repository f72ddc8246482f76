"""Which option a completion chooses."""

import pytest

from lepo_kernels.tasks.choices import as_question, chosen_option
from lepo_kernels.tasks.rewards import multiple_choice

ANIMALS = ["trout", "tree frog", "bat", "eagle"]


@pytest.mark.parametrize(
    ("completion", "letter"),
    [
        (r"so \boxed{C}", "C"),
        (r"\boxed{c}", "C"),
        (r"\boxed{\text{C}}", "C"),
        (r"\boxed{\textbf{(C)}}", "C"),
        (r"\boxed{(C) bat}", "C"),
        (r"\boxed{C. bat}", "C"),
        (r"\boxed{bat}", "C"),
        (r"\boxed{\text{Tree frog}}", "B"),
        (r"not \boxed{A} but \boxed{D}", "D"),
        ("The answer is (B).", "B"),
        ("The answer is B, the tree frog.", "B"),
        ("The answer is A because it swims.", "A"),
        ("The answer is a bat.", "C"),
        ("The answer is A bat.", "C"),
        ("Answer: option D", "D"),
        ("<answer>A</answer>", "A"),
        ("The answer is C\nA B D", "C"),
        # Nothing states an answer: the last letter that stands alone.
        ("A trout is a fish. B has no fur. It must be C", "C"),
        ("I choose C. A bat flies.", "C"),
        ("C", "C"),
        # What is no answer, or more than one.
        (r"\boxed{A or B}", None),
        (r"\boxed{E}", None),
        (r"\boxed{wolf}", None),
        (r"\boxed{}", None),
        ("A bat and a trout", None),
        ("Because DNA", None),
        ("", None),
    ],
)
def test_the_option_that_is_chosen(completion: str, letter: str | None) -> None:
    assert chosen_option(completion, ANIMALS) == letter


def test_a_letter_counts_before_a_text() -> None:
    groups = ["O", "AB", "A", "B"]
    assert chosen_option(r"\boxed{A}", groups) == "A"
    assert chosen_option(r"\boxed{AB}", groups) == "B"
    assert chosen_option(r"\boxed{O}", groups) == "A"


def test_a_text_that_two_options_have_chooses_none() -> None:
    assert chosen_option(r"\boxed{7}", ["7", "7", "8"]) is None
    assert chosen_option(r"\boxed{8}", ["7", "7", "8"]) == "C"


def test_a_blank_option_is_chosen_by_its_letter_alone() -> None:
    assert chosen_option(r"\boxed{}", ["7", " ", "8"]) is None
    assert chosen_option(r"\boxed{.}", ["7", " ", "8"]) is None
    assert chosen_option(r"\boxed{B}", ["7", " ", "8"]) == "B"


def test_letters_end_with_the_options() -> None:
    assert chosen_option("It is C. Or D", ANIMALS[:3]) == "C"
    assert chosen_option(r"\boxed{E}", [*ANIMALS, "wolf"]) == "E"


def test_how_options_are_asked() -> None:
    assert as_question("Which has fur? ", ["trout\n", "bat"]) == (
        "Which has fur?\nA. trout\nB. bat\nAnswer with one letter: A or B."
    )


def test_reward() -> None:
    turn = [{"role": "assistant", "content": "it is B"}]
    assert multiple_choice(
        prompts=["?"] * 4,
        completions=[turn, r"\boxed{bat}", "C", "C"],
        answer=["B", "C", "A", None],
        choices=[ANIMALS, ANIMALS, ANIMALS, ANIMALS],
    ) == [1.0, 1.0, 0.0, None]


@pytest.mark.parametrize("piece", [r"\text", "A ", r"\boxed{", "(", "answer is ", " \n"])
def test_any_text_is_read_at_once(piece: str) -> None:
    """In linear time: quadratic time over a megabyte would not end."""
    chosen_option(piece * (1_000_000 // len(piece)), ANIMALS)
