"""What reward functions are given beside the samples, and what becomes of what they log."""

import functools
import json

import numpy as np
import pytest
from datasets import Dataset

from lepo_kernels.trainer.rewards import RewardError, Rewards
from lepo_kernels.trainer.trainer import LEPOTrainer
from tests.tiny import tiny_model, tiny_tokenizer
from tests.trainer.conftest import digits_reward


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    """Where trainers whose output_dir plays no part may write."""
    monkeypatch.chdir(tmp_path)


def call(function, count=2, **columns):
    rewards = Rewards(function)
    rewards(["p"] * count, ["c"] * count, [[1]] * count, columns)
    return rewards.log


def lines(file):
    return [json.loads(line, parse_constant=pytest.fail) for line in file.read_text().splitlines()]


def test_the_state_and_what_is_logged_go_through_a_run(make_trainer, tmp_path):
    steps = []

    def reward(completions, answer, trainer_state, log_extra, log_metric, **_):
        steps.append(trainer_state.global_step)
        log_extra("wanted", answer)
        log_extra("lengths", np.array([len(text) for text in completions]))
        log_metric("half", 0.25)
        log_metric("half", 0.75)
        log_metric("undefined", float("nan"))
        return [float(len(text)) for text in completions]

    trainer = make_trainer(
        reward=reward,
        eval_rows=1,
        eval_num_samples=2,
        eval_strategy="steps",
        eval_steps=2,
        log_completions=True,
    )
    trainer.train()
    # Two rollouts, before the updates that they train; greedy and sampled evaluation after both.
    assert steps == [0, 1, 2, 2]
    logs = trainer.state.log_history
    assert [log["half"] for log in logs if "loss" in log] == [0.5, 0.5]
    assert [log["eval_half"] for log in logs if "eval_runtime" in log] == [0.5]
    assert not any("undefined" in name for log in logs for name in log)
    run = tmp_path / "run"
    for row in lines(run / "completions.jsonl"):
        assert row["wanted"] in {str(i) for i in range(12)}
        assert row["lengths"] == len(row["completion"]) == row["rewards"]["reward"]
    for row in lines(run / "evaluations.jsonl"):
        assert (row["wanted"], row["lengths"]) == ("0", len(row["completion"]))


def test_logged_columns_are_printed(make_trainer, capsys):
    def reward(completions, log_extra, **_):
        log_extra("verdict", ["fine"] * len(completions))
        return [0.0] * len(completions)

    make_trainer(reward=reward, max_steps=1, log_completions=True).train()
    printed = capsys.readouterr().out
    assert "verdict" in printed
    assert "fine" in printed


def test_only_a_function_that_takes_them_is_given_them():
    def strict(prompts, completions, completion_ids):
        return [0.0] * len(prompts)

    def by_name(prompts, completions, completion_ids, log_metric):
        log_metric("seen", 1.0)
        return [0.0] * len(prompts)

    def anything(**given):
        given["log_metric"]("seen", float(given["trainer_state"] is None))
        return [0.0] * len(given["prompts"])

    def handing_on(function):
        @functools.wraps(function)
        def wrapper(*arguments, **given):
            return function(*arguments, **given)

        return wrapper

    class Callable:
        def __call__(self, prompts, completions, completion_ids, trainer_state):
            assert trainer_state is None
            return [0.0] * len(prompts)

    for function in (strict, handing_on(strict), functools.partial(strict), Callable()):
        assert call(function).metrics() == {}
    for function in (by_name, anything, handing_on(by_name), functools.partial(anything)):
        assert call(function).metrics() == {"seen": 1.0}


def logs(name, *arguments):
    def reward(prompts, **given):
        given[name](*arguments)
        return [0.0] * len(prompts)

    return reward


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            logs("log_extra", "x", [1]),
            r"log_extra: expected one value per sample \(2\) of 'x', got",
        ),
        (logs("log_extra", "x", "ab"), "log_extra: expected a list of values, got str"),
        (logs("log_extra", "completion", [1, 2]), "log_extra: there is a column 'completion'"),
        (logs("log_metric", "x", "1"), "log_metric: expected a number as 'x', got str"),
    ],
)
def test_what_cannot_be_logged_is_said_by_name(function, message):
    with pytest.raises(RewardError, match=f"'reward': {message}"):
        call(function)


@pytest.mark.parametrize("name", ["reward", "loss", "rewards/reward/mean", "step_time", "entropy"])
def test_a_metric_of_the_trainer_is_not_overwritten(make_trainer, name):
    with pytest.raises(RewardError, match=f"log_metric: the name '{name}' is that of another"):
        make_trainer(reward=logs("log_metric", name, 1.0), max_steps=1).train()


@pytest.mark.parametrize("name", ["mean@2", "greedy_accuracy", "runtime"])
def test_a_metric_of_an_evaluation_is_not_overwritten(make_trainer, name):
    trainer = make_trainer(reward=logs("log_metric", name, 1.0), eval_rows=1, eval_num_samples=2)
    with pytest.raises(RewardError, match=f"log_metric: the name '{name}' is that of another"):
        trainer.evaluate()


def test_a_function_that_cannot_be_called_is_refused_before_the_model_loads():
    def needs_solution(prompts, completions, completion_ids, solution, **_):
        return [0.0]

    def takes_no_answer(prompts, completions, completion_ids):
        return [0.0]

    data = Dataset.from_dict({"prompt": ["a"], "answer": ["b"]})
    for function, message in (
        (needs_solution, "'needs_solution': .*missing a required .*'solution'"),
        (takes_no_answer, "'takes_no_answer': .*unexpected keyword argument 'answer'"),
    ):
        with pytest.raises(TypeError, match=message):
            LEPOTrainer("no/such-model", function, small(), train_dataset=data)


def small(**changes):
    from lepo_kernels.trainer.config import LEPOConfig

    return LEPOConfig(
        output_dir="unused",
        per_device_train_batch_size=8,
        use_cpu=True,
        report_to="none",
        **changes,
    )


@pytest.mark.parametrize("name", ["trainer_state", "log_extra", "log_metric", "completions"])
def test_a_column_may_not_hide_what_functions_are_given(name):
    data = Dataset.from_dict({"prompt": ["a"] * 2, name: ["b"] * 2})
    with pytest.raises(ValueError, match=f"train_dataset: the column '{name}' would hide"):
        LEPOTrainer(
            tiny_model(),
            digits_reward,
            small(),
            train_dataset=data,
            processing_class=tiny_tokenizer(),
        )


def test_a_missing_reward_is_null_in_every_file(make_trainer, tmp_path):
    def never(completions, **_):
        return [None] * len(completions)

    trainer = make_trainer(reward=never, eval_rows=1, eval_num_samples=1, max_steps=1)
    trainer.train()
    assert trainer.evaluate()["eval_greedy_reward"] == 0.0
    run = tmp_path / "run"
    assert {row["rewards"]["never"] for row in lines(run / "completions.jsonl")} == {None}
    assert {row["reward"] for row in lines(run / "evaluations.jsonl")} == {None}
