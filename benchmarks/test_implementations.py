"""One row per implementation, grouped by op and shape; see `benchmarks.compare` for ratios."""

from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.case import Case, Implementation
from benchmarks.cases import TIMED

PAIRS = [
    pytest.param(case, one, id=f"{case.name}: {one.name}")
    for case in TIMED
    for one in case.implementations
]


@pytest.mark.parametrize(("case", "implementation"), PAIRS, scope="module")
def test_implementation(
    benchmark: BenchmarkFixture, case: Case, implementation: Implementation, inputs: Any
) -> None:
    if implementation.missing is not None:
        pytest.skip(implementation.missing)
    # The check's run is the warm-up.
    implementation.check(inputs, implementation.run(inputs))
    benchmark.group = case.name
    benchmark.name = implementation.name
    benchmark.pedantic(implementation.run, args=(inputs,), rounds=case.rounds)
    if benchmark.stats is None:  # --benchmark-disable
        return
    median = benchmark.stats.stats.median
    benchmark.extra_info["gb_per_s"] = case.bytes / median / 1e9
    if case.flops:
        benchmark.extra_info["gflop_per_s"] = case.flops / median / 1e9
    if case.words:
        benchmark.extra_info["mwords_per_s"] = case.words / median / 1e6
