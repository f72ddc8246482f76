"""Samples are taken in turn, of enough calls, and rotate through the inputs."""

import contextlib
import itertools
import time

import pytest
import torch

from benchmarks import timing


class Work:
    """A clock that functions move on by what they cost."""

    def __init__(self):
        self.now = 0.0
        self.calls = []

    def __call__(self):
        return self.now

    def function(self, name, costs):
        costs = itertools.chain(costs, itertools.repeat(costs[-1]))

        def call(index):
            self.calls.append((name, index))
            self.now += next(costs)

        return call


def test_rounds_are_interleaved():
    clock = Work()
    functions = [clock.function("a", [1, 1, 5, 3]), clock.function("b", [2])]
    batches = [timing.Batch(one, timing.stopwatch(clock)) for one in functions]
    a, b = timing.interleaved(batches, 0.0, rounds=3)
    # Once each before the rounds, as both are slow; then each once per round.
    names = [name for name, _ in clock.calls]
    assert names[:2] == ["a", "b"]
    assert [set(names[i : i + 2]) for i in (2, 4, 6)] == [{"a", "b"}] * 3
    assert (a, b) == ([1, 5, 3], [2, 2, 2])


def test_fast_functions_are_called_several_times_each_with_other_inputs():
    clock = Work()
    batch = timing.Batch(clock.function("a", [0.001]), timing.stopwatch(clock))
    # 5 ms per sample.
    assert batch.calls == 5
    assert batch.seconds == pytest.approx(0.005)
    assert batch() == pytest.approx(0.001)
    assert [index for _, index in clock.calls] == list(range(2 + 5))


@pytest.mark.parametrize(
    ("seconds", "rounds"),
    # Less than the fewest rounds take; 12 rounds of 5 s; more than anyone needs.
    [(0, timing.FEWEST_ROUNDS), (60, 12), (10**6, timing.MOST_ROUNDS)],
)
def test_rounds_follow_from_the_seconds(seconds, rounds):
    clock = Work()
    watch = timing.stopwatch(clock)
    batches = [timing.Batch(clock.function("", [cost]), watch) for cost in (2, 3)]
    assert len(timing.interleaved(batches, seconds)[0]) == rounds


class Result:
    """Takes a second to be freed."""

    def __init__(self, clock):
        self.clock = clock

    def __del__(self):
        self.clock.now += 1


def test_no_two_results_are_there_at_once_and_freeing_the_last_does_not_count():
    clock, alive = Work(), []

    class Counted(Result):
        def __init__(self, clock):
            super().__init__(clock)
            alive.append(self.now_alive + 1)
            Counted.now_alive += 1

        def __del__(self):
            super().__del__()
            Counted.now_alive -= 1

    Counted.now_alive = 0

    def call(index):
        clock.now += 2
        return Counted(clock)

    batch = timing.Batch(call, timing.stopwatch(clock))
    assert batch.calls == 1
    assert batch() == 2
    batch.calls = 3
    # Three calls, and two results freed between them.
    assert batch() == pytest.approx((3 * 2 + 2) / 3)
    assert max(alive) == 1


class Graph:
    """A CUDA graph: what was captured, and nothing where a replay is asked for."""

    def __init__(self):
        self.replays = 0

    def replay(self):
        self.replays += 1


@pytest.fixture
def device_clock(monkeypatch):
    clock = Work()
    clock.waits = 0

    def synchronize():
        clock.waits += 1

    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", lambda mode: None)
    return clock


def batch_of(clock, call, graphs):
    return timing.batch_of(call, timing.stopwatch(clock), graphs)


def test_the_gpus_timer_waits_for_it(device_clock):
    before = time.perf_counter()
    assert before <= timing.device_timer() <= time.perf_counter()
    assert device_clock.waits == 1


def test_a_batch_is_replayed_as_a_graph(device_clock, monkeypatch):
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph: contextlib.nullcontext())
    batch = batch_of(device_clock, device_clock.function("a", [0.001]), graphs=True)
    assert (batch.replayed, batch.calls) == (True, 5)
    # As many calls as a batch has were captured, each with other inputs.
    assert [index for _, index in device_clock.calls[-5:]] == list(range(5))
    known = len(device_clock.calls)
    batch()
    assert len(device_clock.calls) == known
    assert batch._graph.replays == 3


def test_what_cannot_be_captured_is_called(device_clock, monkeypatch):
    class Refused:
        def __init__(self):
            raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Refused)
    assert not batch_of(device_clock, device_clock.function("a", [0.001]), graphs=True).replayed


def test_what_waits_for_the_device_is_never_captured(device_clock, monkeypatch):
    modes = []

    def call(index):
        # As torch does where it waits.
        if modes and modes[-1] == "error":
            raise RuntimeError("called a synchronizing CUDA operation")
        device_clock.now += 0.001

    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: pytest.fail("was captured"))
    assert not batch_of(device_clock, call, graphs=True).replayed
    assert modes == ["error", "default"]
