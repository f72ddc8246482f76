"""What the device can do: bandwidth of memory, and the rate of products. Measured in each run.

The two floors of a case are its bytes over the bandwidth and its flops over the rate; no
implementation is faster than the larger one, unless it finds its inputs in a cache.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch

from benchmarks.case import Case, dtype_name
from benchmarks.device import Device
from benchmarks.timing import Stopwatch, interleaved

# Of the products: as large as a head's on the CPU, large enough to fill a GPU.
_PRODUCT = {"cpu": (1024, 576, 12288), "cuda": (8192, 8192, 8192)}
_LEAST_BUFFER = {"cpu": 256 << 20, "cuda": 1 << 30}
_ROUGH_PRODUCT, _ROUGH_BUFFER = (64, 64, 64), 1 << 20
_ROUNDS = 7


@dataclass(frozen=True)
class Ceilings:
    """Bytes per second, flops per second; the best of some rounds.

    Attributes:
        read: of one pass that reads.
        copy: of one pass that reads and writes; counts both.
        gemm: of torch's own product, by the name of its dtype.
    """

    read: float
    copy: float
    gemm: dict[str, float]

    def floor(self, case: Case) -> float:
        """Seconds that nothing can undercut."""
        by_bytes = case.bytes / max(self.read, self.copy)
        return max(by_bytes, case.flops / self.gemm[dtype_name(case.dtype)])

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def measure(
    device: Device, watch: Stopwatch, dtypes: Sequence[torch.dtype], *, rough: bool = False
) -> Ceilings:
    """Measure buffers twice as large as the cache, and products of each dtype.

    ``rough`` takes small ones, in no time: the numbers are there, and mean nothing.
    """

    def fastest(function: Callable[[], object]) -> float:
        (samples,) = interleaved([device.batch(lambda _: function(), watch)], 0, _ROUNDS)
        return min(samples)

    kind = "cuda" if device.is_cuda else "cpu"
    size = _ROUGH_BUFFER if rough else max(2 * device.cache_bytes(), _LEAST_BUFFER[kind])
    x = torch.ones(1024, size // 4096, device=device.torch)
    y = torch.empty_like(x)
    read = min(fastest(partial(x.amax, -1)), fastest(partial(x.sum, -1)))
    copy = fastest(partial(y.copy_, x))
    del x, y
    rows, width, vocab = _ROUGH_PRODUCT if rough else _PRODUCT[kind]
    flops = 2 * rows * width * vocab
    gemm = {}
    for dtype in dtypes:
        product = _product(rows, width, vocab, dtype, device.torch)
        gemm[dtype_name(dtype)] = flops / fastest(product)
        del product
    device.free()
    return Ceilings(size / read, 2 * size / copy, gemm)


def _product(
    rows: int, width: int, vocab: int, dtype: torch.dtype, device: torch.device
) -> Callable[[], object]:
    left = torch.randn(rows, width, device=device).to(dtype)
    right = torch.randn(vocab, width, device=device).to(dtype)
    out = torch.empty(rows, vocab, dtype=dtype, device=device)
    return lambda: torch.mm(left, right.T, out=out)
