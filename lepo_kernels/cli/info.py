"""``lepo info``: what this installation can do."""

import argparse
import json
from typing import TYPE_CHECKING, Any

from lepo_kernels import extras
from lepo_kernels.environment import info

if TYPE_CHECKING:
    from rich.table import Table


def run(words: list[str]) -> None:
    """Print the description, as tables or as JSON.

    It needs torch alone: it reports how an installation went. Tables need rich.
    """
    parser = argparse.ArgumentParser(
        prog="lepo info", description="Show versions, the device, and which kernel serves each op."
    )
    parser.add_argument("--json", action="store_true", help="print it as JSON")
    as_json = parser.parse_args(words).json or not extras.is_here("rich")
    found = info()
    if as_json:
        print(json.dumps(found, indent=2, allow_nan=False))
    else:
        _show(found)


def _show(found: dict[str, Any]) -> None:
    from lepo_kernels.console import make_console, say

    console = make_console()
    console.print(_versions(found))
    for name, library in found["libraries"].items():
        say(console, f"{name}: {_library(library)}")
    console.print(_dispatch(found))
    for name, missing in found["backends"].items():
        if missing is not None:
            say(console, f"{name}: {missing['reason']}; {missing['remedy']}")
    for index, gpu in enumerate(found["gpus"]):
        if (lacking := gpu["no_cuda_code"]) is not None:
            say(
                console,
                f"cuda on GPU {index} ({gpu['name']}): {lacking['reason']}; {lacking['remedy']}",
            )


def _versions(found: dict[str, Any]) -> "Table":
    from rich.table import Table

    from lepo_kernels.console import as_text

    table = Table(title="Installation", show_header=False)
    device = ", ".join(f"{key} {value}" for key, value in found["device"].items())
    rows = {
        "lepo_kernels": found["version"],
        "python": found["python"],
        "platform": found["platform"],
        "device": device,
        **{name: version or "not installed" for name, version in found["packages"].items()},
    }
    for name, value in rows.items():
        table.add_row(name, as_text(value))
    return table


def _library(library: dict[str, Any] | None) -> str:
    if library is None:
        return "not here"
    words = [f"for torch {library['torch']} and later", f"compiled by {library['compiler']}"]
    if "cuda" in library:
        words.append(f"CUDA {library['cuda']} for {', '.join(library['architectures'])}")
    if "instruction_set" in library:
        words.append(
            f"uses {library['instruction_set']} (this machine offers "
            f"{library['best_instruction_set']})"
        )
    return "; ".join(words)


def _dispatch(found: dict[str, Any]) -> "Table":
    """Op by backend: ● serves calls on this device, ○ could, · has no kernel that runs here."""
    from rich.table import Table

    table = Table(
        title=f"Kernels on {found['device']['type']}",
        caption="● chosen   ○ can serve   · can't",
    )
    table.add_column("op")
    for backend in found["backends"]:
        table.add_column(backend, justify="center")
    for op, kernel in found["kernels"].items():
        marks = [
            "●" if name == kernel["chosen"] else ("○" if why is None else "·")
            for name, why in kernel["backends"].items()
        ]
        table.add_row(op, *marks)
    return table
