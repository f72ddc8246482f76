"""Runs entries of a module of kernels, in this process or under a sanitizer in another."""

import ctypes
import dataclasses
import functools
import mmap
import os
import shutil
import struct
import subprocess
from pathlib import Path

import torch
from torch import Tensor

from tests.cuda_sim import build

MODULES = Path("tests/cuda_sim/modules")
PAGE = mmap.PAGESIZE
CANARY = 0x5C
NO_ACCESS = 0
SIMULATION_FAILED = 3
ORDERS = ("forward", "reverse", "shuffled")
MATH_MODES = ("exact", "high", "low", "mixed")


class SimulationError(Exception):
    """A kernel broke a rule of CUDA's; the message names the kernel, block and thread."""


class SanitizerError(Exception):
    """A sanitizer's report."""


@dataclasses.dataclass(frozen=True)
class Schedule:
    """In which order threads and blocks go on, and what is in fresh shared memory."""

    order: str = "forward"
    seed: int = 0
    resident_blocks: int = 1
    math: str = "exact"
    poison: int = 0xFF

    def __str__(self) -> str:
        return f"{self.order}{self.seed}" if self.order == "shuffled" else self.order

    def numbers(self) -> tuple[int, ...]:
        order, math = ORDERS.index(self.order), MATH_MODES.index(self.math)
        return (order, self.seed, self.resident_blocks, math, self.poison)


# What value tests run in. Fresh shared memory is NaN, huge, tiny and ordinary numbers in turn: a
# kernel that reads it gives other results. Approximate functions err in each direction.
SCHEDULES = (
    Schedule("forward", math="exact", poison=0xFF),
    Schedule("reverse", resident_blocks=2, math="high", poison=0x7E),
    Schedule("shuffled", seed=1, resident_blocks=3, math="low", poison=0x00),
    Schedule("shuffled", seed=2, resident_blocks=8, math="mixed", poison=0x3F),
)


class Options(ctypes.Structure):
    """``lepo_sim::Options``."""

    _fields_ = (
        ("order", ctypes.c_int32),
        ("seed", ctypes.c_uint32),
        ("resident_blocks", ctypes.c_int32),
        ("math_mode", ctypes.c_int32),
        ("poison", ctypes.c_uint8),
    )


class GuardedCopy:
    """A copy of a tensor between two pages that fault, as close to the second as 16 bytes allow."""

    def __init__(self, x: Tensor) -> None:
        self.like = x
        self.bytes = x.numel() * x.element_size()
        pages = -(-self.bytes // PAGE)
        self.map = mmap.mmap(-1, (pages + 2) * PAGE)
        base = ctypes.addressof(ctypes.c_char.from_buffer(self.map))
        for guard in (base, base + (pages + 1) * PAGE):
            if libc().mprotect(guard, PAGE, NO_ACCESS):
                raise OSError(ctypes.get_errno(), "mprotect")
        # The rest behind it, up to 15 bytes, shows writes only.
        self.rest = -self.bytes % 16
        self.address = base + (pages + 1) * PAGE - self.bytes - self.rest
        ctypes.memmove(self.address, x.data_ptr(), self.bytes)
        ctypes.memset(self.address + self.bytes, CANARY, self.rest)

    def result(self) -> Tensor:
        rest = ctypes.string_at(self.address + self.bytes, self.rest)
        if rest != bytes([CANARY]) * self.rest:
            raise SimulationError(f"a write beyond the {self.bytes} bytes of an array")
        out = torch.empty_like(self.like)
        ctypes.memmove(out.data_ptr(), self.address, self.bytes)
        return out


@functools.cache
def libc() -> ctypes.CDLL:
    library = ctypes.CDLL(None, use_errno=True)
    library.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return library


@functools.cache
def loaded(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    library.lepo_sim_run.restype = ctypes.c_char_p
    return library


def run_here(library: ctypes.CDLL, entry, arrays, numbers, schedule) -> list[Tensor]:
    copies = [GuardedCopy(x) for x in arrays]
    pointers = (ctypes.c_void_p * len(copies))(*(copy.address for copy in copies))
    values = (ctypes.c_double * len(numbers))(*numbers)
    options = Options(*schedule.numbers())
    error = library.lepo_sim_run(library[entry], pointers, values, ctypes.byref(options))
    if error is not None:
        raise SimulationError(error.decode())
    return [copy.result() for copy in copies]


def raw_bytes(x: Tensor) -> bytes:
    return ctypes.string_at(x.data_ptr(), x.numel() * x.element_size())


def environment() -> dict[str, str]:
    return os.environ | {
        # Fibers of threads that wait when an error ends the launch are never freed.
        "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "TSAN_OPTIONS": "halt_on_error=1:history_size=4",
    }


def run_driver(command: list[str], job: bytes) -> subprocess.CompletedProcess[bytes]:
    done = subprocess.run(
        command, input=job, capture_output=True, env=environment(), timeout=300, check=False
    )
    if b"unexpected memory mapping" in done.stderr and shutil.which("setarch"):
        # Some kernels place libraries where this ThreadSanitizer wants its shadow.
        done = subprocess.run(
            ["setarch", "-R", *command],
            input=job,
            capture_output=True,
            env=environment(),
            timeout=300,
            check=False,
        )
    return done


def run_apart(library: Path, variant, entry, arrays, numbers, schedule) -> list[Tensor]:
    payload = [raw_bytes(x) for x in arrays]
    job = struct.pack(
        f"=qq{len(numbers)}d{len(payload)}q",
        len(numbers),
        len(payload),
        *numbers,
        *map(len, payload),
    ) + b"".join(payload)
    words = [str(build.driver(variant)), str(library), entry, *map(str, schedule.numbers())]
    done = run_driver(words, job)
    if done.returncode == SIMULATION_FAILED:
        raise SimulationError(done.stderr.decode().strip())
    if done.returncode != 0:
        raise SanitizerError(done.stderr.decode(errors="replace"))
    results, at = [], 0
    for x in arrays:
        out = torch.empty_like(x)
        size = x.numel() * x.element_size()
        ctypes.memmove(out.data_ptr(), done.stdout[at : at + size], size)
        results.append(out)
        at += size
    return results


@dataclasses.dataclass(frozen=True)
class Module:
    """``modules/<name>.cu``, built as ``variant``.

    ``root`` holds ``csrc/`` and the modules; mutants have a copy of their own.
    """

    name: str
    variant: str = "plain"
    root: Path = build.ROOT

    def run(
        self,
        entry: str,
        arrays: list[Tensor],
        numbers: list[float] | tuple[float, ...] = (),
        schedule: Schedule = SCHEDULES[0],
    ) -> list[Tensor]:
        """What is in ``arrays`` after the entry ran on copies of them.

        ``arrays`` are contiguous CPU tensors; ``numbers`` are ints up to 2^53, or floats.

        Raises:
            SimulationError: the kernel broke a rule, such as a barrier that not all threads reach.
            SanitizerError: the sanitizer of ``variant`` found something.
        """
        assert all(x.is_contiguous() for x in arrays)
        source = self.root / MODULES / f"{self.name}.cu"
        library = build.module(source, self.variant, self.root / "csrc")
        if self.variant in ("plain", "ucontext"):
            return run_here(loaded(library), entry, arrays, numbers, schedule)
        return run_apart(library, self.variant, entry, arrays, numbers, schedule)
