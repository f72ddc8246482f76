"""Every data set of the hub is read as it is there: names, configurations, splits and columns."""

import json
import shutil
from pathlib import Path
from typing import Any

import datasets
import pytest

from lepo_kernels.tasks import TaskError, load_task
from lepo_kernels.tasks.question_sets import SYSTEM_PROMPT
from lepo_kernels.tasks.shots import CHOICES, MATHEMATICS
from lepo_kernels.tasks.sources import SOURCES
from tests.tasks.hub_samples import SAMPLES, sample_file, serve

SUBJECTS = (
    "algebra",
    "counting_and_probability",
    "geometry",
    "intermediate_algebra",
    "number_theory",
    "prealgebra",
    "precalculus",
)
MATH_ANSWERS = {"5", r"\frac{1}{4}", "13", r"\dfrac{3}{2}", "1", "24", r"\pi"}
# Name -> what the hub is asked for, the number of training problems, the evaluation's answers.
EXPECTED: dict[str, tuple[list[tuple[str, str | None, str]], int, set[str]]] = {
    "gsm8k": (
        [("openai/gsm8k", "main", "train"), ("openai/gsm8k", "main", "test")],
        4,
        {"135", "15"},
    ),
    "math": (
        [("EleutherAI/hendrycks_math", s, split) for split in ("train", "test") for s in SUBJECTS],
        7,
        MATH_ANSWERS,
    ),
    "math500": (
        [("HuggingFaceH4/MATH-500", None, "test")],
        0,
        {r"6\sqrt{2}", r"\left( 2, \frac{\pi}{2} \right)"},
    ),
    # 20 rows, a tenth of which is held out.
    "dapo": ([("open-r1/DAPO-Math-17k-Processed", "en", "train")], 18, set()),
    "aime2024": ([("HuggingFaceH4/aime_2024", None, "train")], 0, {"015", "024", "300"}),
    "aime2025": (
        [("opencompass/AIME2025", f"AIME2025-{n}", "test") for n in ("I", "II")],
        0,
        {"81", "54", "10"},
    ),
    "minervamath": ([("math-ai/minervamath", None, "test")], 0, {"0.25", r"h \nu"}),
    "amc23": ([("zwhe99/amc23", None, "test")], 0, {"27", "3.5"}),
    "arc-challenge": (
        [("allenai/ai2_arc", "ARC-Challenge", split) for split in ("train", "test")],
        2,
        {"C", "A"},
    ),
    "mmlu-stem": ([("TIGER-Lab/MMLU-STEM", None, "test")], 0, {"B", "D"}),
    "gpqa": ([("Idavidrein/gpqa", "gpqa_diamond", "train")], 0, set()),
}


def questions(dataset: Any) -> list[str]:
    return [prompt[-1]["content"] for prompt in dataset["prompt"]]


def test_every_name_is_tested() -> None:
    assert set(EXPECTED) == set(SOURCES) - {"file"}


@pytest.mark.parametrize("name", EXPECTED)
def test_a_data_set_as_the_hub_has_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = serve(monkeypatch)
    task = load_task(name)
    wanted, train_size, answers = EXPECTED[name]
    assert asked == wanted
    train = task.train_dataset
    assert (0 if train is None else len(train)) == train_size
    # What dapo holds out, and where gpqa's right options stand, is tested by itself.
    assert not answers or set(task.eval_dataset["answer"]) == answers
    for dataset in filter(None, (train, task.eval_dataset)):
        for problem in dataset:
            first, last = problem["prompt"]
            assert first == {"role": "system", "content": SYSTEM_PROMPT}
            assert last["role"] == "user"
    # The right answer, stated as the prompt asks for it, is found right; another is not.
    columns = {key: task.eval_dataset[key] for key in task.eval_dataset.column_names}
    right = [rf"so it is $\boxed{{{answer}}}$" for answer in columns["answer"]]
    columns.pop("prompt")
    assert set(task.reward_funcs[0](completions=right, **columns)) == {1.0}
    wrong = [r"so it is \boxed{E}"] * len(right)
    assert set(task.reward_funcs[0](completions=wrong, **columns)) == {0.0}


