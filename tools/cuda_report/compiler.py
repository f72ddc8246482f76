"""Runs nvcc on one source, for all architectures at once, and reads what ptxas reports."""

import functools
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tools.native_build import BuildError, find_toolkit

ROOT = Path(__file__).resolve().parents[2]
# Ampere, Hopper, Blackwell for data centres and for workstations.
ARCHITECTURES = ("sm_80", "sm_90", "sm_100", "sm_120")
# The one whose PTX goes into the object, too: what reads PTX wants one version of it.
PTX_ARCHITECTURE = "sm_100"
FLAGS = (
    *("-std=c++17", "-Werror=all-warnings", "-Xcompiler=-Wall,-Wextra"),
    *("-I", str(ROOT / "csrc"), "-I", str(ROOT / "tests" / "cuda_sim" / "include"), "-c"),
    "-Xptxas=-v,--warn-on-spills,--warning-as-error",
)
KERNEL = re.compile(
    r"Compiling entry function '(?P<kernel>\w+)' for '(?P<architecture>\w+)'"
    r"(?:(?!Compiling entry)[\s\S])*?(?P<stack>\d+) bytes stack frame"
    r"(?:(?!Compiling entry)[\s\S])*?Used (?P<registers>\d+) registers(?P<rest>[^\n]*)"
)


class CompileError(Exception):
    """What nvcc said."""


@dataclass(frozen=True)
class Usage:
    """What a kernel takes on one architecture, as ptxas reports it."""

    kernel: str
    architecture: str
    registers: int  # of a thread
    stack: int  # bytes of a thread
    shared: int  # bytes of a block, of fixed size


def find_nvcc() -> str | None:
    """The nvcc that the build would take."""
    try:
        return str(find_toolkit().nvcc)
    except BuildError:
        return None


def nvcc_version() -> str:
    """Such as 13.0.88."""
    command = [str(find_toolkit().nvcc), "--version"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"V([\d.]+)", said)
    if found is None:
        raise ValueError(f"nvcc --version does not say its version: {said}")
    return found[1]


def compile_source(
    source: Path, output: Path, architectures: tuple[str, ...] = ARCHITECTURES
) -> str:
    """Make one object for all ``architectures``, and return ptxas' report.

    Raises:
        CompileError: an error, a warning, or a spill.
    """
    nvcc = find_toolkit().nvcc
    codes = [code for name in architectures for code in ("-gencode", _code(name))]
    words = [str(nvcc), *FLAGS, *codes, str(source), "-o", str(output)]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode != 0:
        names = ", ".join(architectures)
        raise CompileError(f"{source.name} for {names}:\n{demangled(done.stderr)}")
    return done.stderr


def _code(architecture: str) -> str:
    virtual = architecture.replace("sm_", "compute_")
    if architecture != PTX_ARCHITECTURE:
        return f"arch={virtual},code={architecture}"
    return f"arch={virtual},code=[{architecture},{virtual}]"


def read_report(report: str) -> list[Usage]:
    """Every kernel of ptxas' report, for every architecture."""
    found = [
        Usage(
            kernel_name(kernel["kernel"]),
            kernel["architecture"],
            int(kernel["registers"]),
            int(kernel["stack"]),
            _shared(kernel["rest"]),
        )
        for kernel in KERNEL.finditer(report)
    ]
    if len(found) != report.count("Compiling entry function"):
        raise ValueError(f"ptxas' report is not as expected:\n{report}")
    return found


def _shared(line: str) -> int:
    found = re.search(r"(\d+) bytes smem", line)
    return int(found[1]) if found else 0


@functools.cache
def kernel_name(mangled: str) -> str:
    """With namespaces and template arguments, without return type and parameters."""
    name = demangled(mangled).strip().removeprefix("void ")
    return name[: name.rindex("(")]


def demangled(text: str) -> str:
    """With C++ names instead of symbols."""
    return subprocess.run(["c++filt"], input=text, capture_output=True, text=True).stdout
