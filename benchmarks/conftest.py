"""Options, hooks and fixtures of ``pytest benchmarks/ --benchmark-only``."""

import traceback
import warnings
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks import pedantic, session
from benchmarks.measure import Measured, check_all, measure
from benchmarks.results import Result
from benchmarks.saving import SavedResults
from benchmarks.session import RUN, Run
from benchmarks.tables import text

# pytest-benchmark's columns, unless others are asked for.
_COLUMNS = ["median", "iqr", "min", "rounds"]
# What says whose machine it was, or repeats at length what we say of the device.
_LEFT_OUT = ("node", "release", "processor", "python_build", "python_compiler", "cpu")


def pytest_addoption(parser: pytest.Parser) -> None:
    session.add_options(parser.getgroup("lepo_kernels").addoption)


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    options = config.option
    try:
        run = config.stash[RUN] = session.prepare(options)
        if options.results is not None:
            config.pluginmanager.register(SavedResults(options.results, run))
    except ValueError as error:
        raise pytest.UsageError(str(error)) from error
    if options.benchmark_columns is None:
        options.benchmark_columns = _COLUMNS
        # Our own table says more than pytest-benchmark's, but does not compare with saved runs.
        options.benchmark_quiet |= not options.benchmark_compare and not options.benchmark_verbose
    # The tests take warnings for errors; a benchmark does not fail because a peer deprecates
    # something. What is added last counts.
    config.addinivalue_line("filterwarnings", "default")
    # Our own hook says in a line what differs.
    warnings.filterwarnings("ignore", message="Benchmark machine_info is different")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    run = metafunc.config.stash[RUN]
    pairs = [
        (name, one.name) for name, case in run.cases.items() for one in run.implementations(case)
    ]
    metafunc.parametrize(
        ("case", "implementation"), pairs, ids=[f"{case} | {name}" for case, name in pairs]
    )


@pytest.fixture(scope="session")
def run(request: pytest.FixtureRequest) -> Run:
    return request.config.stash[RUN]


@pytest.fixture
def benchmark(
    request: pytest.FixtureRequest, run: Run, measured: Measured, case: str, implementation: str
) -> BenchmarkFixture:
    """pytest-benchmark's, with rounds that were taken in turn with the other implementations'."""
    benchmarks, timer = request.config._benchmarksession, run.device.timer
    one = pedantic.benchmark(benchmarks, request.node, timer)
    one.group, one.name = case, f"{case} | {implementation}"
    one.extra_info.update(measured.derived, implementation=implementation)
    if measured.samples:
        one.stats = pedantic.row(one, measured.samples, measured.calls, timer)
        benchmarks.benchmarks.append(one.stats)
    return one


@pytest.fixture
def measured(request: pytest.FixtureRequest, run: Run, case: str, implementation: str) -> Measured:
    """What was found of one implementation; its whole case is measured at its first test."""
    one = next(x for x in run.implementations(run.cases[case]) if x.name == implementation)
    reason = one.why_not(run.device.torch)
    if reason is not None:
        _skip(run, case, implementation, reason)
    if run.current is None or run.current[0] != case:
        run.current = None
        run.device.free()
        run.current = (case, _measure(request, run, case))
    mine = run.current[1][implementation]
    if mine.unavailable:
        _skip(run, case, implementation, f"it fails: {type(mine.error).__name__}: {mine.error}")
    if mine.error is not None:
        reason = f"it failed: {mine.error!r}"
        run.skipped.append({"group": case, "name": implementation, "reason": reason})
        raise mine.error
    return mine


def _measure(request: pytest.FixtureRequest, run: Run, name: str) -> dict[str, Measured]:
    """What was found of each; where that fails as a whole, the failure, for each of them."""
    case, benchmarks = run.cases[name], request.config._benchmarksession
    chosen = _selected(request, name)
    here = [x for x in run.implementations(case) if x.name in chosen]
    here = [x for x in here if x.why_not(run.device.torch) is None]
    watch = pedantic.stopwatch(benchmarks, request.node, run.device.timer)
    try:
        if benchmarks.disabled:
            return check_all(case, here, run.device)
        return measure(case, here, run.device, run.ceilings(watch), run.effort, watch)
    except Exception as error:
        # Its variables hold tensors.
        traceback.clear_frames(error.__traceback__)
        too_large = isinstance(error, torch.OutOfMemoryError)
        return {one.name: Measured(error=error, unavailable=too_large) for one in here}


def _skip(run: Run, case: str, implementation: str, reason: str) -> None:
    run.skipped.append({"group": case, "name": implementation, "reason": reason})
    pytest.skip(reason)


def _selected(request: pytest.FixtureRequest, case: str) -> set[str]:
    """The case's implementations that this session runs, by name."""
    return {
        item.callspec.params["implementation"]
        for item in request.session.items
        if getattr(item, "callspec", None) and item.callspec.params.get("case") == case
    }


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: Any) -> None:
    """Nothing that differs between two runs on one machine: the comparison asks for that."""
    for name in _LEFT_OUT:
        machine_info.pop(name, None)
    machine_info.update(config.stash[RUN].machine())


def pytest_benchmark_update_commit_info(config: pytest.Config, commit_info: Any) -> None:
    for name in ("project", "branch"):
        commit_info.pop(name, None)


def pytest_benchmark_update_json(config: pytest.Config, output_json: Any) -> None:
    output_json["run"] = config.stash[RUN].about()


def pytest_benchmark_compare_machine_info(
    config: pytest.Config, benchmarksession: Any, machine_info: Any, compared_benchmark: Any
) -> None:
    """Say what differs in the machines, as far as it makes a comparison worthless."""
    before = compared_benchmark["machine_info"]
    for part in ("device", "versions"):
        for name, now in machine_info[part].items():
            then = before.get(part, {}).get(name)
            if then != now:
                benchmarksession.logger.info(f"The saved run's {name} was {then}; now it is {now}.")


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    benchmarks = [x for x in config._benchmarksession.benchmarks if x]
    if not benchmarks:
        return
    run = config.stash[RUN]
    output = {
        "benchmarks": [one.as_dict(include_data=False) for one in benchmarks],
        "machine_info": run.machine(),
        "run": run.about(),
    }
    terminalreporter.section("how much faster, than what, how far from the limit")
    for line in text(Result.of(output)).splitlines():
        terminalreporter.write_line(line)
