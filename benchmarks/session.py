"""What one run measures, and what is saved of it and of the machine."""

import importlib.metadata
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

import lepo_kernels
from benchmarks import cases, ceilings, shapes
from benchmarks.case import Case, Implementation
from benchmarks.device import Device
from benchmarks.measure import Effort, Measured
from benchmarks.plan import Plan, memory_of
from benchmarks.timing import Stopwatch, host_timer

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SUITES = {"all": cases.FAMILIES, "kernels": cases.KERNELS, "end-to-end": cases.END_TO_END}
_PACKAGES = (
    *("triton", "transformers"),
    *("liger-kernel", "cut-cross-entropy", "trl", "flashinfer-python"),
)


def add_options(add: Callable[..., Any]) -> None:
    """Name the options; ``add`` is pytest's way to add one."""
    add("--suite", choices=tuple(SUITES), default="all", help="single ops, whole models, or both")
    add("--results", type=Path, metavar="FILE", help="is saved after each case")
    add("--device", help="cpu or cuda; default: cuda if there is a GPU")
    add(
        "--models",
        help=f"all, or some of {', '.join(shapes.MODELS)}; default: what suits the device",
    )
    add("--rows", type=int, help="rows (tokens) of every case; default: by kind of work")
    add("--dtype", choices=tuple(_DTYPES), help="of every case")
    add("--seconds", type=float, default=8.0, help="to spend on timing a case")
    add("--threads", type=int, help="torch's threads; default: all")
    add(
        "--cpu-time",
        action="store_true",
        help="one thread, timed by the processor time it gets: for a machine that others use",
    )
    add("--graphs", action="store_true", help="replay CUDA graphs where possible")
    add("--no-compile", action="store_true", help="leave torch.compile out")
    add("--tiny", action="store_true", help="tiny cases, to see that everything runs")
    add("--note", default="", help="what else a reader of the results should know")


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
    limits: ceilings.Ceilings | None = None

    def implementations(self, case: Case) -> list[Implementation]:
        here = case.on(self.device.torch)
        return [one for one in here if self.compile or not one.compiles]

    def left_out(self, case: Case) -> dict[str, str]:
        """What of a case the options leave out, and why."""
        here = set(self.implementations(case))
        left = (one.name for one in case.on(self.device.torch) if one not in here)
        return dict.fromkeys(left, "left out by --no-compile")

    def ceilings(self, watch: Stopwatch) -> ceilings.Ceilings:
        """Measured once."""
        if self.limits is None:
            dtypes = sorted({case.dtype for case in self.cases.values()}, key=str)
            self.limits = ceilings.measure(self.device, watch, dtypes, rough=self.tiny)
        return self.limits

    def machine(self) -> dict[str, Any]:
        """What is saved of the machine: nothing that differs between two runs on it."""
        return {"device": self.device.facts(), "versions": _versions()}

    def about(self) -> dict[str, Any]:
        """What is saved of this run."""
        left_out = [
            {"group": case.name, "name": name, "reason": reason}
            for case in self.cases.values()
            for name, reason in self.left_out(case).items()
        ]
        return {
            "load": self.load,
            "note": self.note,
            "ceilings": self.limits.as_dict() if self.limits else {"gemm": {}},
            "skipped": [*self.skipped, *left_out],
        }


# Where a session of pytest has it.
RUN = pytest.StashKey[Run]()


def prepare(options: Any) -> Run:
    """Set torch's threads, and the cases that the options ask for.

    Raises:
        ValueError: an option cannot be served.
    """
    if options.cpu_time:
        torch.set_num_threads(1)
    elif options.threads is not None:
        torch.set_num_threads(options.threads)
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
    families = SUITES[options.suite]
    wanted = cases.tiny(families) if options.tiny else cases.timed(plan, families)
    # A tiny case is there to be run, not to be timed well.
    seconds = 0.0 if options.tiny else options.seconds
    return Run(
        Device(where, host_timer(options.cpu_time), options.graphs),
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
