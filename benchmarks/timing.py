"""Times several functions in turn, so that a slow minute of the machine is shared by all."""

import math
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

# A sample shorter than this is lost in the noise of the clock and the scheduler.
_SHORTEST_SAMPLE = 0.005
_MOST_REPEATS = 200


@dataclass(frozen=True)
class Timing:
    """Seconds per call: the median of the rounds, their quartiles and the fastest."""

    median: float
    low: float
    high: float
    fastest: float

    @staticmethod
    def of(samples: Sequence[float]) -> "Timing":
        if len(samples) == 1:
            return Timing(samples[0], samples[0], samples[0], samples[0])
        low, median, high = statistics.quantiles(samples, n=4, method="inclusive")
        return Timing(median, low, high, min(samples))


def interleaved(
    functions: Sequence[Callable[[], object]],
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Timing]:
    """Time ``functions`` in rounds, each in another order; the first call of each is warm-up.

    A fast function is called several times per sample. Freeing a result is not part of a sample,
    making it is.
    """
    repeats = [_repeats(function, clock) for function in functions]
    samples: list[list[float]] = [[] for _ in functions]
    order = list(range(len(functions)))
    shuffle = random.Random(0).shuffle
    for _ in range(rounds):
        shuffle(order)
        for i in order:
            samples[i].append(_sample(functions[i], repeats[i], clock))
    return [Timing.of(some) for some in samples]


def _repeats(function: Callable[[], object], clock: Callable[[], float]) -> int:
    first = _sample(function, 1, clock)
    # A first call is slow; only one this slow tells enough by itself.
    once = first if first >= 10 * _SHORTEST_SAMPLE else _sample(function, 1, clock)
    return min(_MOST_REPEATS, max(1, math.ceil(_SHORTEST_SAMPLE / max(once, 1e-9))))


def _sample(function: Callable[[], object], repeats: int, clock: Callable[[], float]) -> float:
    total = 0.0
    for _ in range(repeats):
        start = clock()
        result = function()
        total += clock() - start
        del result
    return total / repeats
