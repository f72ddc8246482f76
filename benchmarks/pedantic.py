"""pytest-benchmark's fixtures, made as its plugin makes them, one for each round that is timed.

Its own ``benchmark`` times all rounds of one test before the next test begins, so that a slow
minute of the machine falls on one implementation. Here the rounds of all implementations of a case
are taken in turn (`timing.interleaved`), each by a ``benchmark.pedantic`` of its own; `row` puts
those of one implementation together, in the name of its test.
"""

from collections.abc import Callable, Sequence
from typing import Any

from pytest_benchmark.fixture import BenchmarkFixture
from pytest_benchmark.stats import Metadata
from pytest_benchmark.utils import NameWrapper

from benchmarks.timing import Stopwatch, Timer


def benchmark(session: Any, item: Any, timer: Timer) -> BenchmarkFixture:
    """A fixture for a test, with the options of the session, that enters no table by itself."""
    options = {**session.options, "timer": NameWrapper(timer)}
    return BenchmarkFixture(
        item,
        add_stats=_nowhere,
        logger=session.logger,
        warner=item.warn,
        disabled=session.disabled,
        **options,
    )


def stopwatch(session: Any, item: Any, timer: Timer) -> Stopwatch:
    """Times a function with ``benchmark.pedantic``, once."""

    def watch(function: Callable[[], object]) -> float:
        one = benchmark(session, item, timer)
        one.pedantic(function)
        return float(one.stats.stats.total)

    return watch


def row(one: BenchmarkFixture, samples: Sequence[float], calls: int, timer: Timer) -> Metadata:
    """The statistics of samples, each of them seconds per call in a batch of ``calls``."""
    found = Metadata(one, iterations=calls, options={"timer": timer})
    for sample in samples:
        found.update(sample * calls)
    return found


def _nowhere(stats: Metadata) -> None:
    """A single round is no row."""
