"""Reads what nvcc put into an object: the instructions of each kernel, and its PTX."""

import os
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tools.cuda_report.compiler import kernel_name
from tools.native_build import BuildError, find_toolkit

# The package that brings a tool where there is no whole toolkit.
PACKAGES = {"cuobjdump": "nvidia-cuda-cuobjdump", "nvdisasm": "nvidia-cuda-nvdisasm"}
# 32-byte accesses, which Blackwell has, are as wide as two of 16.
WIDE_LOAD = re.compile(r"\sLDG\.E\S*\.(128|256)\b")
WIDE_STORE = re.compile(r"\sSTG\.E\S*\.(128|256)\b")
LOCAL = re.compile(r"\s(LDL|STL)\b")


@dataclass
class Code:
    """Instructions of a kernel on one architecture; each counts once, however often it runs."""

    wide_loads: int = 0  # of 16 bytes or more, from global memory
    wide_stores: int = 0  # the same, to global memory
    local: int = 0  # loads and stores of local memory: spills, or arrays with moving indices


@dataclass(frozen=True)
class Launch:
    """What PTX says of how a kernel is launched."""

    threads: int | None  # of a block, at most; None without __launch_bounds__
    uses_dynamic_shared: bool


def find_tool(name: str) -> str:
    """``cuobjdump`` or ``nvdisasm``: $CUOBJDUMP, PATH, the CUDA toolkit, or the tool's package.

    Raises:
        FileNotFoundError: with the way to get it.
    """
    try:
        home = [find_toolkit().home / "bin"]
    except BuildError:
        home = []
    folders = [*home, *Path(sysconfig.get_path("purelib")).glob("nvidia/cu*/bin")]
    path = os.pathsep.join([os.environ.get("PATH", ""), *map(str, folders)])
    found = os.environ.get(name.upper()) or shutil.which(name, path=path)
    if found is None:
        raise FileNotFoundError(
            f"{name}: not in ${name.upper()}, on PATH or in the CUDA toolkit "
            f"(pip install {PACKAGES[name]})"
        )
    return found


def read_code(library: Path) -> dict[tuple[str, str], Code]:
    """(kernel, architecture) -> its instructions."""
    cuobjdump, nvdisasm = find_tool("cuobjdump"), find_tool("nvdisasm")
    # cuobjdump calls nvdisasm by its name.
    path = os.pathsep.join([str(Path(nvdisasm).parent), os.environ.get("PATH", "")])
    command = [cuobjdump, "--dump-sass", str(library)]
    done = subprocess.run(
        command, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=True
    )
    return count_code(done.stdout)


def count_code(listing: str) -> dict[tuple[str, str], Code]:
    """The same, of cuobjdump's listing."""
    found: dict[tuple[str, str], Code] = {}
    architecture, code = "", Code()
    for line in listing.splitlines():
        if start := re.match(r"arch = (\S+)", line):
            architecture = start[1]
        elif start := re.match(r"\s*Function : (\w+)", line):
            code = found.setdefault((kernel_name(start[1]), architecture), Code())
        else:
            code.wide_loads += bool(WIDE_LOAD.search(line))
            code.wide_stores += bool(WIDE_STORE.search(line))
            code.local += bool(LOCAL.search(line))
    return found


def read_ptx(library: Path) -> str:
    """The PTX in an object."""
    command = [find_tool("cuobjdump"), "--dump-ptx", str(library)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def read_launches(ptx: str) -> dict[str, Launch]:
    """Kernel -> what its PTX says of its launch."""
    dynamic = re.findall(r"\.extern \.shared [^;\[]*?(\w+)\[\]", ptx)
    names = re.compile(r"\b(" + "|".join(dynamic) + r")\b") if dynamic else None
    return {
        kernel_name(symbol): Launch(_threads(text), bool(names and names.search(text)))
        for symbol, text in entries(ptx)
    }


def entries(ptx: str) -> Iterator[tuple[str, str]]:
    """(symbol, text) of every kernel."""
    for found in re.finditer(r"^\.visible \.entry (\w+)\([\s\S]*?^}", ptx, re.M):
        yield found[1], found[0]


def _threads(entry: str) -> int | None:
    found = re.search(r"^\.maxntid ([\d, ]+)", entry, re.M)
    if found is None:
        return None
    threads = 1
    for extent in found[1].split(","):
        threads *= int(extent)
    return threads
