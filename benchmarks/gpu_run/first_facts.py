"""``python -m benchmarks.gpu_run.first_facts FACTS.json COUNTS --within SECONDS [--tiny]``

What plans for the kernels rest on, measured one by one: the rates of copies and of the head's
products, what a loss takes beside its three bare products, a latent step as a graph, the launches
of a decoding step, and compiled steps of a rollout beside eager ones. The file is whole after each
fact, and a fact that cannot be had says why. With ``--tiny`` the same on the CPU, to see that it
works: what it says then means nothing.

Exit status: 0; 1 if a fact failed; 124 if none did, and the time ended before all were taken.
"""

import argparse
import json
import statistics
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks import BEGUN
from benchmarks.device import Device
from benchmarks.gpu_run.counting import Counts
from benchmarks.gpu_run.measured import REAL, SAMPLING, TINY, Fact, OfModel, facts_of
from benchmarks.gpu_run.serving import Place, serving
from benchmarks.gpu_run.smoke import works
from benchmarks.timing import interleaved, stopwatch

# As the command `timeout` has it.
OUT_OF_TIME = 124


def main(words: Sequence[str] | None = None, begun: float = BEGUN) -> int:
    """Measure and save; the exit status.

    Args:
        words: of the command line.
        begun: the reading of `time.monotonic` from which ``--within`` counts.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_run.first_facts")
    parser.add_argument("facts", type=Path)
    parser.add_argument("counts", type=Path)
    parser.add_argument("--within", type=float, required=True, metavar="SECONDS")
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args(words)
    counts, left = Counts(options.counts), 0
    saved: dict[str, Any] = {}
    with serving(options.tiny) as place:
        for fact in facts_of(TINY if options.tiny else REAL, place):
            if time.monotonic() + fact.planned > begun + options.within:
                saved[fact.name] = {"left_out": "the time ended"}
                left += 1
            else:
                saved[fact.name] = taken(fact, place)
            _save(options.facts, {"dry_run": options.tiny, "facts": saved})
            print(line(fact.name, saved[fact.name]), flush=True)
            counts.add(_kind(saved[fact.name]))
            if not works(place):
                print("the device takes no more work from this process", flush=True)
                counts.add("error")
                break
    if counts.found["failed"] or counts.found["error"]:
        return 1
    return OUT_OF_TIME if left else 0


def taken(fact: Fact, place: Place) -> dict[str, Any]:
    """What is saved of a fact."""
    if fact.missing:
        return {"left_out": fact.missing}
    begun = time.perf_counter()
    try:
        found = _measured(fact, place)
    except Exception as error:
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}"}
    found["took_seconds"] = round(time.perf_counter() - begun, 2)
    return found | {"planned_seconds": round(fact.planned, 2)}


def _measured(fact: Fact, place: Place) -> dict[str, Any]:
    made = fact.make()
    if isinstance(made, OfModel):
        return made()
    device = Device(place.device, time.perf_counter, graphs=fact.graph)
    batch = device.batch(made, stopwatch(device.timer))
    (samples,) = interleaved([batch], SAMPLING if place.is_cuda else 0.0)
    middle = statistics.median(samples)
    found: dict[str, Any] = {"seconds": middle, "least": min(samples), "samples": len(samples)}
    if fact.graph:
        found["replayed"] = batch.replayed
    if fact.work.bytes:
        found["bytes_per_second"] = fact.work.bytes / middle
    if fact.work.flops:
        found["flops_per_second"] = fact.work.flops / middle
    return found


def line(name: str, found: dict[str, Any]) -> str:
    """A fact for people."""
    numbers = ", ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in found.items()
    )
    return f"{name}: {numbers}"


def lines(file: Path) -> Iterator[str]:
    """The facts of a file for people; none if there is no such file."""
    if file.is_file():
        for name, found in json.loads(file.read_text())["facts"].items():
            yield line(name, found)


def _kind(found: dict[str, Any]) -> str:
    if "error" in found:
        return "failed"
    return "skipped" if "left_out" in found else "passed"


def _save(file: Path, content: dict[str, Any]) -> None:
    fresh = file.with_suffix(".new")
    fresh.write_text(json.dumps(content, indent=1) + "\n")
    fresh.replace(file)


if __name__ == "__main__":
    sys.exit(main())
