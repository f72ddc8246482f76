"""Options, hooks and fixtures of ``pytest benchmarks/ --benchmark-only``."""

import importlib.metadata
import os
import platform
import warnings
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

import lepo_kernels
from benchmarks import cases, ceilings, shapes
from benchmarks.case import Case, Implementation
from benchmarks.device import Device
from benchmarks.measure import Effort, Measured, measure
from benchmarks.plan import Plan, memory_of
from benchmarks.results import Result
from benchmarks.tables import text
from benchmarks.timing import host_clock

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_PACKAGES = ("triton", "liger-kernel", "cut-cross-entropy", "trl", "flashinfer-python")
# pytest-benchmark's columns, unless others are asked for.
_COLUMNS = ["median", "iqr", "min", "rounds"]
# What says whose machine it was, or repeats at length what `Run.machine` says.
_LEFT_OUT = ("node", "release", "processor", "python_build", "python_compiler", "cpu")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("lepo_kernels")
    group.addoption("--device", help="cpu or cuda; default: cuda if there is a GPU")
    group.addoption(
        "--models", help=f"all, or some of {', '.join(shapes.MODELS)}; default: what suits the device"
    )
    group.addoption("--rows", type=int, help="rows (tokens) of every case; default: by kind of work")
    group.addoption("--dtype", choices=tuple(_DTYPES), help="of every case")
    group.addoption("--seconds", type=float, default=8.0, help="to spend on timing a case")
    group.addoption("--threads", type=int, help="torch's threads; default: all")
    group.addoption(
        "--cpu-time",
        action="store_true",
        help="one thread, timed by the processor time it gets: for a machine that others use",
    )
    group.addoption("--graphs", action="store_true", help="replay CUDA graphs where possible")
    group.addoption("--no-compile", action="store_true", help="leave torch.compile out")
    group.addoption("--tiny", action="store_true", help="tiny cases, to see that everything runs")
    group.addoption("--note", default="", help="what else a reader of the results should know")


@dataclass
class Run:
    """What one session measures, and what it has found."""

    device: Device
    effort: Effort
    cases: dict[str, Case]
    compile: bool
    tiny: bool
    note: str
    load: float
    skipped: list[dict[str, str]] = field(default_factory=list)
    current: tuple[str, dict[str, Measured]] | None = None
    found: ceilings.Ceilings | None = None

    def implementations(self, case: Case) -> list[Implementation]:
        here = case.on(self.device.torch)
        return [one for one in here if self.compile or not one.compiles]

    def ceilings(self) -> ceilings.Ceilings:
        if self.found is None:
            dtypes = sorted({case.dtype for case in self.cases.values()}, key=str)
            self.found = ceilings.measure(self.device, dtypes, rough=self.tiny)
        return self.found

    def machine(self) -> dict[str, Any]:
        """What is saved of the machine and the run."""
        found = {
            "device": self.device.facts(),
            "versions": _versions(),
            "load": self.load,
            "note": self.note,
        }
        return found if self.found is None else {**found, "ceilings": self.found.as_dict()}


_RUN = pytest.StashKey[Run]()


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    options = config.option
    if options.cpu_time:
        torch.set_num_threads(1)
    elif options.threads is not None:
        torch.set_num_threads(options.threads)
    try:
        config.stash[_RUN] = _run(options)
    except ValueError as error:
        raise pytest.UsageError(str(error)) from error
    if options.benchmark_columns is None:
        options.benchmark_columns = _COLUMNS
        # Our own table says more than pytest-benchmark's, but does not compare with saved runs.
        options.benchmark_quiet |= not options.benchmark_compare and not options.benchmark_verbose
    # It differs between any two runs: our own hook tells what matters.
    warnings.filterwarnings("ignore", message="Benchmark machine_info is different")


def _run(options: Any) -> Run:
    gpu = torch.cuda.is_available()
    where = torch.device(options.device or ("cuda" if gpu else "cpu"))
    if where.type == "cuda" and not gpu:
        raise ValueError("--device cuda: torch sees no GPU")
    if options.rows is not None and options.rows < 1:
        raise ValueError(f"--rows: expected at least 1, got {options.rows}")
    memory = memory_of(where)
    plan = Plan(
        where,
        memory,
        None if options.models is None else shapes.find(options.models),
        options.rows,
        None if options.dtype is None else (_DTYPES[options.dtype],),
    )
    wanted = cases.tiny() if options.tiny else cases.timed(plan)
    # A tiny case is there to be run, not to be timed well.
    seconds = 0.0 if options.tiny else options.seconds
    return Run(
        Device(where, host_clock(options.cpu_time), options.graphs),
        Effort(seconds, memory // 2),
        {case.name: case for case in wanted},
        not options.no_compile,
        options.tiny,
        options.note,
        os.getloadavg()[0],
    )


def _versions() -> dict[str, str]:
    found = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "lepo_kernels": lepo_kernels.__version__,
    }
    if torch.version.cuda is not None:
        found["cuda"] = torch.version.cuda
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    run = metafunc.config.stash[_RUN]
    pairs = [(name, one.name) for name, case in run.cases.items() for one in run.implementations(case)]
    metafunc.parametrize(
        ("case", "implementation"), pairs, ids=[f"{case} | {name}" for case, name in pairs]
    )


@pytest.fixture(scope="session")
def run(request: pytest.FixtureRequest) -> Run:
    return request.config.stash[_RUN]


@pytest.fixture
def measured(
    request: pytest.FixtureRequest, run: Run, case: str, implementation: str
) -> Measured:
    """What was found of one implementation; its whole case is measured at its first test."""
    one = next(x for x in run.implementations(run.cases[case]) if x.name == implementation)
    reason = one.why_not(run.device.torch)
    if reason is not None:
        _skip(run, case, implementation, reason)
    if run.current is None or run.current[0] != case:
        run.current = None
        run.device.free()
        here = [x for x in _selected(request, run, case) if x.why_not(run.device.torch) is None]
        found = measure(run.cases[case], here, run.device, run.ceilings(), run.effort)
        run.current = (case, found)
    mine = run.current[1][implementation]
    if mine.unavailable:
        _skip(run, case, implementation, f"its import fails: {mine.error}")
    if mine.error is not None:
        raise mine.error
    return mine


def _skip(run: Run, case: str, implementation: str, reason: str) -> None:
    run.skipped.append({"group": case, "name": implementation, "reason": reason})
    pytest.skip(reason)


def _selected(request: pytest.FixtureRequest, run: Run, case: str) -> list[Implementation]:
    """The case's implementations that this session runs."""
    chosen = {
        item.callspec.params["implementation"]
        for item in request.session.items
        if getattr(item, "callspec", None) and item.callspec.params.get("case") == case
    }
    return [one for one in run.implementations(run.cases[case]) if one.name in chosen]


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: Any) -> None:
    for name in _LEFT_OUT:
        machine_info.pop(name, None)
    machine_info.update(config.stash[_RUN].machine())


def pytest_benchmark_update_commit_info(config: pytest.Config, commit_info: Any) -> None:
    for name in ("project", "branch"):
        commit_info.pop(name, None)


def pytest_benchmark_update_json(config: pytest.Config, output_json: Any) -> None:
    output_json["skipped"] = config.stash[_RUN].skipped


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
    output = {
        "benchmarks": [x.as_dict(include_data=False) for x in benchmarks],
        "machine_info": config.stash[_RUN].machine(),
        "skipped": config.stash[_RUN].skipped,
    }
    terminalreporter.section("how much faster, than what, how far from the limit")
    for line in text(Result.of(output)).splitlines():
        terminalreporter.write_line(line)
