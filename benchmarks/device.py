"""The device of a run: what it is, its cache, and how time and memory are taken on it."""

import gc
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks import memory
from benchmarks.timing import Batch, Call, Stopwatch, Timer, batch_of, device_timer

# Where the system does not tell the size of its last-level cache.
_USUAL_CACHE = 32 << 20
_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")


@dataclass(frozen=True)
class Device:
    """Where a run takes place.

    Attributes:
        host_timer: for the CPU.
        graphs: whether CUDA graphs are replayed where that is possible.
    """

    torch: torch.device
    host_timer: Timer
    graphs: bool = False

    @property
    def is_cuda(self) -> bool:
        return self.torch.type == "cuda"

    @property
    def timer(self) -> Timer:
        return device_timer if self.is_cuda else self.host_timer

    def batch(self, call: Call, watch: Stopwatch) -> Batch:
        return batch_of(call, watch, self.is_cuda and self.graphs)

    def extra_memory(self, run: Callable[[], Any]) -> int | None:
        """Bytes of a run's peak above its inputs and results; None where it cannot be measured."""
        if self.is_cuda:
            return memory.extra_on_cuda(run)
        return memory.extra_on_host(run) if memory.why_not() is None else None

    def cache_bytes(self) -> int:
        """Of the last-level cache."""
        if self.is_cuda:
            return int(torch.cuda.get_device_properties(self.torch).L2_cache_size)
        sizes = [_bytes(file.read_text()) for file in _CACHES.glob("index*/size")]
        return max(sizes, default=_USUAL_CACHE)

    def works(self) -> bool:
        """Whether it takes more work from this process: none after a kernel's fault."""
        if self.is_cuda:
            try:
                torch.cuda.synchronize(self.torch)
                torch.cuda.empty_cache()
            except RuntimeError:
                return False
        return True

    def free(self) -> None:
        """Give memory that nothing uses back."""
        gc.collect()
        if self.is_cuda:
            torch.cuda.empty_cache()

    def facts(self) -> dict[str, Any]:
        """What a reader needs to know of it."""
        if self.is_cuda:
            found = torch.cuda.get_device_properties(self.torch)
            return {
                "type": "cuda",
                "name": found.name,
                "capability": f"{found.major}.{found.minor}",
                "memory_gib": round(found.total_memory / 2**30, 1),
                "cache_mib": self.cache_bytes() >> 20,
                "timed_by": "perf_counter, synchronized",
            }
        return {
            "type": self.torch.type,
            "name": cpu_model(),
            "capability": torch.backends.cpu.get_cpu_capability(),
            "processors": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "cache_mib": self.cache_bytes() >> 20,
            "timed_by": getattr(self.host_timer, "__name__", "clock"),
        }


def cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _bytes(text: str) -> int:
    """Of a size as the system writes it, such as 2048K."""
    text = text.strip()
    factors = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    return int(text[:-1]) * factors[text[-1]] if text[-1] in factors else int(text)
