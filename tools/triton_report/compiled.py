"""Compiles the launches that calls of the backend make, for GPUs that need not be here."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUDGETS = ROOT / "lepo_kernels" / "backends" / "triton" / "budgets.json"
# Ampere, Hopper, Blackwell, and AMD's MI300.
TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")
# What models are trained in. The tests hold the other dtypes to the same budgets.
DTYPE = "bfloat16"


@dataclass(frozen=True)
class Kernel:
    """A kernel for one target, as it came out of the compiler.

    Registers and bytes of stack are of a thread, bytes of shared memory of a program; loads are
    those of 16 bytes, and products instructions of tensor cores.
    """

    name: str
    target: str
    warps: int
    registers: int
    stack: int
    shared: int
    wide_loads: int
    products: int


def compiled_kernels(cases: list[str]) -> list[Kernel]:
    """All kernels of these cases for all targets: one of each name, the one with most registers."""
    found: dict[tuple[str, str], Kernel] = {}
    with tempfile.TemporaryDirectory() as folder:
        for target in TARGETS:
            for case in cases:
                for kernel in _compile(case, target, Path(folder)):
                    known = found.get((kernel.name, target))
                    if known is None or kernel.registers > known.registers:
                        found[kernel.name, target] = kernel
    return list(found.values())


def _compile(case: str, target: str, folder: Path) -> Iterator[Kernel]:
    command = [sys.executable, "-m", "tests.triton_sim.compiling", case, DTYPE, target]
    options = {"TRITON_CACHE_DIR": str(folder), "TRITON_INTERPRET": "0", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | options, stdout=subprocess.PIPE, text=True, check=True
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    for start, used in zip(lines[::2], lines[1::2], strict=True):
        yield Kernel(start["kernel"], target, start["warps"], **used)
