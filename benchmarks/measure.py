"""Measures one case: checks every implementation, then memory, then time, in turn.

An implementation that fails is left out; the others are measured all the same.
"""

import statistics
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from benchmarks import rotation
from benchmarks.case import Case, Implementation, dtype_name
from benchmarks.ceilings import Ceilings
from benchmarks.device import Device
from benchmarks.timing import Call, Stopwatch, interleaved

_MIB = 2**20


@dataclass(frozen=True)
class Effort:
    """How much is spent on a case.

    Attributes:
        seconds: of timed samples, of all implementations together.
        memory: bytes that copies of the inputs may fill.
    """

    seconds: float = 8.0
    memory: int = 4 << 30


@dataclass
class Measured:
    """What was found of one implementation.

    Attributes:
        samples: seconds per call, a number for each round; empty if it failed.
        calls: of a sample.
        error: why it has no samples.
        unavailable: whether that is a peer's own failure or a lack of memory, not a wrong result.
        derived: columns for the tables.
    """

    samples: list[float] = field(default_factory=list)
    calls: int = 1
    error: Exception | None = None
    unavailable: bool = False
    derived: dict[str, Any] = field(default_factory=dict)


def check(case: Case, one: Implementation, inputs: Any) -> Measured:
    """Run once, which is the warm-up, too, and hold the result against the oracle."""
    try:
        one.check(inputs, one.run(inputs))
    except Exception as error:
        # A peer that is installed and does not work here; but a wrong result is to be seen.
        unavailable = one.foreign and not isinstance(error, AssertionError)
        # What needs more memory than there is says something of itself, and nothing is wrong.
        unavailable |= isinstance(error, torch.OutOfMemoryError)
        # Their variables hold tensors.
        traceback.clear_frames(error.__traceback__)
        return Measured(error=error, unavailable=unavailable)
    return Measured()


def check_all(
    case: Case, implementations: Sequence[Implementation], device: Device
) -> dict[str, Measured]:
    """Check them, and time nothing; by name."""
    inputs = case.make(device.torch)
    return {one.name: check(case, one, inputs) for one in implementations}


def measure(
    case: Case,
    implementations: Sequence[Implementation],
    device: Device,
    ceilings: Ceilings,
    effort: Effort,
    watch: Stopwatch,
) -> dict[str, Measured]:
    """Measure ``implementations`` of a case, all of which can run here; by name."""
    if any(one.compiles for one in implementations):
        # Each case is compiled for its own shape, and the compiler keeps a limited number.
        torch.compiler.reset()
    inputs = case.make(device.torch)
    found = {one.name: check(case, one, inputs) for one in implementations}
    right = [one for one in implementations if found[one.name].error is None]
    for one in right:
        extra = device.extra_memory(partial(one.run, inputs))
        found[one.name].derived["extra_mib"] = None if extra is None else extra / _MIB
    turns = rotation.copies(case, inputs, device.cache_bytes(), effort.memory)
    batches = [device.batch(_turning(one, turns), watch) for one in right]
    for one, batch, samples in zip(
        right, batches, interleaved(batches, effort.seconds), strict=True
    ):
        found[one.name].samples, found[one.name].calls = samples, batch.calls
        found[one.name].derived |= {"replayed": batch.replayed, "input_buffers": len(turns)}
    _derive(case, right, found, ceilings)
    return found


def _turning(one: Implementation, turns: Sequence[Any]) -> Call:
    return lambda index: one.run(turns[index % len(turns)])


def _derive(
    case: Case, right: Sequence[Implementation], found: dict[str, Measured], ceilings: Ceilings
) -> None:
    """The columns that say how much faster, than what, and how far from the limit."""
    medians = {one.name: statistics.median(found[one.name].samples) for one in right}
    others = [one.name for one in right if one.kind == "other"]
    best = min(others, key=medians.__getitem__, default=None)
    for one in right:
        median = medians[one.name]
        found[one.name].derived |= {
            "op": case.op,
            "shape": case.shape,
            "dtype": dtype_name(case.dtype),
            "kind": one.kind,
            "lacks": one.lacks,
            "bytes": case.bytes,
            "flops": case.flops,
            "words": case.words,
            "tokens": case.tokens,
            "best_other": best,
            "ratio_to_best_other": None if best is None else median / medians[best],
            **rates(case, median, ceilings),
        }


def rates(case: Case, median: float, ceilings: Ceilings) -> dict[str, float | None]:
    """Of the case's least bytes and flops, of its random words, and of a model's tokens."""
    bandwidth, rate = case.bytes / median, case.flops / median
    return {
        "gb_per_s": bandwidth / 1e9,
        "tflop_per_s": rate / 1e12 if case.flops else None,
        "mwords_per_s": case.words / median / 1e6 if case.words else None,
        "tokens_per_s": case.tokens / median if case.tokens else None,
        "percent_of_read": 100 * bandwidth / ceilings.read,
        "percent_of_copy": 100 * bandwidth / ceilings.copy,
        "percent_of_gemm": 100 * rate / ceilings.gemm[dtype_name(case.dtype)]
        if case.flops
        else None,
        "percent_of_limit": 100 * ceilings.floor(case) / median,
    }
