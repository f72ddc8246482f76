"""One row per implementation, grouped by op and shape: ``pytest benchmarks/ --benchmark-only``."""

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks import replay
from benchmarks.measure import Measured


@pytest.mark.benchmark(timer=replay.CLOCK)
def test_kernel(
    measured: Measured, benchmark: BenchmarkFixture, case: str, implementation: str
) -> None:
    benchmark.group = case
    benchmark.name = f"{case} | {implementation}"
    benchmark.extra_info.update(measured.derived, implementation=implementation)
    replay.replay(benchmark, measured.samples)
