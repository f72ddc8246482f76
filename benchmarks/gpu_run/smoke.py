"""``python -m benchmarks.gpu_run.smoke COUNTS [--tiny]``: whether the kernels work at all here.

Every op at real shapes with an odd vocabulary, against the reference on the same device, and twice
for its bits; a replayed CUDA graph; the products whose lines run on CUDA alone. One line for each,
with the time it took. A check that fails leaves the others run, until the device takes no more.
With ``--tiny`` the same on the CPU, by the simulated library and Triton's interpreter.

Exit status: 0 if all passed, else 1.
"""

import argparse
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.gpu_run.agreement import disagreement, same_bits
from benchmarks.gpu_run.calls import REAL, TINY, OpCall, Sizes, op_calls
from benchmarks.gpu_run.counting import Counts
from benchmarks.gpu_run.graph_check import check_replay
from benchmarks.gpu_run.product_checks import product_checks
from benchmarks.gpu_run.serving import Place, serving
from benchmarks.gpu_run.work import Work

# Seconds that an op of Triton is planned to take for compiling its kernels; a guess.
COMPILING = 6.0
# Likewise for what a process does before its first call.
STARTING = 8.0


@dataclass(frozen=True)
class Check:
    """Something that either works or raises.

    Attributes:
        missing: why it cannot be run here.
        planned: seconds that it should take, from bytes and flops of `work.Work`.
    """

    name: str
    run: Callable[[], None]
    planned: float
    missing: str = ""


def checks(sizes: Sizes, place: Place) -> Iterator[Check]:
    """All of them, what matters most first."""
    for name, work, run in product_checks(sizes, place.device):
        yield Check(name, run, _planned(work))
    calls = op_calls(sizes, place.device)
    for one in calls:
        backend = place.backend_of(one.op)
        missing = "" if backend else "no backend of a GPU for it"
        compiling = COMPILING if backend == "triton" else 0.0
        yield Check(
            f"{one.name} ({backend})",
            lambda one=one, backend=backend: check_call(one, str(backend)),  # type: ignore[misc]
            _planned(one.work) + compiling,
            missing,
        )
        if one.op == "philox_words":
            missing = "" if "cuda" in place.backends else "no cuda backend"
            run = lambda: check_replay(sizes, place)  # noqa: E731
            yield Check("latent_step, replayed graph", run, 0.1, missing)


def check_call(one: OpCall, backend: str) -> None:
    """The same bits twice, and as the reference.

    Raises:
        AssertionError: they are not.
    """
    ours, again = one.call(backend), one.call(backend)
    differ = [name for name in ours if not same_bits(ours[name], again[name])]
    del again
    wrong = [f"other bits the second time: {', '.join(differ)}"] if differ else []
    expected = one.call("reference")
    for name, x in ours.items():
        if found := disagreement(x, expected[name], one.sums):
            wrong.append(f"{name} {found}")
    if wrong:
        raise AssertionError("; ".join(wrong))


def main(words: Sequence[str] | None = None) -> int:
    """Run all checks; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_run.smoke")
    parser.add_argument("counts", type=Path)
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args(words)
    counts = Counts(options.counts)
    with serving(options.tiny) as place:
        print(f"on {place.device}: {', '.join(place.backends) or 'no backend'}", flush=True)
        for check in checks(TINY if options.tiny else REAL, place):
            counts.add(_outcome(check))
            if not works(place):
                print("the device takes no more work from this process", flush=True)
                counts.add("error")
                break
    return 1 if counts.found["failed"] or counts.found["error"] else 0


def works(place: Place) -> bool:
    """Whether the device takes more work: none after a kernel's fault."""
    if place.is_cuda:
        try:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
        except RuntimeError:
            return False
    return True


def _outcome(check: Check) -> str:
    if check.missing:
        print(f"skipped  {check.name}: {check.missing}", flush=True)
        return "skipped"
    begun = time.perf_counter()
    try:
        check.run()
        outcome, reason = "passed", ""
    except Exception as error:
        outcome, reason = "failed", f": {type(error).__name__}: {error}"
        if not isinstance(error, AssertionError):
            traceback.print_exc()
    took = time.perf_counter() - begun
    print(f"{outcome:<8} {check.name:<48} {took:7.2f} s, planned {check.planned:5.2f} s{reason}",
          flush=True)  # fmt: skip
    return outcome


def _planned(work: Work) -> float:
    """Twice by the backend, and by the reference, which is planned to take ten times as long."""
    return 0.2 + 12 * work.seconds


if __name__ == "__main__":
    sys.exit(main())
