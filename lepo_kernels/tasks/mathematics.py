"""Mathematical tasks of the Hugging Face hub, each readable from a local file instead."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lepo_kernels.suggest import did_you_mean
from lepo_kernels.tasks.hub import dataset_unreachable
from lepo_kernels.tasks.requirements import check_reward_installed
from lepo_kernels.tasks.rewards import REWARDS
from lepo_kernels.tasks.task import (
    Problem,
    Task,
    TaskError,
    as_dataset,
    chat_prompt,
    distinct,
    take,
    without,
)

SYSTEM_PROMPT = r"Please reason step by step, and put your final answer within \boxed{}."


def _as_it_is(answer: str) -> str:
    return answer


def _after_hashes(answer: str) -> str:
    """GSM8K's answers end in ``#### 1,234``."""
    return answer.rpartition("####")[2].strip().replace(",", "")


@dataclass(frozen=True)
class Source:
    """Where the problems of a task are.

    Args:
        hub_id: the dataset's name on the hub; None for a task that has only local files.
        config: the dataset's configuration there.
        train_split: problems to train on; None if the task is for evaluation only.
        eval_split: problems to evaluate on; None if they are cut from the training split.
        problem: the column that asks.
        answer: the column with the answer.
        final_answer: gets the bare answer out of that column.
    """

    hub_id: str | None
    config: str | None
    train_split: str | None
    eval_split: str | None
    problem: str
    answer: str
    final_answer: Callable[[str], str] = _as_it_is


SOURCES = {
    "gsm8k": Source("openai/gsm8k", "main", "train", "test", "question", "answer", _after_hashes),
    "dapo-math": Source(
        "open-r1/DAPO-Math-17k-Processed", "en", "train", None, "prompt", "solution"
    ),
    "math-500": Source("HuggingFaceH4/MATH-500", None, None, "test", "problem", "answer"),
    "aime24": Source("HuggingFaceH4/aime_2024", None, None, "train", "problem", "answer"),
    "file": Source(None, None, "train", None, "problem", "answer"),
}

_READERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}
_DEFAULT_HELD_OUT = 100


def load(
    name: str,
    *,
    train_size: int | None,
    eval_size: int | None,
    seed: int,
    path: str | None = None,
    eval_path: str | None = None,
    system_prompt: str | None = SYSTEM_PROMPT,
    reward: str = "math_verify",
    problem_column: str | None = None,
    answer_column: str | None = None,
) -> Task:
    """Problems of a hub dataset or of local files.

    No question is in both datasets: where the held-out problems are not a split of their own,
    they are cut from the training problems; where they are, training problems that repeat one
    are left out.

    Args:
        name: a key of ``SOURCES``.
        train_size: number of training problems; None for all.
        eval_size: number of held-out problems; None for all of the split, or for 100 of the
            training problems if there is no such split.
        seed: shuffles the problems.
        path: a .jsonl, .json or .parquet file that stands for the training split (for the
            evaluation split if the task is for evaluation only).
        eval_path: such a file that stands for the evaluation split.
        system_prompt: the chat's first turn; None or empty for none.
        reward: ``math_verify`` or ``exact_answer``.
        problem_column: the column that asks, if it has another name than the hub's.
        answer_column: the column with the answer, likewise.

    Raises:
        TaskError: a missing file or column, a row without a question or an answer, too few
            problems, a hub that can't be reached, or a reward whose package is not installed.
    """
    if reward not in REWARDS:
        raise TaskError(f"{name}: unknown reward {reward!r}; {did_you_mean(reward, REWARDS)}")
    check_reward_installed(name, reward)
    source = SOURCES[name]
    columns = (problem_column or source.problem, answer_column or source.answer)
    if source.train_split is None:
        path, eval_path = None, eval_path or path

    def read(split: str | None, file: str | None) -> list[Problem]:
        rows = _read_hub(name, source, split) if file is None else _read_file(name, file)
        where = file or f"{source.hub_id} ({split})"
        return _problems(name, where, rows, columns, source.final_answer, system_prompt)

    # A local training file is not paired with the hub's evaluation split.
    apart = eval_path is not None or (source.eval_split is not None and path is None)
    train: list[Problem] = []
    if source.train_split is not None and not (apart and train_size == 0):
        train = distinct(read(source.train_split, path))
    if apart:
        held_out = take(
            distinct(read(source.eval_split, eval_path)), eval_size, seed, f"{name} (evaluation)"
        )
    else:
        size = _DEFAULT_HELD_OUT if eval_size is None else eval_size
        held_out = take(train, size, seed, f"{name} (held out of the training problems)")
    if train:
        train = take(without(train, held_out), train_size, seed, f"{name} (training)")
    return Task(name, as_dataset(train) if train else None, as_dataset(held_out), [REWARDS[reward]])


def _problems(
    name: str,
    where: str,
    rows: Any,
    columns: tuple[str, str],
    final_answer: Callable[[str], str],
    system_prompt: str | None,
) -> list[Problem]:
    for column in columns:
        if column not in rows.column_names:
            raise TaskError(
                f"{name}: there is no column {column!r}; {did_you_mean(column, rows.column_names)}"
                " (parameters problem_column and answer_column choose others)"
            )
    problem, answer = columns
    problems = []
    for number, row in enumerate(rows):
        what = f"{name}: row {number} of {where}"
        if not isinstance(row[problem], str):
            raise TaskError(f"{what}: expected text as {problem!r}, got {row[problem]!r}")
        right = _answer_text(row[answer], final_answer)
        for column, text in ((problem, row[problem]), (answer, right)):
            if text is None or not text.strip():
                raise TaskError(f"{what}: has nothing as {column!r}: {row[column]!r}")
        problems.append({"prompt": chat_prompt(row[problem], system_prompt), "answer": right})
    return problems


def _answer_text(answer: Any, final_answer: Callable[[str], str]) -> str | None:
    """The bare answer; None where there is none, or no text nor number."""
    if isinstance(answer, float) and not math.isfinite(answer):
        return None
    return final_answer(str(answer)) if isinstance(answer, str | int | float) else None


def _read_file(name: str, file: str) -> Any:
    from datasets import Dataset

    path = Path(file).expanduser()
    if not path.is_file():
        raise TaskError(f"{name}: there is no file {file}")
    kind = _READERS.get(path.suffix)
    if kind is None:
        raise TaskError(f"{name}: {file} must end in {', '.join(_READERS)}")
    read: Callable[[str], Any] = getattr(Dataset, f"from_{kind}")
    try:
        return read(str(path))
    except Exception as error:
        raise TaskError(f"{name}: {file} can't be read as {kind}: {error}") from error


def _read_hub(name: str, source: Source, split: str | None) -> Any:
    if source.hub_id is None:
        raise TaskError(f"{name}: needs the parameter path, a .jsonl, .json or .parquet file")
    from datasets import load_dataset

    try:
        reason = dataset_unreachable(source.hub_id)
        if reason is not None:
            raise ConnectionError(reason)
        return load_dataset(source.hub_id, source.config, split=split)
    # The hub's client raises errors of many packages.
    except Exception as error:
        raise TaskError(
            f"{name}: can't get {source.hub_id} from the Hugging Face hub ({error}). Give a local "
            "copy with the task's parameter path (and eval_path), a .jsonl, .json or .parquet "
            "file; HF_HUB_OFFLINE=1 skips the tries to reach the hub."
        ) from error