def test_the_held_out_tenth_of_dapo_is_the_published_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    serve(monkeypatch)
    file = sample_file("open-r1/DAPO-Math-17k-Processed", "en", "train")
    rows = datasets.Dataset.from_json(str(file)).train_test_split(test_size=0.1, seed=42)
    task = load_task("dapo", seed=7)
    assert set(questions(task.train_dataset)) == set(rows["train"]["prompt"])
    assert set(questions(task.eval_dataset)) == set(rows["test"]["prompt"])
    # However few are evaluated on, the others of the tenth are not trained on.
    assert set(questions(load_task("dapo", eval_size=1).train_dataset)) == set(
        rows["train"]["prompt"]
    )
    assert set(questions(load_task("dapo", path=str(file)).eval_dataset)) == set(
        rows["test"]["prompt"]
    )


def test_a_question_of_the_held_out_tenth_is_never_trained_on(tmp_path: Path) -> None:
    places = datasets.Dataset.from_dict({"row": list(range(20))}).train_test_split(0.1, seed=42)
    held_out, *_ = places["test"]["row"]
    twin, *_ = places["train"]["row"]
    rows = [{"prompt": f"What is {row}?", "solution": str(row)} for row in range(20)]
    rows[twin] = rows[held_out]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    # Neither where it is evaluated on, nor where nothing is.
    for eval_size in (None, 0):
        task = load_task("dapo", path=str(file), eval_size=eval_size)
        assert rows[held_out]["prompt"] not in questions(task.train_dataset)
        assert len(task.train_dataset) == 17


def test_subsets(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = serve(monkeypatch)
    task = load_task("math", train_size=0, subset=["geometry", "number_theory"])
    assert set(task.eval_dataset["answer"]) == {"13", "1"}
    assert {config for _, config, _ in asked} == {"geometry", "number_theory"}
    assert len(load_task("gpqa", subset="gpqa_extended").eval_dataset) == 4
    assert len(load_task("dapo", subset="all", eval_size=0).train_dataset) == 27
    assert len(load_task("aime2025", subset="AIME2025-II").eval_dataset) == 1


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("math", {"subset": "geometri"}, "unknown subset 'geometri'; did you mean 'geometry'"),
        ("math", {"subset": []}, "subset: expected at least one of all, algebra"),
        ("gsm8k", {"subset": "main"}, "gsm8k: has no subsets to choose from"),
        ("gsm8k", {"shots": 5}, "shots: expected an int from 0 to 4, got 5"),
        ("gsm8k", {"shots": True}, "shots: expected an int from 0 to 4, got True"),
        ("gsm8k", {"shots": "2"}, "shots: expected an int from 0 to 4, got '2'"),
        ("gsm8k", {"instruction": 3}, "instruction: expected text, got 3"),
        ("gsm8k", {"reward": "multiple_choice"}, "unknown reward 'multiple_choice'"),
        ("arc-challenge", {"reward": "math_verify"}, "unknown reward 'math_verify'"),
        ("aime24", {}, "did you mean 'aime2024'"),
    ],
)
def test_wrong_parameters(name: str, params: dict[str, Any], message: str) -> None:
    with pytest.raises(TaskError, match=message):
        load_task(name, **params)


