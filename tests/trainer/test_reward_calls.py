"""A reward function that hangs, raises or changes its arguments spoils nothing but its own call."""

import asyncio
import functools
import math
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch

from lepo_kernels.trainer.reward_values import own_copy
from lepo_kernels.trainer.rewards import RewardError, Rewards

# Far more than a call needs to be given up, far less than the calls here would hang.
SOON = 20.0
HANG = 600.0


def call(functions, weights=None, count=2, timeout=None, **columns):
    rewards = Rewards(functions, weights, timeout)
    got = rewards(["p"] * count, ["c"] * count, [[1]] * count, columns)
    return got, rewards.total(got)


@pytest.fixture
def release():
    """What the hanging calls wait for; set at the end, so that no thread outlives its test."""
    event = threading.Event()
    yield event
    event.set()


def test_a_function_that_hangs_is_given_up_by_name(release):
    def quick(**_):
        return [1.0, 1.0]

    def stuck(**_):
        release.wait(HANG)

    start = time.monotonic()
    with pytest.raises(RewardError, match=r"'stuck': took longer than reward_timeout = 0.2 s"):
        call([quick, stuck], timeout=0.2)
    assert time.monotonic() - start < SOON


def test_async_functions_that_hang_are_cancelled():
    cancelled = threading.Event()

    async def quick(**_):
        return [1.0, 1.0]

    async def stuck(**_):
        try:
            await asyncio.sleep(HANG)
        finally:
            cancelled.set()

    with pytest.raises(RewardError, match=r"function 'stuck': took longer than reward_timeout"):
        call([stuck, quick], timeout=0.2)
    assert cancelled.wait(SOON)


def test_an_async_function_that_never_awaits_is_given_up_too(release):
    async def blocking(**_):
        release.wait(HANG)

    with pytest.raises(RewardError, match=r"'blocking': took longer than reward_timeout"):
        call(blocking, timeout=0.2)

    async def after(**_):
        return [1.0, 2.0]

    assert call(after, timeout=SOON)[1].tolist() == [1.0, 2.0]


def test_within_the_limit_nothing_changes():
    def plain(**_):
        return [1.0, 2.0]

    async def waiting(**_):
        await asyncio.sleep(0)
        return [10.0, 20.0]

    assert call([plain, waiting], timeout=SOON)[1].tolist() == [11.0, 22.0]
    with pytest.raises(RewardError, match=r"'raising' raised KeyError\('x'\)"):
        call(raising, timeout=SOON)


def raising(**_):
    raise KeyError("x")


def test_without_a_limit_a_function_runs_where_it_is_called():
    """Alarms, by which verifiers bound themselves, work on the main thread alone."""

    def alarmed(**_):
        before = signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.signal(signal.SIGALRM, before)
        return [1.0, 1.0]

    assert call(alarmed)[1].tolist() == [1.0, 1.0]
    with pytest.raises(RewardError, match=r"'alarmed' raised ValueError.*signal only works"):
        call(alarmed, timeout=SOON)


def test_a_thread_of_its_own_keeps_the_callers_grad_mode():
    def seen(**_):
        return [float(torch.is_grad_enabled())] * 2

    with torch.no_grad():
        assert call(seen, timeout=SOON)[1].tolist() == [0.0, 0.0]
    assert call(seen, timeout=SOON)[1].tolist() == [1.0, 1.0]


def test_async_clients_live_from_call_to_call():
    lock = asyncio.Lock()
    loops = []

    async def guarded(**_):
        async with lock:
            loops.append(asyncio.get_running_loop())
            await asyncio.sleep(0)
        return [1.0, 1.0]

    rewards = Rewards(guarded)
    for _ in range(2):
        rewards(["p"] * 2, ["c"] * 2, [[1]] * 2, {})
    assert loops[0] is loops[1]
    assert not loops[0].is_closed()


# Python would warn of the coroutine that nobody awaited, and a warning is an error here.
def test_a_plain_function_that_raises_leaves_no_coroutine_behind():
    async def never(**_):
        return [1.0, 1.0]

    with pytest.raises(RewardError, match="'raising' raised"):
        call([never, raising])


def leaves(**_):
    sys.exit(0)


async def leaves_async(**_):
    sys.exit(0)


async def cancels_itself(**_):
    raise asyncio.CancelledError


@pytest.mark.parametrize("function", [leaves, leaves_async, cancels_itself])
@pytest.mark.parametrize("timeout", [None, SOON])
def test_a_function_cannot_end_the_run_as_if_all_were_well(function, timeout):
    with pytest.raises(RewardError, match=f"'{function.__name__}' raised"):
        call(function, timeout=timeout)


