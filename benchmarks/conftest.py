"""Options and inputs of ``pytest benchmarks/ --benchmark-only``."""

from typing import Any

import pytest
import torch

from benchmarks import machine
from benchmarks.case import Case


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--threads", type=int, default=None, help="torch's threads; default: all")


def pytest_configure(config: pytest.Config) -> None:
    threads = config.getoption("--threads")
    if threads is not None:
        torch.set_num_threads(threads)


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: Any) -> None:
    machine_info["cpu_model"] = machine.cpu_model()
    machine_info["threads"] = torch.get_num_threads()
    machine_info["torch"] = torch.__version__


@pytest.fixture(scope="module")
def inputs(case: Case) -> Any:
    """The inputs of a case, made once for its implementations, which follow each other."""
    return case.make(torch.device("cpu"))
