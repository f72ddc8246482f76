"""Extra memory of an implementation: its peak above its inputs and its results.

On CUDA the allocator of torch keeps the peak. On the host, free memory is given back to the system,
the kernel's record of the peak of the resident set is reset (``/proc/self/clear_refs``), and the
function runs once. Extra memory is that peak, less what was resident before, less the tensors that
the run returns (results and gradients, which every implementation has to make). The function ran
before: what libraries keep for good does not count.
"""

import ctypes
import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.case import tensor_bytes

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"


def why_not() -> str | None:
    """Say why extra memory cannot be measured on this host; None if it can."""
    if not os.access(_CLEAR, os.W_OK):
        return "needs Linux's /proc/self/clear_refs"
    return None


def extra_on_host(run: Callable[[], Any]) -> int:
    gc.collect()
    _give_back_free_memory()
    _CLEAR.write_text(_RESET_PEAK)
    before = _resident("VmRSS")
    result = run()
    peak = _resident("VmHWM")
    return max(0, peak - before - tensor_bytes(*_tensors(result)))


def extra_on_cuda(run: Callable[[], Any]) -> int:
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = run()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated()
    return max(0, peak - before - tensor_bytes(*_tensors(result)))


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
