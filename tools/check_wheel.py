"""Checks a wheel of lepo_kernels, as docs/wheels.md describes.

    python -m tools.check_wheel dist/cpu/lepo-kernels/lepo_kernels-*.whl
    python -m tools.check_wheel --cuda 13.0 dist/cu130/lepo-kernels/lepo_kernels-*.whl

Needs torch, auditwheel, binutils, and for CUDA cuobjdump. Exits with 1 and one line per failure,
each naming the wheel, and where it applies the library, the kernel and the architecture.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from tools.native_build import DEFAULT_ARCHITECTURES, REFERENCE_TOOLKIT
from tools.wheel_checks.contents import check_contents
from tools.wheel_checks.kernels import SMALL_SPILL, check_kernels
from tools.wheel_checks.linking import check_linking, check_platform
from tools.wheel_checks.running import check_running
from tools.wheel_checks.wheel import Expected, Wheel


def main(words: list[str] | None = None) -> int:
    """Check one wheel; 0 if it is as it should be."""
    parser = argparse.ArgumentParser(description="Check a wheel of lepo_kernels.")
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--pure", action="store_true", help="it holds no native library")
    parser.add_argument("--cuda", metavar="VERSION", help="it holds _C_cuda for this CUDA (13.0)")
    parser.add_argument("--architectures", default=DEFAULT_ARCHITECTURES)
    parser.add_argument(
        "--allowed-spill",
        type=int,
        metavar="BYTES",
        help="of stack of a thread, which are named and fail nothing; default: none for CUDA "
        f"{REFERENCE_TOOLKIT}, {SMALL_SPILL} for another",
    )
    options = parser.parse_args(words)
    if options.pure:
        expected = Expected(())
    elif options.cuda:
        architectures = tuple(options.architectures.split(";"))
        allowed = options.allowed_spill
        if allowed is None:
            allowed = 0 if options.cuda == REFERENCE_TOOLKIT else SMALL_SPILL
        expected = Expected(("_C_cpu", "_C_cuda"), options.cuda, architectures, allowed)
    else:
        expected = Expected(("_C_cpu",))
    failures, facts = check(options.wheel, expected)
    for fact in facts:
        print(fact)
    for failure in failures:
        print(f"FAILED {options.wheel.name}: {failure}", file=sys.stderr)
    if not failures:
        print(f"ok: {options.wheel.name}")
    return 1 if failures else 0


def check(path: Path, expected: Expected) -> tuple[list[str], list[str]]:
    """All failures, and what there is to know about the wheel."""
    with tempfile.TemporaryDirectory() as folder:
        wheel = Wheel.unpack(path, Path(folder))
        failures = check_contents(wheel, expected)
        facts = [f"size: {path.stat().st_size / 1e6:.2f} MB"]
        facts += [f"{wheel.about(x)}: {x.stat().st_size / 1e6:.2f} MB" for x in wheel.libraries]
        if wheel.libraries:
            failures += check_linking(wheel)
            wrong, verdict = check_platform(wheel)
            failures += wrong
            facts.append(f"auditwheel: {verdict}")
        wrong, kernels = check_kernels(wheel, expected)
        failures += wrong
        facts += kernels
        wrong, ran = check_running(wheel, expected)
        failures += wrong
        if ran:
            facts.append("ran with instruction sets: " + ", ".join(ran))
    return failures, facts


if __name__ == "__main__":
    sys.exit(main())
