"""Builds and checks a wheel with every published CUDA toolkit, and writes the table of the outcome.

    python -m tools.wheels_matrix               # all of them: some minutes each, 350 MB to fetch
    python -m tools.wheels_matrix 13.1 13.4     # these alone; the other rows stay as they are

The wheels that pass are filed in dist/, as tools.build_wheel does. The table is in
docs/wheels.md, between two markers, and gets a row as soon as there is one. Exits with 1 if a
toolkit's wheel is not as it should be.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from tools.build_wheel import build, expectation, file_wheel
from tools.check_wheel import check
from tools.cuda_report.disassembly import find_tool
from tools.native_build import ROOT, BuildError, Toolkit, find_toolkit
from tools.toolkits import PUBLISHED, check_published, fetch_toolkit, unlisted
from tools.wheel_checks.kernels import Usage, read_usage
from tools.wheel_checks.wheel import Wheel

PAGE = ROOT / "docs" / "wheels.md"
BEGIN = "<!-- wheels-matrix: written by make wheels-matrix -->\n"
END = "<!-- wheels-matrix: end -->\n"
HEADING = """\
| toolkit | nvcc | build | wheel | most registers | spills | verdict |
|---|---|---|---|---|---|---|
"""


@dataclass(frozen=True)
class Row:
    """What came of one toolkit; empty where the build did not get that far."""

    toolkit: str
    verdict: str  # "ok", or the first failure
    nvcc: str = ""
    seconds: float | None = None
    size: int | None = None  # bytes of the wheel
    registers: str = ""
    spills: str = ""

    @property
    def ok(self) -> bool:
        """Whether the wheel was built and passed."""
        return self.verdict == "ok"

    def __str__(self) -> str:
        seconds = "" if self.seconds is None else f"{self.seconds:.0f} s"
        size = "" if self.size is None else f"{self.size / 1e6:.2f} MB"
        cells = (self.toolkit, self.nvcc, seconds, size, self.registers, self.spills, self.verdict)
        return f"| {' | '.join(cells)} |"


def main(words: list[str] | None = None) -> int:
    """Build, check and tell; 0 if every toolkit's wheel is as it should be."""
    parser = argparse.ArgumentParser(description="Build wheels with every published toolkit.")
    parser.add_argument("toolkits", nargs="*", metavar="VERSION", help="default: all")
    parser.add_argument("--dist", type=Path, default=ROOT / "dist")
    options = parser.parse_args(words)
    for name in options.toolkits:
        check_published(name)
    try:
        find_tool("cuobjdump")
    except FileNotFoundError as error:
        raise BuildError(str(error)) from error
    # As CI has it: a small spill is for the table to tell, but not with the reference toolkit.
    os.environ.setdefault("LEPO_FAIL_ON_SPILL", "reference")
    fine = True
    for name in options.toolkits or PUBLISHED:
        row = make_row(name, options.dist)
        print(row, flush=True)
        PAGE.write_text(with_row(PAGE.read_text(), row))
        fine = fine and row.ok
    warn_of_unlisted()
    return 0 if fine else 1


def make_row(name: str, dist: Path) -> Row:
    """Build and check one toolkit's wheel, and file it in ``dist`` if it passes."""
    try:
        os.environ["LEPO_CUDA_HOME"] = str(fetch_toolkit(name))
        toolkit = find_toolkit()
        with tempfile.TemporaryDirectory() as folder:
            return _row_of_wheel(name, toolkit, Path(folder), dist)
    except BuildError as error:
        return Row(name, _cell(str(error.code)))


def _row_of_wheel(name: str, toolkit: Toolkit, folder: Path, dist: Path) -> Row:
    started = time.monotonic()
    wheel = build(folder, toolkit, local_version=False)
    seconds = time.monotonic() - started
    failures, facts = check(wheel, expectation(toolkit))
    for line in [*facts, *(f"FAILED {wheel.name}: {failure}" for failure in failures)]:
        print(line)
    usage = _usage(wheel, folder / "unpacked")
    size = wheel.stat().st_size
    verdict = _cell(failures[0]) if failures else "ok"
    if not failures:
        file_wheel(wheel, dist / toolkit.tag)
    return Row(
        name, verdict, nvcc_release(toolkit), seconds, size, most_registers(usage), worst(usage)
    )


def _usage(wheel: Path, folder: Path) -> dict[str, dict[str, Usage]]:
    unpacked = Wheel.unpack(wheel, folder).folder
    return read_usage(find_tool("cuobjdump"), unpacked / "lepo_kernels" / "_C_cuda.so")


def _cell(text: str) -> str:
    return text.strip().splitlines()[0].replace("|", "\\|")


def nvcc_release(toolkit: Toolkit) -> str:
    """Such as 13.4.92."""
    said = subprocess.run([str(toolkit.nvcc), "--version"], capture_output=True, text=True).stdout
    found = re.search(r"V([\d.]+)", said)
    return found[1] if found else toolkit.version


def most_registers(usage: dict[str, dict[str, Usage]]) -> str:
    """The kernel that takes most, and where."""
    number, kernel, architecture = max(
        (found.registers, kernel, name)
        for kernel, per in usage.items()
        for name, found in per.items()
    )
    return f"{number}: `{kernel.removeprefix('lepo::')}`, {architecture}"


def worst(usage: dict[str, dict[str, Usage]]) -> str:
    """How many kernels spill on how many architectures, and the most bytes of a thread."""
    found = [use.spilled for per in usage.values() for use in per.values() if use.spilled]
    return f"{len(found)}, at most {max(found)} bytes" if found else "none"


def matrix(rows: dict[str, str]) -> str:
    """The table of these rows by toolkit, and what it was measured with."""
    table = "".join(f"{rows[name]}\n" for name in PUBLISHED if name in rows)
    return (
        f"{HEADING}{table}\nBuilt and checked on {hardware()}, with torch {version('torch')}; "
        "the times are for both\nlibraries, from the source distribution to the wheel.\n"
    )


def hardware() -> str:
    """Such as ``2 cores of an AMD EPYC server``."""
    found = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    model = found[1].strip() if found else os.uname().machine
    article = "an" if model[0] in "AEIOU" else "a"
    return f"{len(os.sched_getaffinity(0))} cores of {article} {model} server"


def with_row(page: str, row: Row) -> str:
    """``page`` with this row in the table between the markers, instead of one of its toolkit.

    Raises:
        ValueError: the markers are not there, once each.
    """
    if (page.count(BEGIN), page.count(END)) != (1, 1):
        raise ValueError(f"the page does not hold {BEGIN.strip()} and {END.strip()}, once each")
    before, rest = page.split(BEGIN)
    table, after = rest.split(END)
    rows = {line.split()[1]: line for line in table.splitlines() if re.match(r"\| \d", line)}
    return before + BEGIN + matrix(rows | {row.toolkit: str(row)}) + END + after


def warn_of_unlisted() -> None:
    """Say where the list of published toolkits is old, if the package index can be asked."""
    try:
        newer = unlisted()
    except BuildError as error:
        print(f"WARNING: {_cell(str(error.code))}", file=sys.stderr)
        return
    if newer:
        print(f"WARNING: tools/toolkits.py lacks CUDA {', '.join(newer)}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
