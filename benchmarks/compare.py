"""The table of ratios: ``python -m benchmarks.compare [--threads 2] [--only P3] [--json OUT]``.

Every implementation is checked first; then all of a case are timed in turn.
"""

import argparse
import datetime
import functools
import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

import lepo_kernels
from benchmarks import machine, memory
from benchmarks.case import Case, Implementation
from benchmarks.cases import TIMED
from benchmarks.timing import Timing, interleaved


def environment() -> dict[str, Any]:
    """What a reader needs to know of the run."""
    return {
        "cpu": machine.cpu_model(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
        "platform": platform.platform(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "lepo_kernels": lepo_kernels.__version__,
        },
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def measured_machine(figures: machine.Machine) -> dict[str, Any]:
    """The machine's figures in GB/s and GFLOP/s."""
    return {
        **{
            f"{what}_gb_per_s": {f"{size >> 20} MiB": round(x / 1e9, 1) for size, x in by.items()}
            for what, by in (
                ("read", figures.read),
                ("copy", figures.copy),
                ("fresh_write", figures.write),
            )
        },
        "gemm_gflop_per_s": {
            str(dtype).removeprefix("torch."): round(x / 1e9, 1)
            for dtype, x in figures.rate.items()
        },
    }


def compare(
    case: Case,
    figures: machine.Machine,
    *,
    rounds: int | None,
    with_memory: bool,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Any]:
    """Check, time and measure one case."""
    inputs = case.make(torch.device("cpu"))
    here = [x for x in case.implementations if x.missing is None]
    for one in here:
        one.check(inputs, one.run(inputs))
    runs = [functools.partial(one.run, inputs) for one in here]
    timings = interleaved(runs, rounds or case.rounds, clock)
    by_bytes, by_flops = figures.floors(case)
    del inputs, runs
    threads = torch.get_num_threads()
    measure_memory = with_memory and memory.why_not() is None
    extra = [memory.extra_memory(case, one, threads) if measure_memory else None for one in here]
    return {
        "op": case.op,
        "shape": case.shape,
        "bytes_floor_ms": 1e3 * by_bytes,
        "flops_floor_ms": 1e3 * by_flops,
        "rows": _rows(case, here, timings, extra),
        "skipped": {x.name: x.missing for x in case.implementations if x.missing is not None},
    }


def _rows(
    case: Case,
    implementations: Sequence[Implementation],
    timings: Sequence[Timing],
    extra: Sequence[int | None],
) -> list[dict[str, Any]]:
    kinds = [x.kind for x in implementations]
    ours = timings[kinds.index("ours")].median if "ours" in kinds else None
    floor = timings[kinds.index("floor")].median if "floor" in kinds else None
    return [
        {
            "implementation": one.name,
            "kind": one.kind,
            "median_ms": 1e3 * time.median,
            "quartiles_ms": [1e3 * time.low, 1e3 * time.high],
            "fastest_ms": 1e3 * time.fastest,
            "ratio_to_ours": ours and time.median / ours,
            "ratio_to_floor": floor and time.median / floor,
            "gb_per_s": case.bytes / time.median / 1e9,
            "gflop_per_s": case.flops / time.median / 1e9 if case.flops else None,
            "mwords_per_s": case.words / time.median / 1e6 if case.words else None,
            "extra_mib": None if more is None else more / 2**20,
        }
        for one, time, more in zip(implementations, timings, extra, strict=True)
    ]


_HEADINGS = ("implementation", "ms", "quartiles", "/ours", "/floor", "GB/s", "rate", "extra MiB")


def table(result: dict[str, Any]) -> str:
    """One case as text."""
    lines = [_HEADINGS]
    for row in result["rows"]:
        low, high = row["quartiles_ms"]
        rate = ""
        if row["gflop_per_s"]:
            rate = f"{row['gflop_per_s']:.0f} GFLOP/s"
        if row["mwords_per_s"]:
            rate = f"{row['mwords_per_s']:.0f} Mword/s"
        lines.append(
            (
                row["implementation"],
                f"{row['median_ms']:.3g}",
                f"{low:.3g}..{high:.3g}",
                _number(row["ratio_to_ours"], ".2f"),
                _number(row["ratio_to_floor"], ".2f"),
                f"{row['gb_per_s']:.1f}",
                rate,
                _number(row["extra_mib"], ".0f"),
            )
        )
    widths = [max(len(line[i]) for line in lines) for i in range(len(_HEADINGS))]
    title = f"{result['op']} {result['shape']}"
    floors = f"floors: bytes {result['bytes_floor_ms']:.3g} ms"
    if result["flops_floor_ms"]:
        floors += f", flops {result['flops_floor_ms']:.3g} ms"
    body = [
        "  "
        + line[0].ljust(widths[0])
        + "".join(x.rjust(w + 2) for x, w in zip(line[1:], widths[1:], strict=True))
        for line in lines
    ]
    skipped = [f"  {name}: skipped, {why}" for name, why in result["skipped"].items()]
    return "\n".join([title, f"  {floors}", *body, *skipped, ""])


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def main(arguments: Sequence[str] | None = None, cases: Sequence[Case] = TIMED) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only", default="", help="cases whose name holds this text")
    parser.add_argument("--rounds", type=int, default=None, help="timed rounds, for all cases")
    parser.add_argument("--no-memory", action="store_true", help="do not measure extra memory")
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="one thread, timed by the processor time it gets: for a machine that others use",
    )
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the figures there, too")
    wanted = parser.parse_args(arguments)
    chosen = [case for case in cases if wanted.only in case.name]
    if not chosen:
        parser.error(f"--only: no case's name holds {wanted.only!r}")
    torch.set_num_threads(1 if wanted.cpu_time else wanted.threads)
    clock = time.process_time if wanted.cpu_time else time.perf_counter
    report = environment()
    report["clock"] = clock.__name__
    figures = machine.measure(clock)
    report["machine"] = measured_machine(figures)
    print(json.dumps(report, indent=1))
    report["cases"] = []
    for case in chosen:
        result = compare(
            case, figures, rounds=wanted.rounds, with_memory=not wanted.no_memory, clock=clock
        )
        report["cases"].append(result)
        print(table(result), flush=True)
    if wanted.json is not None:
        wanted.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
