"""Tasks with one right answer a question: data sets of the hub, or local files in their place."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lepo_kernels.suggest import did_you_mean
from lepo_kernels.tasks.choices import as_question
from lepo_kernels.tasks.hub import dataset_unreachable
from lepo_kernels.tasks.requirements import check_reward_installed
from lepo_kernels.tasks.rewards import REWARDS
from lepo_kernels.tasks.shots import MOST_SHOTS, instructed, turns
from lepo_kernels.tasks.sources import SOURCES, Source
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

_READERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}
_DEFAULT_HELD_OUT = 100
# A local copy: a file, or several, or a folder.
Paths = str | Sequence[str]


def load(
    name: str,
    *,
    train_size: int | None,
    eval_size: int | None,
    seed: int,
    path: Paths | None = None,
    eval_path: Paths | None = None,
    subset: str | Sequence[str] | None = None,
    system_prompt: str | None = SYSTEM_PROMPT,
    instruction: str | None = None,
    shots: int = 0,
    reward: str | None = None,
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
        eval_size: number of held-out problems; None for all of the split (of ``dapo``'s tenth,
            too), or for 100 of the training problems if there is no such split.
        seed: shuffles the problems.
        path: what stands for the training split (for the evaluation split if the task is for
            evaluation only): a .jsonl, .json or .parquet file, a list of such, or a folder with a
            copy of the hub's repository, which holds the evaluation split, too.
        eval_path: the same for the evaluation split.
        subset: a part of the data set, or several; None for its default.
        system_prompt: the chat's first turn; None or empty for none.
        instruction: stands after the question, on a line of its own, in the user's turn; None or
            empty for none.
        shots: worked examples before the question, 0 to 4; the first ones of a fixed list.
        reward: ``math_verify`` (for multiple-choice questions ``multiple_choice``), which is the
            default, or ``exact_answer``.
        problem_column: the column that asks, if it has another name than the hub's.
        answer_column: the column with the answer, likewise.

    Raises:
        TaskError: a missing file or column, a row without a question or an answer, too few
            problems, a hub that can't be reached, a parameter that is out of range, or a reward
            whose package is not installed.
    """
    source = SOURCES[name]
    reward = source.rewards[0] if reward is None else reward
    if reward not in source.rewards:
        raise TaskError(
            f"{name}: unknown reward {reward!r}; {did_you_mean(reward, source.rewards)}"
        )
    check_reward_installed(name, reward)
    reader = _Reader(
        name,
        source,
        _configurations(name, source, subset),
        (problem_column or source.problem, answer_column or source.answer),
        _Form(system_prompt, _checked_instruction(name, instruction), _checked_shots(name, shots)),
    )
    if source.train_split is None:
        path, eval_path = None, eval_path or path
    elif eval_path is None and source.eval_split is not None and _is_folder(path):
        eval_path = path
    # A local training file is not paired with the hub's evaluation split.
    apart = eval_path is not None or (source.eval_split is not None and path is None)
    train: list[Problem] = []
    held_out: list[Problem]
    if apart:
        if source.train_split is not None and train_size != 0:
            train = distinct(reader.problems(source.train_split, path))
        problems = distinct(reader.problems(source.eval_split or "train", eval_path))
        held_out = take(problems, eval_size, seed, f"{name} (evaluation)")
    elif source.cut is not None:
        train, cut = reader.cut_problems(path)
        held_out = take(cut, eval_size, seed, f"{name} (held out)")
        # What was not taken of the held-out part is no training problem either.
        train = without(train, cut)
    else:
        train = distinct(reader.problems(source.train_split, path))
        size = _DEFAULT_HELD_OUT if eval_size is None else eval_size
        held_out = take(train, size, seed, f"{name} (held out of the training problems)")
    if train:
        train = take(without(train, held_out), train_size, seed, f"{name} (training)")
    return Task(name, as_dataset(train) if train else None, as_dataset(held_out), [REWARDS[reward]])


def _checked_shots(name: str, shots: Any) -> int:
    if type(shots) is not int or not 0 <= shots <= MOST_SHOTS:
        raise TaskError(f"{name}: shots: expected an int from 0 to {MOST_SHOTS}, got {shots!r}")
    return shots


def _checked_instruction(name: str, instruction: Any) -> str | None:
    if instruction is not None and not isinstance(instruction, str):
        raise TaskError(f"{name}: instruction: expected text, got {instruction!r}")
    return instruction


def _configurations(
    name: str, source: Source, subset: str | Sequence[str] | None
) -> tuple[str | None, ...]:
    """The configurations of the hub's dataset that were asked for, each once."""
    known = source.subsets
    chosen = next(iter(known)) if subset is None else subset
    if subset is not None and len(known) == 1:
        raise TaskError(f"{name}: has no subsets to choose from, got {subset!r}")
    names = [chosen] if isinstance(chosen, str) else list(chosen)
    if not names:
        raise TaskError(f"{name}: subset: expected at least one of {', '.join(known)}")
    for one in names:
        if one not in known:
            raise TaskError(f"{name}: unknown subset {one!r}; {did_you_mean(str(one), known)}")
    return tuple(dict.fromkeys(part for one in names for part in known[one]))


@dataclass(frozen=True)
class _Form:
    """How a question is asked."""

    system_prompt: str | None
    instruction: str | None
    shots: int

    def prompt(self, question: str, source: Source) -> list[dict[str, str]]:
        *system, last = chat_prompt(instructed(question, self.instruction), self.system_prompt)
        return [*system, *turns(source.shots[: self.shots], self.instruction), last]


