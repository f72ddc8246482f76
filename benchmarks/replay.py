"""Hands samples that were taken elsewhere to pytest-benchmark, through the timer it lets one set.

pytest-benchmark times one test after the other. Here all implementations of a case are timed in
turn; each one's test then replays its own samples, so that statistics, saving and comparing are
pytest-benchmark's.
"""

from collections.abc import Sequence
from typing import Any


class ReplayedClock:
    """A timer whose readings are so far apart, two by two, as the samples say."""

    def __init__(self) -> None:
        self._readings: list[float] = []

    def load(self, samples: Sequence[float]) -> None:
        self._readings = [reading for sample in reversed(samples) for reading in (sample, 0.0)]

    def __call__(self) -> float:
        return self._readings.pop()

    def __repr__(self) -> str:
        return "samples taken in turn"


CLOCK = ReplayedClock()


def replay(benchmark: Any, samples: Sequence[float]) -> None:
    """Let ``benchmark``, whose timer is `CLOCK`, find ``samples``."""
    CLOCK.load(samples)
    benchmark.pedantic(lambda: None, rounds=len(samples))
