"""Times several functions in turn, so that a slow minute of the machine is shared by all.

A function is called with 0, 1, 2, ..., by which it takes its inputs from buffers that are larger
together than the last-level cache. A sampler times one function and knows how many calls make a
sample; `interleaved` takes samples of all samplers in rounds.
"""

import gc
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Protocol

import torch

Call = Callable[[int], object]
Clock = Callable[[], float]

# A sample shorter than this is lost in the noise of the clock and the scheduler.
_SHORTEST_SAMPLE = 0.005
_MOST_CALLS = 200
# The least that has a middle; more than the upper one moves no median.
FEWEST_ROUNDS, MOST_ROUNDS = 3, 25


class Sampler(Protocol):
    """Times one function.

    Attributes:
        timed_by: what tells the time.
        calls: of the function, per sample.
        seconds: that a sample is expected to take.
    """

    timed_by: str
    calls: int
    seconds: float

    def __call__(self) -> float:
        """Seconds per call, from one more sample."""
        ...


class HostSampler:
    """By a clock of the host around each call. Freeing a result is not timed, making it is."""

    def __init__(self, call: Call, clock: Clock) -> None:
        self.timed_by = getattr(clock, "__name__", "clock")
        self._call, self._clock, self._index = call, clock, count()
        self.calls = 1
        once = _after_warm_up(self)
        self.calls = _calls(once)
        self.seconds = once * self.calls

    def __call__(self) -> float:
        total = 0.0
        for _ in range(self.calls):
            index = next(self._index)
            start = self._clock()
            result = self._call(index)
            total += self._clock() - start
            del result
        return total / self.calls


class EventSampler:
    """By two events of the device around a batch of calls.

    Launches that the host cannot keep up with count: it is what an eager caller waits for.
    """

    timed_by = "CUDA events"

    def __init__(self, call: Call) -> None:
        self._call, self._index = call, count()
        self._start, self._end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.calls = 1
        once = _after_warm_up(self)
        self.calls = _calls(once)
        self.seconds = once * self.calls

    def __call__(self) -> float:
        torch.cuda.synchronize()
        self._start.record()
        for _ in range(self.calls):
            self._call(next(self._index))
        self._end.record()
        self._end.synchronize()
        return self._start.elapsed_time(self._end) / 1e3 / self.calls


class GraphSampler:
    """By two events around the replay of a CUDA graph of a batch of calls: no launches count."""

    timed_by = "CUDA graph"

    def __init__(self, call: Call, calls: int) -> None:
        self.calls = calls
        self._start, self._end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            for index in range(calls):
                call(index)
        self.seconds = _after_warm_up(self) * calls

    def __call__(self) -> float:
        torch.cuda.synchronize()
        self._start.record()
        self._graph.replay()
        self._end.record()
        self._end.synchronize()
        return self._start.elapsed_time(self._end) / 1e3 / self.calls


def device_sampler(call: Call, graphs: bool) -> Sampler:
    """Events; with ``graphs``, a graph of as many calls, where the function can be captured."""
    events = EventSampler(call)
    if not (graphs and _never_waits(call)):
        return events
    try:
        return GraphSampler(call, events.calls)
    except RuntimeError:
        # It does something else that a capture may not.
        torch.cuda.synchronize()
        return events


def _never_waits(call: Call) -> bool:
    """Whether a call leaves the host free.

    Not found out by a capture: where one fails, torch 2.11 loses its allocator.
    """
    torch.cuda.set_sync_debug_mode("error")
    try:
        call(0)
    except RuntimeError:
        return False
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return True


def interleaved(
    samplers: Sequence[Sampler], seconds: float, rounds: int | None = None
) -> list[list[float]]:
    """Samples of each, in rounds, each in another order; about ``seconds`` of them all."""
    if rounds is None:
        rounds = int(seconds / max(sum(one.seconds for one in samplers), 1e-9))
        rounds = min(MOST_ROUNDS, max(FEWEST_ROUNDS, rounds))
    samples: list[list[float]] = [[] for _ in samplers]
    order = list(range(len(samplers)))
    shuffle = random.Random(0).shuffle
    with _no_garbage_collection():
        for _ in range(rounds):
            shuffle(order)
            for i in order:
                samples[i].append(samplers[i]())
    return samples


def host_clock(processor_time: bool) -> Clock:
    return time.process_time if processor_time else time.perf_counter


def _after_warm_up(sampler: Callable[[], float]) -> float:
    first = sampler()
    # A first call is slow; only one this slow tells enough by itself.
    return first if first >= 10 * _SHORTEST_SAMPLE else sampler()


def _calls(once: float) -> int:
    return min(_MOST_CALLS, max(1, math.ceil(_SHORTEST_SAMPLE / max(once, 1e-9))))


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
