"""What the machine can do: bandwidth by size of the working set, and the rate of products.

The two floors of a case are its bytes over the bandwidth of the memory that holds them, and its
flops over the rate; no implementation is faster than the larger one. Measured in the same run as
the cases.
"""

import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from benchmarks.case import Case
from benchmarks.timing import interleaved

# Two cores' L2, a batch of logits in L3, more of L3, and more than a share of L3.
SIZES = (2 << 20, 8 << 20, 64 << 20, 512 << 20)
# Of the head's product at a quarter of the vocabulary.
_ROWS, _WIDTH, _VOCAB = 1024, 576, 12288
_ROUNDS = 7


@dataclass(frozen=True)
class Machine:
    """Bytes per second by size of the working set, flops per second by dtype.

    Attributes:
        read: of one pass that reads.
        copy: of one pass that reads and writes; counts both.
        write: of the first write to fresh memory, page faults included.
        rate: of a product [1024, 576] x [576, 12288] into memory that is at hand.
    """

    read: dict[int, float]
    copy: dict[int, float]
    write: dict[int, float]
    rate: dict[torch.dtype, float]

    def floors(self, case: Case) -> tuple[float, float]:
        """Seconds: bytes over bandwidth, flops over rate."""
        size = next((s for s in SIZES if case.bytes <= s), SIZES[-1])
        best = max(self.read[size], self.copy[size])
        return case.bytes / best, case.flops / self.rate[case.dtype]


def measure(
    clock: Callable[[], float] = time.perf_counter,
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16),
) -> Machine:
    """Measure this machine with torch's current number of threads."""

    def fastest(function: Callable[[], object]) -> float:
        return interleaved([function], _ROUNDS, clock)[0].fastest

    read, copy, write = {}, {}, {}
    for size in SIZES:
        x = torch.ones(16, size // 64)
        y = torch.empty_like(x)
        read[size] = size / min(fastest(partial(x.amax, -1)), fastest(partial(x.sum, -1)))
        copy[size] = 2 * size / fastest(partial(y.copy_, x))
        write[size] = size / fastest(partial(torch.ones_like, x))
    rate = {dtype: _flops() / fastest(_product(dtype)) for dtype in dtypes}
    return Machine(read, copy, write, rate)


def _flops() -> int:
    return 2 * _ROWS * _WIDTH * _VOCAB


def _product(dtype: torch.dtype) -> Callable[[], object]:
    left = torch.randn(_ROWS, _WIDTH).to(dtype)
    right = torch.randn(_VOCAB, _WIDTH).to(dtype)
    out = torch.empty(_ROWS, _VOCAB, dtype=dtype)
    return lambda: torch.mm(left, right.T, out=out)


def cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
