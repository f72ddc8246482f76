"""Whatever a reward function returns and whatever stands in a row: it serves, or is refused."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lepo_kernels.report.json_text import json_text
from lepo_kernels.tasks.rewards import exact_answer
from lepo_kernels.trainer.advantages import group_advantages
from lepo_kernels.trainer.prompts import prompt_fault, prompt_ids
from lepo_kernels.trainer.reward_values import own_copy
from lepo_kernels.trainer.rewards import RewardError, Rewards
from tests.tiny import tiny_tokenizer

NUMBERS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([10**400, 1 << 128, 5e-324]),
    st.floats(allow_nan=True, allow_infinity=True),
    st.fractions(),
    st.decimals(allow_nan=True, allow_infinity=True),
    st.floats(width=32).map(np.float32),
    st.booleans().map(np.bool_),
    st.floats(width=32).map(torch.tensor),
)
TEXT = st.text(st.characters() | st.sampled_from("\ud800\udfff\u2028\x00"), max_size=5)
OTHERS = st.one_of(TEXT, st.binary(max_size=3), st.complex_numbers(), st.builds(object))
ANYTHING = st.recursive(
    st.one_of(NUMBERS, OTHERS),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3) | st.tuples(inner)
    ),
    max_leaves=6,
)


def rewarded(call):
    """What the call returns; None if it is refused by the name of the function."""
    error = None
    try:
        return call()
    except RewardError as raised:
        error = raised
    assert "'<lambda>'" in str(error)
    return None


@given(st.lists(NUMBERS | OTHERS, min_size=4, max_size=4), st.floats(-1e3, 1e3))
def test_rewards_give_finite_advantages_or_an_error_by_name(values, weight):
    rewards = Rewards(lambda **_: values, [weight])
    total = rewarded(lambda: rewards.total(rewards(["p"] * 4, ["c"] * 4, [[1]] * 4, {})))
    if total is None:
        return
    for scale in ("group", "batch", "none"):
        # As the trainer hands them on: in float32.
        advantages = group_advantages(total, 2, scale).advantages.float()
        assert bool(advantages.isfinite().all())


@given(ANYTHING)
def test_any_object_is_a_list_of_rewards_or_refused_by_name(returned):
    rewards = Rewards(lambda **_: returned)
    got = rewarded(lambda: rewards(["p"] * 2, ["c"] * 2, [[1]] * 2, {}))
    assert got is None or got.shape == (2, 1)


@given(ANYTHING)
def test_any_object_is_written_as_json(value):
    text = json_text({"value": value})
    json.loads(text.encode(), parse_constant=pytest.fail)
    assert "\n" not in text


@given(ANYTHING)
def test_a_copy_is_equal_and_shares_no_list(value):
    copied = own_copy(value)
    assert repr(copied) == repr(value)
    if isinstance(value, list | dict):
        assert copied is not value


MESSAGES = st.lists(
    st.dictionaries(
        st.sampled_from(["role", "content", "tool_calls"]), ANYTHING | st.sampled_from(["user"])
    ),
    max_size=3,
)


@given(ANYTHING | MESSAGES)
def test_a_prompt_is_refused_or_can_be_tokenised(prompt):
    fault = prompt_fault(prompt)
    if fault is None:
        assert prompt_ids(TOKENIZER, prompt)
    else:
        assert isinstance(fault, TypeError | ValueError)


TOKENIZER = tiny_tokenizer()


@given(TEXT, TEXT)
def test_any_text_is_compared(completion, right):
    assert exact_answer([completion], [right])[0] in (0.0, 1.0)
    assert math.isfinite(exact_answer([f"\\boxed{{{completion}}}"], [right])[0])
