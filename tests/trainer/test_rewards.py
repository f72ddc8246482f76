import asyncio

import numpy as np
import pytest
import torch

from lepo_kernels.trainer.rewards import RewardError, Rewards


def call(functions, weights=None, count=2, **columns):
    rewards = Rewards(functions, weights)
    got = rewards(["p"] * count, ["c"] * count, [[1]] * count, columns)
    return got, rewards.total(got)


def test_columns_and_completions_reach_the_function():
    def seen(prompts, completions, completion_ids, answer, **rest):
        assert (prompts, completions, completion_ids) == (["p", "p"], ["c", "c"], [[1], [1]])
        assert rest.keys() == {"level", "trainer_state", "log_extra", "log_metric"}
        assert rest["level"] == [3, 4]
        return [float(a) for a in answer]

    got, total = call(seen, answer=["1", "0"], level=[3, 4])
    assert got.tolist() == [[1.0], [0.0]]
    assert total.tolist() == [1.0, 0.0]


def test_several_functions_are_weighted_and_none_is_left_out():
    def first(**_):
        return [1.0, None]

    def second(**_):
        return [None, None]

    _, total = call([first, second], weights=[0.5, 2.0])
    assert float(total[0]) == 0.5
    assert torch.isnan(total[1])


def test_async_functions_run_side_by_side():
    order = []

    async def slow(**_):
        order.append("slow starts")
        await asyncio.sleep(0.02)
        order.append("slow ends")
        return [1.0, 2.0]

    async def quick(**_):
        order.append("quick")
        return [10.0, 20.0]

    _, total = call([slow, quick])
    assert total.tolist() == [11.0, 22.0]
    assert order == ["slow starts", "quick", "slow ends"]


def test_async_works_inside_a_running_event_loop():
    async def reward(**_):
        return [1.0, 1.0]

    async def notebook():
        return call(reward)[1]

    assert asyncio.run(notebook()).tolist() == [1.0, 1.0]


def raising(**_):
    raise KeyError("answer")


async def raising_async(**_):
    raise KeyError("answer")


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (raising, r"'raising' raised KeyError\('answer'\)"),
        (raising_async, r"'raising_async' raised KeyError\('answer'\)"),
        (lambda **_: None, "expected a list of 2 rewards, got NoneType"),
        (lambda **_: 1.0, "expected a list of 2 rewards, got float"),
        (lambda **_: b"ab", "expected a list of 2 rewards, got bytes"),
        (lambda **_: {0: 1.0, 1: 1.0}, "expected a list of 2 rewards, got dict"),
        (lambda **_: np.ones((2, 1)), "reward 0 is a list, not a number"),
        (lambda **_: [1.0], "expected 2 rewards, got 1"),
        (lambda **_: [1.0, float("nan")], "reward 1 is nan"),
        (lambda **_: [float("inf"), 1.0], "reward 0 is inf"),
        (lambda **_: ["1", 0.0], "reward 0 is a str, not a number"),
    ],
)
def test_what_a_function_must_not_do(function, message):
    with pytest.raises(RewardError, match=message):
        call(function)


def test_equal_names_stay_apart():
    def reward(**_):
        return [0.0, 0.0]

    assert Rewards([reward, reward, raising]).names == ["reward_0", "reward_1", "raising"]


def test_arrays_and_tensors_are_rewards_too():
    assert call(lambda **_: np.array([1.0, 2.0]))[1].tolist() == [1.0, 2.0]
    assert call(lambda **_: torch.tensor([1.0, 2.0]))[1].tolist() == [1.0, 2.0]
    assert call(lambda **_: [torch.tensor(1.0), torch.tensor(2.0)])[1].tolist() == [1.0, 2.0]


def test_bad_arguments():
    with pytest.raises(TypeError, match="expected functions, got Linear"):
        Rewards(torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match="at least one function"):
        Rewards([])
    with pytest.raises(TypeError, match="expected functions, got str"):
        Rewards(["accuracy"])
    with pytest.raises(ValueError, match=r"expected 1 .* got 2"):
        Rewards(raising, [1.0, 2.0])
