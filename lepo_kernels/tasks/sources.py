"""The data sets of the Hugging Face hub that have a name here, and how a row of each is read."""

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lepo_kernels.tasks.answers import last_boxed
from lepo_kernels.tasks.choices import Options
from lepo_kernels.tasks.shots import CHOICES, MATHEMATICS, Shot

Row = Mapping[str, Any]

# ``\boxed 7``, ``\boxed\pi`` and ``\fbox{7}``, which stand in some solutions of MATH.
_BOXED_TOKEN = re.compile(r"\\f?boxed\s*(\\[A-Za-z]+|[^\s{}$])")
_FRAMED = re.compile(r"\\fbox\s*\{")
_SUBJECTS = (
    "algebra",
    "counting_and_probability",
    "geometry",
    "intermediate_algebra",
    "number_theory",
    "prealgebra",
    "precalculus",
)


@dataclass(frozen=True)
class Cut:
    """Held-out problems cut from the only split, as ``datasets``' ``train_test_split`` does it.

    Args:
        share: of the rows, held out.
        seed: which rows.
    """

    share: float
    seed: int


@dataclass(frozen=True)
class Source:
    """Where the problems of a task are.

    Args:
        hub_id: the dataset's name on the hub; None for a task that has only local files.
        subsets: what can be chosen of it -> the configurations on the hub which that is; the
            first is the default.
        train_split: problems to train on; None if the task is for evaluation only.
        eval_split: problems to evaluate on; None if they are cut from the training split.
        problem: the column that asks.
        answer: the column with the answer.
        final_answer: gets the bare answer out of that column; None where there is none.
        options: reads a multiple-choice question's options from a row; None for other questions.
        cut: how the held-out problems are cut from the training split, where the data set's users
            have a convention.
        gated: whether the hub gives it only to those who accepted its terms.
        shots: the worked examples that may stand before a question.
    """

    hub_id: str | None
    subsets: Mapping[str, tuple[str | None, ...]]
    train_split: str | None
    eval_split: str | None
    problem: str
    answer: str
    final_answer: Callable[[str], str | None] = str
    options: Callable[[Row], Options] | None = None
    cut: Cut | None = None
    gated: bool = False
    shots: Sequence[Shot] = MATHEMATICS

    @property
    def rewards(self) -> tuple[str, ...]:
        """The rewards that can check its answers; the first is the default."""
        if self.options is None:
            return ("math_verify", "exact_answer")
        return ("multiple_choice", "exact_answer")


def _after_hashes(answer: str) -> str:
    """GSM8K's answers end in ``#### 1,234``."""
    return answer.rpartition("####")[2].strip().replace(",", "").removeprefix("$")


def _boxed(solution: str) -> str | None:
    r"""MATH's solutions state their answer within ``\boxed{}``."""
    found = last_boxed(_FRAMED.sub(r"\\boxed{", solution))
    if found is not None:
        return found
    tokens = _BOXED_TOKEN.findall(solution)
    return tokens[-1] if tokens else None


def _labelled(row: Row) -> Options:
    """ARC: the answer is one of the labels, which are letters or numbers."""
    texts, labels = row["choices"]["text"], list(row["choices"]["label"])
    if row["answerKey"] not in labels:
        raise ValueError(f"the answer {row['answerKey']!r} is none of the labels {labels}")
    return Options(tuple(texts), labels.index(row["answerKey"]))


def _numbered(row: Row) -> Options:
    """MMLU: the answer is the place of the right option."""
    if type(row["answer"]) is not int:
        raise ValueError(f"expected the place of an option as 'answer', got {row['answer']!r}")
    return Options(tuple(row["choices"]), row["answer"])


def _shuffled(row: Row) -> Options:
    """GPQA: the right option stands apart; the order follows from the texts and nothing else."""
    right = row["Correct Answer"]
    texts = [right, *(row[f"Incorrect Answer {number}"] for number in (1, 2, 3))]

    def place(text: str) -> bytes:
        return hashlib.sha256(f"{row['Question']}\n{text}".encode()).digest()

    texts.sort(key=place)
    return Options(tuple(texts), texts.index(right))


_WHOLE: Mapping[str, tuple[str | None, ...]] = {"default": (None,)}

SOURCES = {
    "gsm8k": Source(
        "openai/gsm8k", {"main": ("main",)}, "train", "test", "question", "answer", _after_hashes
    ),
    "math": Source(
        "EleutherAI/hendrycks_math",
        {"all": _SUBJECTS, **{subject: (subject,) for subject in _SUBJECTS}},
        "train",
        "test",
        "problem",
        "solution",
        _boxed,
    ),
    "math500": Source("HuggingFaceH4/MATH-500", _WHOLE, None, "test", "problem", "answer"),
    "dapo": Source(
        "open-r1/DAPO-Math-17k-Processed",
        {"en": ("en",), "cn": ("cn",), "all": ("all",)},
        "train",
        None,
        "prompt",
        "solution",
        cut=Cut(0.1, seed=42),
    ),
    "aime2024": Source("HuggingFaceH4/aime_2024", _WHOLE, None, "train", "problem", "answer"),
    "aime2025": Source(
        "opencompass/AIME2025",
        {
            "all": ("AIME2025-I", "AIME2025-II"),
            "AIME2025-I": ("AIME2025-I",),
            "AIME2025-II": ("AIME2025-II",),
        },
        None,
        "test",
        "question",
        "answer",
    ),
    "minervamath": Source("math-ai/minervamath", _WHOLE, None, "test", "question", "answer"),
    "amc23": Source("zwhe99/amc23", _WHOLE, None, "test", "question", "answer"),
    "arc-challenge": Source(
        "allenai/ai2_arc",
        {"ARC-Challenge": ("ARC-Challenge",)},
        "train",
        "test",
        "question",
        "answerKey",
        options=_labelled,
        shots=CHOICES,
    ),
    "mmlu-stem": Source(
        "TIGER-Lab/MMLU-STEM",
        _WHOLE,
        None,
        "test",
        "question",
        "answer",
        options=_numbered,
        shots=CHOICES,
    ),
    "gpqa": Source(
        "Idavidrein/gpqa",
        {name: (name,) for name in ("gpqa_diamond", "gpqa_main", "gpqa_extended")},
        None,
        "train",
        "Question",
        "Correct Answer",
        options=_shuffled,
        gated=True,
        shots=CHOICES,
    ),
    "file": Source(None, _WHOLE, "train", None, "problem", "answer"),
}