@pytest.mark.parametrize("kind", ["plain", "async", "blocking"])
def test_ctrl_c_is_obeyed_while_a_function_hangs(tmp_path, kind):
    """A process of its own: the interrupt goes to its main thread, and its end is waited for."""
    body = {
        "plain": "def stuck(**_):\n    print('in', flush=True); time.sleep(600)",
        "async": "async def stuck(**_):\n    print('in', flush=True); await asyncio.sleep(600)",
        "blocking": "async def stuck(**_):\n    print('in', flush=True); time.sleep(600)",
    }[kind]
    timeout = 500.0 if kind == "plain" else None
    script = textwrap.dedent(
        """
        import asyncio, time
        from lepo_kernels.trainer.rewards import Rewards
        {body}
        try:
            Rewards(stuck, timeout={timeout})(["p"], ["c"], [[1]], {{}})
        except KeyboardInterrupt:
            print("interrupted", flush=True)
        """
    ).format(body=textwrap.indent(body, "        ").strip(), timeout=timeout)
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=os.getcwd(),
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "in\n"
        process.send_signal(signal.SIGINT)
        try:
            rest, _ = process.communicate(timeout=60)
        finally:
            process.kill()
    assert rest == "interrupted\n"
    assert process.returncode == 0


@pytest.mark.parametrize("kind", ["def", "async def"])
def test_an_abandoned_call_does_not_keep_the_interpreter_from_ending(kind):
    script = textwrap.dedent(
        f"""
        import time
        from lepo_kernels.trainer.rewards import RewardError, Rewards
        {kind} stuck(**_):
            time.sleep(600)
        try:
            Rewards(stuck, timeout=0.1)(["p"], ["c"], [[1]], {{}})
        except RewardError as error:
            print(error)
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=100, check=True
    )
    assert "'stuck': took longer" in done.stdout
    assert done.stderr == ""


def test_what_a_function_does_to_its_arguments_stays_its_own():
    prompts = [[{"role": "user", "content": "q"}]] * 2
    completions = [[{"role": "assistant", "content": "c"}] for _ in range(2)]
    ids, columns = [[1, 2], [3]], {"answer": ["a", "b"], "tests": [np.zeros(2), {"x": [1]}]}
    given = own_copy([prompts, completions, ids, columns])

    def spoils(prompts, completions, completion_ids, answer, tests, **_):
        prompts[0][0]["content"] = "spoilt"
        # Samples of a group share their prompt; what is done to one is not done to the others.
        assert prompts[1][0]["content"] == "q"
        completions.clear()
        completion_ids[0].append(9)
        answer[0] = None
        tests[0][0] = 7
        tests[1]["x"].append(2)
        return [0.0, 0.0]

    seen = []

    def sees(prompts, completions, completion_ids, answer, tests, **_):
        seen.append([prompts, completions, completion_ids, {"answer": answer, "tests": tests}])
        return [0.0, 0.0]

    Rewards([spoils, sees])(prompts, completions, ids, columns)
    assert repr(seen[0]) == repr(given)
    assert repr([prompts, completions, ids, columns]) == repr(given)


@pytest.mark.parametrize(
    "reward",
    [
        True,
        np.bool_(True),
        np.float32(1),
        np.int8(1),
        1,
        Fraction(1),
        Decimal(1),
        torch.tensor(True),
        torch.tensor([1]),
        np.array(1.0),
        np.array([True]),
    ],
    ids=repr,
)
def test_every_kind_of_number_is_a_reward(reward):
    assert call(lambda **_: [reward, 0])[1].tolist() == [1.0, 0.0]


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (1e308, r"reward 1 is 1e\+308; expected a number that float32 holds"),
        (-1e39, r"reward 1 is -1e\+39"),
        # Python prints no int of so many digits; the message must not try.
        (10**5000, "reward 1 is inf"),
        (-(10**400), "reward 1 is -inf"),
        (Fraction(10**400), "reward 1 is inf"),
        (Decimal("sNaN"), "reward 1 is nan"),
        (np.float32("nan"), "reward 1 is nan"),
        ("1", "reward 1 is a str"),
        (1j, "reward 1 is a complex"),
        ([1.0], "reward 1 is a list"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_what_is_no_reward(reward, message):
    with pytest.raises(RewardError, match=f"'<lambda>': {message}"):
        call(lambda **_: [0.0, reward])


def test_weights_may_not_blow_rewards_up():
    def large(**_):
        return [0.0, 3e38]

    with pytest.raises(RewardError, match=r"reward_weights: .*sample 1 sum to 6e\+38 .*of 'large'"):
        call(large, weights=[2.0])


def test_names_stay_apart_even_when_numbered():
    def reward(**_):
        return [0.0, 0.0]

    def numbered(**_):
        return [0.0, 0.0]

    numbered.__name__ = "reward_0"
    names = Rewards([reward, numbered, reward, functools.partial(raising)]).names
    assert len(set(names)) == 4
    assert names[3] == "raising"


def test_samples_without_any_reward_are_told_of_once(caplog):
    def first(**_):
        return [1.0, None]

    def second(**_):
        return [None, None]

    rewards = Rewards([first, second])
    for _ in range(2):
        got = rewards(["one", "two"], ["c"] * 2, [[1]] * 2, {})
    assert math.isnan(rewards.total(got)[1])
    (record,) = caplog.records
    text = record.getMessage()
    assert "No reward for 1 of 2 samples: 'first' and 'second' returned None" in text
    assert "sample 1, with the prompt 'two'" in text
