"""What each kernel may take and must do: the tables ``budgets.json`` beside the sources.

A table maps a kernel, or a pattern for several, to
    registers         most registers of a thread, on any architecture
    shared            most bytes of fixed-size shared memory of a block
    dynamic_shared    most bytes that a launch asks for; there if and only if the kernel uses them
    wide_loads        fewest loads of 16 bytes from global memory in its code
    wide_stores       fewest stores of 16 bytes to global memory in its code
    toolkits          version of a CUDA toolkit, such as "13.4" -> those of the numbers above that
                      are others with its compiler
where the last four may be left out, and a kernel's own name goes before patterns. A stack, and
traffic to local memory, are never allowed.
"""

import fnmatch
import json
import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from tools.cuda_report.kernels import Kernel
from tools.cuda_report.occupancy import LIMITS

Budget = dict[str, int]
Table = dict[str, Budget]
NEEDED = frozenset(("registers", "shared"))
OPTIONAL = frozenset(("dynamic_shared", "wide_loads", "wide_stores"))
TOOLKITS = "toolkits"


def read_budgets(*folders: Path, toolkit: str | None = None) -> Table:
    """The tables of these folders, as one, for a toolkit such as 13.4.

    Without a toolkit, what the tables say of none.

    Raises:
        ValueError: an entry holds what it cannot hold.
    """
    table: dict[str, dict[str, Any]] = {}
    for folder in folders:
        table |= json.loads((folder / "budgets.json").read_text())
    return {pattern: _for_toolkit(pattern, entry, toolkit) for pattern, entry in table.items()}


def _for_toolkit(pattern: str, entry: dict[str, Any], toolkit: str | None) -> Budget:
    budget: Budget = {name: value for name, value in entry.items() if name != TOOLKITS}
    if not NEEDED <= budget.keys() <= NEEDED | OPTIONAL:
        raise ValueError(f"budgets.json: {pattern} has the entries {', '.join(entry)}")
    for version, others in entry.get(TOOLKITS, {}).items():
        if not re.fullmatch(r"\d+\.\d+", version) or not others.keys() <= budget.keys():
            raise ValueError(
                f"budgets.json: {pattern} has for toolkit {version} {', '.join(others)}"
            )
        if version == toolkit:
            budget = budget | others
    return budget


def matches(kernel: str, table: Collection[str]) -> list[str]:
    """What in the table speaks of this kernel: its name alone, else all patterns that fit."""
    if kernel in table:
        return [kernel]
    return [pattern for pattern in table if fnmatch.fnmatchcase(kernel, pattern)]


def breaches(kernels: Iterable[Kernel], table: Table) -> list[str]:
    """A line for each kernel and number that is not as its budget has it."""
    lines = []
    for kernel in kernels:
        found = matches(kernel.usage.kernel, table)
        if len(found) != 1:
            lines.append(f"{kernel}: {len(found)} entries in the tables of budgets")
            continue
        lines += [f"{kernel}: {line}" for line in _breaches_of(kernel, table[found[0]])]
    return lines


def _breaches_of(kernel: Kernel, budget: Budget) -> list[str]:
    usage, code, lines = kernel.usage, kernel.code, []
    at_most = {
        "registers": (usage.registers, budget["registers"]),
        "bytes of fixed shared memory": (usage.shared, budget["shared"]),
        "bytes of stack": (usage.stack, 0),
        "loads and stores of local memory": (code.local, 0),
    }
    for what, (number, limit) in at_most.items():
        if number > limit:
            lines.append(f"{number} {what}, the budget is {limit}")
    at_least = {
        "16-byte loads": (code.wide_loads, budget.get("wide_loads", 0)),
        "16-byte stores": (code.wide_stores, budget.get("wide_stores", 0)),
    }
    for what, (number, limit) in at_least.items():
        if number < limit:
            lines.append(f"{number} {what}, the budget asks for {limit}")
    if kernel.launch.uses_dynamic_shared != ("dynamic_shared" in budget):
        uses = "uses" if kernel.launch.uses_dynamic_shared else "does not use"
        lines.append(f"{uses} dynamic shared memory, the budget says otherwise")
    shared = usage.shared + budget.get("dynamic_shared", 0)
    if shared > (most := LIMITS[usage.architecture].shared_per_block):
        lines.append(f"{shared} bytes of shared memory, a block has {most}")
    return lines