@dataclass(frozen=True)
class _Reader:
    """Reads the problems of a source from the hub or from local files."""

    name: str
    source: Source
    configurations: tuple[str | None, ...]
    columns: tuple[str, str]
    form: _Form

    def problems(self, split: str | None, path: Paths | None) -> list[Problem]:
        """The problems of a split, or of what stands for it."""
        return [
            problem
            for where, rows in self._tables(split, path)
            for problem in self._problems(where, rows)
        ]

    def cut_problems(self, path: Paths | None) -> tuple[list[Problem], list[Problem]]:
        """Training and held-out problems of a source whose only split is cut."""
        cut = self.source.cut
        assert cut is not None
        train: list[Problem] = []
        held_out: list[Problem] = []
        for where, rows in self._tables(self.source.train_split, path):
            if len(rows) < 2:
                raise TaskError(f"{self.name}: {where} has {len(rows)} rows, too few to cut")
            # Numbered before they are cut, so that a message names the row of the file.
            problems = self._problems(where, rows)
            places = _rows_as_dataset(len(rows)).train_test_split(cut.share, seed=cut.seed)
            train += [problems[row] for row in places["train"]["row"]]
            held_out += [problems[row] for row in places["test"]["row"]]
        return distinct(train), distinct(held_out)

    def _tables(self, split: str | None, path: Paths | None) -> list[tuple[str, Any]]:
        """Tables of rows, each with its name."""
        if path is None or _is_folder(path):
            place = self.source.hub_id if path is None else path
            read = self._from_hub if path is None else self._from_folder
            return [
                (f"{place} ({', '.join(filter(None, (part, split)))})", read(place, part, split))
                for part in self.configurations
            ]
        files = [path] if isinstance(path, str) else list(path)
        return [(file, _read_file(self.name, file)) for file in files]

    def _from_hub(self, hub_id: Any, part: str | None, split: str | None) -> Any:
        name = self.name
        if hub_id is None:
            raise TaskError(f"{name}: needs the parameter path, a .jsonl, .json or .parquet file")
        from datasets import load_dataset

        try:
            reason = dataset_unreachable(hub_id)
            if reason is not None:
                raise ConnectionError(reason)
            return load_dataset(hub_id, part, split=split)
        # The hub's client raises errors of many packages.
        except Exception as error:
            gate = (
                "The hub gives it to those who accepted its terms on its page and are logged in "
                "(hf auth login). "
            )
            raise TaskError(
                f"{name}: can't get {hub_id} from the Hugging Face hub ({error}). "
                f"{gate if self.source.gated else ''}Give a local "
                "copy with the task's parameter path (and eval_path), a .jsonl, .json or .parquet "
                "file, or a folder with the hub's repository; HF_HUB_OFFLINE=1 skips the tries to "
                "reach the hub."
            ) from error

    def _from_folder(self, path: Any, part: str | None, split: str | None) -> Any:
        from datasets import load_dataset

        folder = str(Path(path).expanduser())
        try:
            return load_dataset(folder, part, split=split)
        except Exception as error:
            raise TaskError(
                f"{self.name}: {path} can't be read as a copy of {self.source.hub_id}: {error}"
            ) from error

    def _problems(self, where: str, rows: Any) -> list[Problem]:
        for column in self.columns:
            if column not in rows.column_names:
                raise TaskError(
                    f"{self.name}: there is no column {column!r}; "
                    f"{did_you_mean(column, rows.column_names)}"
                    " (parameters problem_column and answer_column choose others)"
                )
        return [
            self._problem(f"{self.name}: row {number} of {where}", row)
            for number, row in enumerate(rows)
        ]

    def _problem(self, what: str, row: dict[str, Any]) -> Problem:
        problem, answer = self.columns
        if not isinstance(row[problem], str):
            raise TaskError(f"{what}: expected text as {problem!r}, got {row[problem]!r}")
        if not row[problem].strip():
            raise TaskError(f"{what}: has nothing as {problem!r}: {row[problem]!r}")
        if self.source.options is not None:
            return self._choice(what, row)
        right = _answer_text(row[answer], self.source.final_answer)
        if right is None or not right.strip():
            raise TaskError(f"{what}: has nothing as {answer!r}: {row[answer]!r}")
        return {"prompt": self.form.prompt(row[problem], self.source), "answer": right}

    def _choice(self, what: str, row: dict[str, Any]) -> Problem:
        problem, answer = self.columns
        assert self.source.options is not None
        named = {**row, self.source.problem: row[problem], self.source.answer: row[answer]}
        try:
            options = self.source.options(named)
        except KeyError as error:
            raise TaskError(f"{what}: there is no column {error}") from error
        except (TypeError, ValueError) as error:
            raise TaskError(f"{what}: {error}") from error
        question = as_question(row[problem], options.texts)
        return {
            "prompt": self.form.prompt(question, self.source),
            "answer": options.answer,
            "choices": list(options.texts),
        }


def _answer_text(answer: Any, final_answer: Callable[[str], str | None]) -> str | None:
    """The bare answer; None where there is none, or no text nor number."""
    if isinstance(answer, float):
        if not math.isfinite(answer):
            return None
        answer = int(answer) if answer.is_integer() else answer
    return final_answer(str(answer)) if isinstance(answer, str | int | float) else None


def _is_folder(path: Paths | None) -> bool:
    return isinstance(path, str) and Path(path).expanduser().is_dir()


def _rows_as_dataset(count: int) -> Any:
    from datasets import Dataset

    return Dataset.from_dict({"row": list(range(count))})


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
