"""Extra memory of an implementation: its peak above its inputs and its results.

A process of its own makes the inputs, runs the same implementation once at a tiny size (which
loads libraries and starts threads), gives free memory back to the system, resets the kernel's
record of the peak of the resident set (``/proc/self/clear_refs``), and runs once. Extra memory is
that peak, less what was resident before, less the tensors that the run returns (results and
gradients, which every implementation has to make). Buffers of libraries count.
"""

import argparse
import ctypes
import gc
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.case import Case, Implementation, tensor_bytes

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"


def why_not() -> str | None:
    """Say why extra memory cannot be measured here; None if it can."""
    if not os.access(_CLEAR, os.W_OK):
        return "needs Linux's /proc/self/clear_refs"
    return None


def extra_memory(case: Case, implementation: Implementation, threads: int) -> int:
    """Bytes of extra memory, measured in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.memory", case.name, implementation.name]
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [*command, "--threads", str(threads)], cwd=root, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(f"{case.name}, {implementation.name}: {done.stderr}")
    return int(done.stdout.split()[-1])


def measure(case: Case, implementation: Implementation, warm_up: Case) -> int:
    """Bytes of extra memory of one run in this process."""
    device = torch.device("cpu")
    inputs = case.make(device)
    find(warm_up.implementations, implementation.name).run(warm_up.make(device))
    gc.collect()
    _give_back_free_memory()
    _CLEAR.write_text(_RESET_PEAK)
    before = _resident("VmRSS")
    result = implementation.run(inputs)
    peak = _resident("VmHWM")
    return max(0, peak - before - tensor_bytes(*_tensors(result)))


def find(things: Any, name: str) -> Any:
    return next(thing for thing in things if thing.name == name)


def _give_back_free_memory() -> None:
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _resident(field: str) -> int:
    line = next(x for x in _STATUS.read_text().splitlines() if x.startswith(field))
    return int(line.split()[1]) << 10


def _tensors(result: Any) -> Iterator[Tensor]:
    if isinstance(result, Tensor):
        yield result
    elif isinstance(result, tuple):
        for part in result:
            yield from _tensors(part)


def main() -> None:
    from benchmarks.cases import FAMILIES

    parser = argparse.ArgumentParser(description="Print the extra memory of one implementation.")
    parser.add_argument("case")
    parser.add_argument("implementation")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    wanted = parser.parse_args()
    torch.set_num_threads(wanted.threads)
    for family in FAMILIES:
        for case in (*family.timed, *family.tiny):
            if case.name == wanted.case:
                implementation = find(case.implementations, wanted.implementation)
                warm_up = next(
                    tiny
                    for tiny in family.tiny
                    if wanted.implementation in {x.name for x in tiny.implementations}
                    and tiny.dtype == case.dtype
                )
                print(measure(case, implementation, warm_up))
                return
    parser.error(f"no case is called {wanted.case!r}")


if __name__ == "__main__":
    main()
