"""A pytest plugin in place of the real cases: two implementations whose time is a count of work.

Each call of ``worked`` costs as many hundredths of a second as LEPO_TEST_WORK says, each of
``steady`` one; no clock of the machine is read. LEPO_TEST_WRONG names the one that is wrong, or
says that there are no ``inputs``. With LEPO_TEST_WARNS each call warns, as a peer may. With
LEPO_TEST_INTERRUPTED there is a second case, whose inputs are interrupted as by Ctrl-C.
"""

import os
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks import cases, timing
from benchmarks.case import Case, Family, Implementation


class Clock:
    """Reads the work done so far; each reading takes a microsecond."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1e-6
        return self.now


CLOCK = Clock()


@dataclass
class Inputs:
    x: Tensor


def implementation(name: str, work: int) -> Implementation:
    def run(inputs: Inputs) -> Tensor:
        CLOCK.now += 0.01 * work
        if "LEPO_TEST_WARNS" in os.environ:
            warnings.warn("a third party deprecates something", DeprecationWarning, stacklevel=1)
        return 2 * inputs.x

    def check(inputs: Inputs, result: Tensor) -> None:
        wrong = os.environ.get("LEPO_TEST_WRONG") == name
        assert torch.equal(result, (3 if wrong else 2) * inputs.x), "off by a half"

    return Implementation(name, "ours", run, check)


def inputs(device: torch.device) -> Inputs:
    print("inputs were asked for")
    if os.environ.get("LEPO_TEST_WRONG") == "inputs":
        raise RuntimeError("no inputs today")
    return Inputs(torch.ones(4))


def interrupted(device: torch.device) -> Inputs:
    raise KeyboardInterrupt


def artificial() -> tuple[Case, ...]:
    worked = implementation("worked", int(os.environ["LEPO_TEST_WORK"]))
    rows = (worked, implementation("steady", 1))
    one = Case("artificial", "shape", inputs, rows, 32)
    if "LEPO_TEST_INTERRUPTED" in os.environ:
        return one, Case("interrupted", "shape", interrupted, rows, 32)
    return (one,)


cases.FAMILIES[:] = [Family(lambda plan: artificial(), artificial())]
timing.host_timer = lambda processor_time: CLOCK  # type: ignore[assignment]
