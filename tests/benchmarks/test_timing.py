"""Samples are taken in turn, of enough calls, and rotate through the inputs."""

import itertools

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
    samplers = [timing.HostSampler(one, clock) for one in functions]
    a, b = timing.interleaved(samplers, 0.0, rounds=3)
    # Once each before the rounds, as both are slow; then each once per round.
    names = [name for name, _ in clock.calls]
    assert names[:2] == ["a", "b"]
    assert [set(names[i : i + 2]) for i in (2, 4, 6)] == [{"a", "b"}] * 3
    assert (a, b) == ([1, 5, 3], [2, 2, 2])


def test_fast_functions_are_called_several_times_each_with_other_inputs():
    clock = Work()
    sampler = timing.HostSampler(clock.function("a", [0.001]), clock)
    # 5 ms per sample.
    assert sampler.calls == 5
    assert sampler.seconds == pytest.approx(0.005)
    assert sampler() == pytest.approx(0.001)
    assert [index for _, index in clock.calls] == list(range(2 + 5))


@pytest.mark.parametrize(
    ("seconds", "rounds"),
    # Less than the fewest rounds take; 12 rounds of 5 s; more than anyone needs.
    [(0, timing.FEWEST_ROUNDS), (60, 12), (10**6, timing.MOST_ROUNDS)],
)
def test_rounds_follow_from_the_seconds(seconds, rounds):
    clock = Work()
    samplers = [timing.HostSampler(clock.function("", [cost]), clock) for cost in (2, 3)]
    assert len(timing.interleaved(samplers, seconds)[0]) == rounds


class Event:
    """An event of a device whose clock is `DeviceClock`."""

    clock: Work

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        self.at = self.clock.now

    def synchronize(self):
        pass

    def elapsed_time(self, end):
        return 1e3 * (end.at - self.at)


@pytest.fixture
def device_clock(monkeypatch):
    clock = Work()
    monkeypatch.setattr(Event, "clock", clock, raising=False)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", lambda mode: None)
    return clock


def test_events_stand_around_a_batch_of_calls(device_clock):
    call = device_clock.function("a", [0.5, 0.001])
    sampler = timing.device_sampler(call, graphs=False)
    # The first, slow call tells nothing of a batch.
    assert sampler.calls == 1
    sampler = timing.device_sampler(call, graphs=False)
    assert sampler.calls == 5
    assert sampler() == pytest.approx(0.001)
    assert sampler.timed_by == "CUDA events"


def test_what_cannot_be_captured_is_timed_by_events(device_clock, monkeypatch):
    class Refused:
        def __init__(self):
            raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Refused)
    sampler = timing.device_sampler(device_clock.function("a", [0.001]), graphs=True)
    assert sampler.timed_by == "CUDA events"


def test_what_waits_for_the_device_is_never_captured(device_clock, monkeypatch):
    modes = []

    def call(index):
        # As torch does where it waits.
        if modes and modes[-1] == "error":
            raise RuntimeError("called a synchronizing CUDA operation")
        device_clock.now += 0.001

    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: pytest.fail("was captured"))
    assert timing.device_sampler(call, graphs=True).timed_by == "CUDA events"
    assert modes == ["error", "default"]
