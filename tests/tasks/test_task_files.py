"""Rows of a task's file that could only train on nonsense are named, not turned into text."""

import json
import math
from pathlib import Path
from typing import Any

import datasets
import pytest

from lepo_kernels.tasks import TaskError, load_task

GOOD = {"problem": "What is 3 + 4?", "answer": "7"}


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    if path.suffix == ".parquet":
        datasets.Dataset.from_list(rows).to_parquet(path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"problem": None, "answer": "7"}, "expected text as 'problem', got None"),
        ({"answer": "7"}, "expected text as 'problem', got None"),
        ({"problem": "q", "answer": None}, "has nothing as 'answer': None"),
        ({"problem": "q"}, "has nothing as 'answer': None"),
        ({"problem": " \n", "answer": "7"}, "has nothing as 'problem'"),
        ({"problem": "q", "answer": " "}, "has nothing as 'answer'"),
    ],
)
def test_a_row_with_nothing_in_it(
    tmp_path: Path, ending: str, row: dict[str, Any], message: str
) -> None:
    file = write(tmp_path / f"rows.{ending}", [GOOD, GOOD, row, GOOD])
    with pytest.raises(TaskError, match=rf"^file: row 2 of {file}: {message}"):
        load_task("file", path=file, eval_size=1)
    good = write(tmp_path / f"good.{ending}", [{**GOOD, "problem": str(i)} for i in range(3)])
    with pytest.raises(TaskError, match=rf"^file: row 2 of {file}: {message}"):
        load_task("file", path=good, eval_path=file)


def test_answers_that_are_no_text(tmp_path: Path) -> None:
    for answer in (7, 7.5, True):
        file = write(
            tmp_path / "rows.jsonl",
            [{"problem": f"{answer} {i}", "answer": answer} for i in range(3)],
        )
        task = load_task("file", path=file, eval_size=1)
        assert set(task.eval_dataset["answer"]) == {str(answer)}
    for answer in ([7], {"value": 7}):
        file = write(tmp_path / "rows.jsonl", [{"problem": "q", "answer": answer}])
        with pytest.raises(TaskError, match=r"row 0 of .*: has nothing as 'answer'"):
            load_task("file", path=file)
    file = write(tmp_path / "rows.parquet", [{"problem": "q", "answer": math.nan}])
    with pytest.raises(TaskError, match=r"row 0 of .*: has nothing as 'answer': nan"):
        load_task("file", path=file)


def test_an_answer_that_ends_empty(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", [{"question": "q", "answer": "so it is\n#### "}])
    with pytest.raises(TaskError, match=r"gsm8k: row 0 of .*: has nothing as 'answer'"):
        load_task("gsm8k", path=file)
