"""Batches of calls, timed in turn, so that a slow minute of the machine is shared by all.

A function is called with 0, 1, 2, ..., by which it takes its inputs from buffers that are larger
together than the last-level cache. A batch knows how many calls make a sample; `interleaved` takes
samples of all batches in rounds. What times a batch is a stopwatch: in a run of the benchmarks
pytest-benchmark's own (`pedantic`).
"""

import gc
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count

import torch

Call = Callable[[int], object]
Timer = Callable[[], float]
Stopwatch = Callable[[Callable[[], object]], float]  # the seconds that a function takes, once

# A sample shorter than this is lost in the noise of the clock and the scheduler.
_SHORTEST_SAMPLE = 0.005
_MOST_CALLS = 200
# The least that has a middle; more than the upper one moves no median.
FEWEST_ROUNDS, MOST_ROUNDS = 3, 25


class Batch:
    """As many calls of a function as make a sample.

    Attributes:
        calls: of the function, per sample.
        replayed: whether it is the replay of a CUDA graph: no launches count.
        seconds: that a sample is expected to take.
    """

    replayed = False

    def __init__(self, call: Call, watch: Stopwatch) -> None:
        self._call, self._watch, self._index = call, watch, count()
        self.calls = 1
        once = _after_warm_up(self)
        self.calls = _calls(once)
        self.seconds = once * self.calls

    def __call__(self) -> float:
        """Seconds per call, from one more sample."""
        return self._watch(self.run) / self.calls

    def run(self) -> object:
        """The last call's result, which the stopwatch frees; earlier ones are freed here."""
        result = None
        for _ in range(self.calls):
            # Its memory is there for the next one, as in a loop of the user's.
            result = None
            result = self._call(next(self._index))
        return result


class Replay(Batch):
    """The replay of a CUDA graph of a batch."""

    replayed = True

    def __init__(self, batch: Batch) -> None:
        self.calls, self._watch = batch.calls, batch._watch
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            for index in range(batch.calls):
                batch._call(index)
        self.seconds = _after_warm_up(self) * self.calls

    def run(self) -> object:
        self._graph.replay()
        return None


def batch_of(call: Call, watch: Stopwatch, graphs: bool) -> Batch:
    """A batch; with ``graphs``, the replay of one where the function can be captured."""
    plain = Batch(call, watch)
    if not (graphs and _never_waits(call)):
        return plain
    try:
        return Replay(plain)
    except RuntimeError:
        # It does something else that a capture may not.
        torch.cuda.synchronize()
        return plain


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
    batches: Sequence[Batch], seconds: float, rounds: int | None = None
) -> list[list[float]]:
    """Samples of each, in rounds, each in another order; about ``seconds`` of them all."""
    if rounds is None:
        rounds = int(seconds / max(sum(one.seconds for one in batches), 1e-9))
        rounds = min(MOST_ROUNDS, max(FEWEST_ROUNDS, rounds))
    samples: list[list[float]] = [[] for _ in batches]
    order = list(range(len(batches)))
    shuffle = random.Random(0).shuffle
    with _no_garbage_collection():
        for _ in range(rounds):
            shuffle(order)
            for i in order:
                samples[i].append(batches[i]())
    return samples


def host_timer(processor_time: bool) -> Timer:
    return time.process_time if processor_time else time.perf_counter


def device_timer() -> float:
    """The host's clock once the GPU has done all it was given.

    Launches that the host cannot keep up with count: they are what an eager caller waits for.
    """
    torch.cuda.synchronize()
    return time.perf_counter()


def stopwatch(timer: Timer) -> Stopwatch:
    """One without pytest-benchmark, for tools that make no table."""

    def watch(function: Callable[[], object]) -> float:
        start = timer()
        result = function()
        seconds = timer() - start
        del result
        return seconds

    return watch


def _after_warm_up(batch: Callable[[], float]) -> float:
    first = batch()
    # A first call is slow; only one this slow tells enough by itself.
    return first if first >= 10 * _SHORTEST_SAMPLE else batch()


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
