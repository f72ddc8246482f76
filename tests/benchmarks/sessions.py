"""What of a session of pytest and pytest-benchmark its plugins ask for, without any of it."""

import time
from types import SimpleNamespace

import torch

from benchmarks import pedantic
from benchmarks.case import Case, Implementation
from benchmarks.ceilings import Ceilings
from benchmarks.device import Device
from benchmarks.measure import Effort
from benchmarks.session import RUN, Run
from tests.benchmarks.saved import row


def implementation(name, **settings):
    return Implementation(name, "ours", lambda x: x, lambda x, y: None, **settings)


def case(op, *names):
    rows = [implementation(name) for name in names]
    return Case(op, "shape", lambda device: None, tuple(rows), 32)


def run_of(*cases, note="a note"):
    ceilings = Ceilings(1e9, 1e9, {"float32": 1e9})
    device = Device(torch.device("cpu"), time.perf_counter)
    by_name = {one.name: one for one in cases}
    return Run(device, Effort(0.0, 0), by_name, True, False, note, 0.0, limits=ceilings)


def config_of(run, disabled=False):
    """A configuration whose session has measured every implementation of the run."""
    rows = [
        pedantic.row(fixture(one, x.name), [0.5, 1.0, 1.5], 2, time.perf_counter)
        for one in run.cases.values()
        for x in run.implementations(one)
    ]
    benchmarks = SimpleNamespace(benchmarks=rows, disabled=disabled, get_machine_info=run.machine)

    def content(config, machine_info, commit_info, **options):
        head = {"machine_info": machine_info, "commit_info": commit_info}
        return head | {"datetime": "2026-11-23T12:00:00", "benchmarks": []}

    hook = SimpleNamespace(
        pytest_benchmark_generate_commit_info=lambda config: {"id": "0123"},
        pytest_benchmark_update_commit_info=lambda config, commit_info: None,
        pytest_benchmark_generate_json=content,
    )
    return SimpleNamespace(_benchmarksession=benchmarks, hook=hook, stash={RUN: run})


def fixture(one, name):
    """What a row takes of pytest-benchmark's fixture."""
    whole = f"{one.name} | {name}"
    info = row(one.op, one.shape, name, "ours", 1.0)["extra_info"]
    return SimpleNamespace(
        name=whole, fullname=whole, group=one.name, param=None, params=None, extra_info=info,
        cprofile_stats=None,
    )  # fmt: skip


def item_of(one, run):
    """A test of a case."""
    callspec = SimpleNamespace(params={"case": one.name})
    return SimpleNamespace(callspec=callspec, config=SimpleNamespace(stash={RUN: run}))