@pytest.mark.parametrize(("name", "examples"), [("gsm8k", MATHEMATICS), ("arc-challenge", CHOICES)])
@pytest.mark.parametrize("shots", range(5))
def test_shots_and_instruction(
    name: str, examples: Any, shots: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(monkeypatch)
    task = load_task(name, shots=shots, instruction="Be brief.", train_size=0)
    plain = load_task(name, train_size=0)
    assert len(task.eval_dataset) == len(plain.eval_dataset)
    for problem, without in zip(task.eval_dataset, plain.eval_dataset, strict=True):
        system, *turns, last = problem["prompt"]
        assert system["content"] == SYSTEM_PROMPT
        assert last["content"] == without["prompt"][-1]["content"] + "\nBe brief."
        assert [turn["role"] for turn in turns] == ["user", "assistant"] * shots
        asked = [turn["content"] for turn in turns]
        wanted = [text for q, a in examples[:shots] for text in (f"{q}\nBe brief.", a)]
        assert asked == wanted


@pytest.mark.parametrize("examples", [MATHEMATICS, CHOICES])
def test_shots_state_an_answer_as_they_should(examples: Any) -> None:
    assert len(examples) == 4
    for question, answer in examples:
        assert answer.count(r"\boxed{") == 1
        assert question not in answer


def test_options_of_gpqa_do_not_tell_which_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    serve(monkeypatch)
    task = load_task("gpqa", subset="gpqa_extended")
    again = load_task("gpqa", subset="gpqa_extended", seed=3)
    found = dict(zip(questions(task.eval_dataset), task.eval_dataset["answer"], strict=True))
    # The order of the options follows from the question alone.
    assert found == dict(
        zip(questions(again.eval_dataset), again.eval_dataset["answer"], strict=True)
    )
    assert len(set(found.values())) > 1
    for problem in task.eval_dataset:
        spin = int(problem["prompt"][-1]["content"].partition("spin ")[2].partition("/")[0])
        assert problem["choices"]["ABCD".index(problem["answer"])] == str(spin + 1)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("arc-challenge", {"answerKey": "F"}, "the answer 'F' is none of the labels"),
        ("arc-challenge", {"choices": {"text": ["x"], "label": ["A"]}}, "expected 2 to 10 options"),
        ("arc-challenge", {"question": " "}, "has nothing as 'question'"),
        ("mmlu-stem", {"answer": 4}, "option 4 is said to be right, of 4"),
        ("mmlu-stem", {"answer": None}, "expected the place of an option as 'answer', got None"),
        ("mmlu-stem", {"choices": ["1", "2", "3", " "]}, "the right option is blank"),
        ("gpqa", {"Incorrect Answer 2": None}, "an option is no text"),
    ],
)
def test_a_question_whose_options_are_wrong_is_named(
    name: str, change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    source = SOURCES[name]
    config = next(iter(source.subsets.values()))[0]
    assert source.hub_id is not None
    assert source.eval_split is not None
    lines = sample_file(source.hub_id, config, source.eval_split).read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    rows.append({**rows[-1], **change})
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(TaskError, match=rf"{name}: row {len(rows) - 1} of .*{message}"):
        load_task(name, eval_path=str(file), train_size=0)


def test_several_files_stand_for_a_split() -> None:
    files = [str(sample_file("opencompass/AIME2025", f"AIME2025-{n}", "test")) for n in ("I", "II")]
    assert len(load_task("aime2025", path=files).eval_dataset) == 3


def test_a_folder_is_a_copy_of_the_hubs_repository(tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(SAMPLES / "openai--gsm8k", folder)
    files = [{"split": split, "path": f"main/{split}.jsonl"} for split in ("train", "test")]
    configs = json.dumps([{"config_name": "main", "data_files": files}])
    (folder / "README.md").write_text(f"---\nconfigs: {configs}\n---\n")
    task = load_task("gsm8k", path=str(folder))
    assert (len(task.train_dataset), len(task.eval_dataset)) == (4, 2)
    (folder / "main" / "test.jsonl").unlink()
    with pytest.raises(TaskError, match=r"gsm8k: .* can't be read as a copy of openai/gsm8k: "):
        load_task("gsm8k", path=str(folder))


def test_a_gated_data_set_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise PermissionError("gated")

    monkeypatch.setattr("lepo_kernels.tasks.question_sets.dataset_unreachable", lambda hub_id: None)
    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(TaskError, match=r"Idavidrein/gpqa .*accepted its terms .*parameter path"):
        load_task("gpqa")
    with pytest.raises(TaskError, match=r"zwhe99/amc23") as caught:
        load_task("amc23")
    assert "terms" not in str(caught.value)
