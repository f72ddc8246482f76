import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from lepo_kernels.tasks import TaskError, load_task, question_sets
from lepo_kernels.tasks.generated import SYSTEM_PROMPT

DIGITS = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}


def questions(dataset: Any) -> list[str]:
    return [prompt[-1]["content"] for prompt in dataset["prompt"]]


def load_sums(**changes: Any) -> Any:
    options = {"train_size": 60, "eval_size": 40, "seed": 0, **DIGITS, **changes}
    return load_task("reasoning_gym:chain_sum", **options)


def test_generated_problems_are_disjoint_even_where_they_repeat() -> None:
    # Two terms of one digit make 200 problems, so 500 draws meet every held-out one.
    task = load_sums(train_size=500, eval_size=80)
    train, held_out = questions(task.train_dataset), questions(task.eval_dataset)
    assert len(train) == 500
    assert len(set(train)) < len(train)
    assert len(set(held_out)) == len(held_out) == 80
    assert not set(train) & set(held_out)


def test_generated_answers_are_right() -> None:
    task = load_sums()
    for problem in task.train_dataset:
        sum_text = problem["prompt"][-1]["content"].partition("problem: ")[2].rstrip(" =")
        assert str(eval(sum_text)) == problem["answer"]
        assert task.reward_funcs[0]([problem["answer"]], answer=[problem["answer"]]) == [1.0]


def test_seed_decides_and_neighbours_share_little() -> None:
    wide = {"max_digits": 4, "min_digits": 4}
    zero, again, one = (load_sums(seed=seed, **wide) for seed in (0, 0, 1))
    assert questions(zero.train_dataset) == questions(again.train_dataset)
    assert not set(questions(zero.train_dataset)) & set(questions(one.train_dataset))


@pytest.mark.parametrize(
    ("given", "roles"),
    [({}, ["system", "user"]), ({"system_prompt": ""}, ["user"])],
)
def test_system_prompt(given: dict[str, str], roles: list[str]) -> None:
    messages = load_sums(**given).eval_dataset[0]["prompt"]
    assert [message["role"] for message in messages] == roles
    assert (messages[0]["content"] == SYSTEM_PROMPT) == (not given)


def test_generators_own_score() -> None:
    task = load_sums(reward="score_answer")
    problem = task.eval_dataset[0]
    columns = {key: [problem[key]] * 2 for key in ("answer", "problem_index")}
    scores = task.reward_funcs[0](["it is: x", f"The answer is {problem['answer']}"], **columns)
    assert scores[1] == 1.0
    assert scores[0] < 0.1


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("reasoning_gym:chain_sums", {}, "did you mean 'chain_sum'"),
        ("reasoning_gym:chain_sum", {"max_term": 2}, "did you mean 'max_terms'"),
        ("reasoning_gym:chain_sum", {"reward": "exact"}, "unknown reward 'exact'"),
        ("reasoning_gym:chain_sum", {"min_terms": 9}, "max_terms must be >= min_terms"),
        ("reasoning_gym:chain_sum", {"train_size": -1}, "train_size: expected"),
        ("reasoning_gym:chain_sum", {**DIGITS, "eval_size": 300}, "300 wanted, 200 found"),
        ("gsm9k", {}, "did you mean 'gsm8k'"),
        ("gsm8k", {"pth": "x"}, "did you mean 'path'"),
        ("gsm8k", {"path": "/nowhere.jsonl"}, "there is no file /nowhere.jsonl"),
        ("gsm8k", {"reward": "exact_answers"}, "did you mean 'exact_answer'"),
        ("file", {}, "needs the parameter path"),
    ],
)
def test_wrong_names_and_parameters(name: str, params: dict[str, Any], message: str) -> None:
    with pytest.raises(TaskError, match=message):
        load_task(name, **params)


def write_problems(path: Path, count: int, problem: str, answer: str, first: int = 0) -> str:
    rows = [
        {problem: f"What is {i} + 1?", answer: f"so\n#### {i + 1}"}
        for i in range(first, first + count)
    ]
    if path.suffix == ".parquet":
        datasets.Dataset.from_list(rows).to_parquet(path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_local_files_stand_for_the_hub(tmp_path: Path, ending: str) -> None:
    # Two of the held-out problems also stand among the training problems.
    train = write_problems(tmp_path / f"train.{ending}", 10, "question", "answer")
    test = write_problems(tmp_path / f"test.{ending}", 5, "question", "answer", first=8)
    task = load_task("gsm8k", path=train, eval_path=test, reward="exact_answer")
    assert len(task.eval_dataset) == 5
    assert len(task.train_dataset) == 8
    assert not set(questions(task.train_dataset)) & set(questions(task.eval_dataset))
    answers = dict(zip(questions(task.eval_dataset), task.eval_dataset["answer"], strict=True))
    assert answers["What is 9 + 1?"] == "10"


def test_held_out_problems_are_cut_from_a_single_file(tmp_path: Path) -> None:
    file = write_problems(tmp_path / "all.jsonl", 20, "q", "a")
    columns = {"problem_column": "q", "answer_column": "a"}
    task = load_task("file", path=file, eval_size=6, train_size=10, **columns)
    assert len(task.eval_dataset) == 6
    assert len(task.train_dataset) == 10
    assert not set(questions(task.train_dataset)) & set(questions(task.eval_dataset))
    with pytest.raises(TaskError, match="15 problems wanted, but there are only 14"):
        load_task("file", path=file, eval_size=6, train_size=15, **columns)
    with pytest.raises(TaskError, match="no column 'problem'"):
        load_task("file", path=file)


def test_evaluation_only_task_from_a_file(tmp_path: Path) -> None:
    task = load_task("aime2024", path=write_problems(tmp_path / "a.jsonl", 3, "problem", "answer"))
    assert task.train_dataset is None
    assert len(task.eval_dataset) == 3


def test_unreachable_hub_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: Any, **kwargs: Any) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(question_sets, "dataset_unreachable", lambda hub_id: None)
    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(TaskError, match=r"openai/gsm8k .*no route.*parameter path"):
        load_task("gsm8k")
