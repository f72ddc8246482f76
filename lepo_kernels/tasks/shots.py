r"""Worked examples that may stand before a question, as turns of the chat.

Written for this package, so that none of them is in a data set. Each ends as the instruction asks:
the answer within ``\boxed{}``.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

# The question, and the worked answer.
Shot = tuple[str, str]

MATHEMATICS: tuple[Shot, ...] = (
    (
        "A baker fills 7 trays with 12 rolls each and sells all but 9 of the rolls. "
        "How many rolls does she sell?",
        "The trays hold $7 \\cdot 12 = 84$ rolls. Of these 9 are left, so she sells "
        "$84 - 9 = 75$ rolls. The answer is $\\boxed{75}$.",
    ),
    (
        "The line through $(1, 5)$ and $(4, -1)$ meets the $x$-axis at $(a, 0)$. Find $a$.",
        "The slope is $\\frac{-1 - 5}{4 - 1} = -2$, so the line is $y = 5 - 2(x - 1) = 7 - 2x$. "
        "It meets the axis where $7 - 2x = 0$. The answer is $\\boxed{\\frac{7}{2}}$.",
    ),
    (
        "How many integers from 1 to 100 are divisible by 4 or by 6?",
        "There are $25$ multiples of 4 and $16$ multiples of 6. The multiples of 12 are counted "
        "twice, and there are $8$ of them. So there are $25 + 16 - 8 = 33$. "
        "The answer is $\\boxed{33}$.",
    ),
    (
        "Let $x + \\frac{1}{x} = 3$. Find $x^2 + \\frac{1}{x^2}$.",
        "Squaring the sum gives $x^2 + 2 + \\frac{1}{x^2} = 9$. Subtract the 2. "
        "The answer is $\\boxed{7}$.",
    ),
)

CHOICES: tuple[Shot, ...] = (
    (
        "Which of these is a mixture that a magnet can separate?\n"
        "A. salt and water\nB. sand and iron filings\nC. sugar and flour\nD. oil and water\n"
        "Answer with one letter: A, B, C or D.",
        "A magnet attracts iron and neither sand, salt, sugar nor oil. Only the second mixture "
        "holds iron. The answer is $\\boxed{B}$.",
    ),
    (
        "What is the least number of bits that can tell 20 different states apart?\n"
        "A. 3\nB. 4\nC. 5\nD. 20\n"
        "Answer with one letter: A, B, C or D.",
        "With $n$ bits there are $2^n$ states. $2^4 = 16$ is too few and $2^5 = 32$ is enough, so "
        "5 bits are needed. The answer is $\\boxed{C}$.",
    ),
    (
        "A cyclist rides 30 km in 90 minutes. What is her mean speed?\n"
        "A. 20 km/h\nB. 27 km/h\nC. 30 km/h\nD. 45 km/h\n"
        "Answer with one letter: A, B, C or D.",
        "90 minutes are 1.5 hours, and $30 / 1.5 = 20$. The answer is $\\boxed{A}$.",
    ),
    (
        "Which part of a plant cell takes up the light that drives photosynthesis?\n"
        "A. the nucleus\nB. the vacuole\nC. the cell wall\nD. the chloroplast\n"
        "Answer with one letter: A, B, C or D.",
        "Light is taken up by chlorophyll, which lies in the chloroplasts. "
        "The answer is $\\boxed{D}$.",
    ),
)

MOST_SHOTS = 4


def turns(shots: "Sequence[Shot]", instruction: str | None) -> list[dict[str, str]]:
    """Chat messages of the examples, each asked as the question itself will be.

    Args:
        shots: which examples.
        instruction: as for `lepo_kernels.tasks.task.chat_prompt`.
    """
    messages = []
    for question, answer in shots:
        messages.append({"role": "user", "content": instructed(question, instruction)})
        messages.append({"role": "assistant", "content": answer})
    return messages


def instructed(question: str, instruction: str | None) -> str:
    """The question, and after it on a line of its own the instruction, if there is one."""
    return f"{question}\n{instruction}" if instruction else question
