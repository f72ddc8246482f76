"""Every CUDA kernel, for every architecture, within its budget of registers and without a stack."""

import math
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tools.cuda_report.budgets import matches, read_budgets
from tools.cuda_report.disassembly import find_tool
from tools.cuda_report.kernels import SHIPPED
from tools.wheel_checks.wheel import Expected, Wheel

# Bytes of stack of a thread: four registers, as many as one 16-byte load fills. A compiler that
# spills no more has misjudged by a register or two what fits; more is a kernel that does not fit.
SMALL_SPILL = 16


@dataclass(frozen=True)
class Usage:
    """What one kernel takes on one architecture."""

    registers: int
    stack: int
    local: int

    @property
    def spilled(self) -> int:
        """Bytes of a thread that are not in registers."""
        return self.stack + self.local


def read_usage(cuobjdump: str, library: Path) -> dict[str, dict[str, Usage]]:
    """Kernel -> architecture (such as ``sm_90``) -> what it takes."""
    text = _output(cuobjdump, "--dump-resource-usage", str(library))
    found: dict[str, dict[str, Usage]] = {}
    architecture = kernel = ""
    for line in _output("c++filt", text=text).splitlines():
        if start := re.match(r"arch = (\S+)", line):
            architecture = start[1]
        elif start := re.match(r"\s*Function (.+):$", line):
            kernel = _short_name(start[1])
        elif numbers := re.search(r"REG:(\d+) STACK:(\d+) .*LOCAL:(\d+)", line):
            found.setdefault(kernel, {})[architecture] = Usage(*map(int, numbers.groups()))
    return found


def _short_name(demangled: str) -> str:
    """``lepo::cuda::kernel<float>`` of ``void lepo::cuda::kernel<float>(float const*)``."""
    name = demangled.removeprefix("void ")
    return name[: name.rindex("(")]


def check_kernels(
    wheel: Wheel, expected: Expected, budgets: dict[str, int] | None = None
) -> tuple[list[str], list[str]]:
    """Failures, and one line per kernel."""
    if "_C_cuda" not in expected.libraries:
        return [], []
    library = wheel.folder / "lepo_kernels" / "_C_cuda.so"
    if not library.is_file():
        return ["lepo_kernels/_C_cuda.so: missing"], []
    try:
        cuobjdump = find_tool("cuobjdump")
    except FileNotFoundError as error:
        return [str(error)], []
    usage = read_usage(cuobjdump, library)
    if budgets is None:
        table = read_budgets(SHIPPED, toolkit=expected.cuda)
        budgets = {pattern: budget["registers"] for pattern, budget in table.items()}
    allowed = expected.allowed_spill
    failures = check_usage(usage, expected.architectures, budgets, allowed)
    failures += _check_ptx(cuobjdump, library, expected.architectures)
    lines = [f"WARNING {wheel.about(library)}: {spill}" for spill in spills(usage, 0, allowed)]
    lines += [
        f"{kernel}: registers "
        + ", ".join(f"{found.registers} on {name}" for name, found in sorted(per.items()))
        for kernel, per in sorted(usage.items())
    ]
    return [f"{wheel.about(library)}: {failure}" for failure in failures], lines


def spills(usage: dict[str, dict[str, Usage]], above: int, most: float) -> list[str]:
    """What takes more than ``above`` bytes of stack, and at most ``most``."""
    return [
        f"kernel {kernel} on {name}: stack {found.stack}, local {found.local} bytes"
        for kernel, per in sorted(usage.items())
        for name, found in sorted(per.items())
        if above < found.spilled <= most
    ]


def check_usage(
    usage: dict[str, dict[str, Usage]],
    architectures: tuple[str, ...],
    budgets: dict[str, int],
    allowed_spill: int = 0,
) -> list[str]:
    """Every kernel of the table is there, for every architecture, and keeps to its budget."""
    wanted = {_machine(architecture) for architecture in architectures}
    entries = {name: matches(name, budgets) for name in usage}
    unused = budgets.keys() - {x for found in entries.values() for x in found}
    failures = [f"kernel {name}: missing" for name in sorted(unused)]
    failures += spills(usage, allowed_spill, math.inf)
    for kernel, per in sorted(usage.items()):
        failures += [f"kernel {kernel}: missing for {x}" for x in sorted(wanted - per.keys())]
        failures += [f"kernel {kernel}: {x} was not asked for" for x in sorted(per.keys() - wanted)]
        if not entries[kernel]:
            failures.append(f"kernel {kernel}: has no budget in budgets.json")
        budget = min((budgets[x] for x in entries[kernel]), default=None)
        for name, found in sorted(per.items()):
            if budget is not None and found.registers > budget:
                failures.append(
                    f"kernel {kernel} on {name}: {found.registers} registers, budget {budget}"
                )
    return failures


def _check_ptx(cuobjdump: str, library: Path, architectures: tuple[str, ...]) -> list[str]:
    listed = set(re.findall(r"\.(sm_\w+)\.ptx", _output(cuobjdump, "--list-ptx", str(library))))
    wanted = {_machine(name) for name in architectures if name.endswith("+PTX")}
    return [f"PTX for {name}: missing" for name in sorted(wanted - listed)] + [
        f"PTX for {name}: was not asked for" for name in sorted(listed - wanted)
    ]


def _machine(architecture: str) -> str:
    """``sm_90`` of ``9.0``."""
    return "sm_" + architecture.replace("+PTX", "").replace(".", "")


def _output(*command: str, text: str | None = None) -> str:
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=True)
    return done.stdout
