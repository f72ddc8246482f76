"""nvcc takes every CUDA source, without a warning, and every kernel stays within its budget.

Budgets are in a `budgets.json` beside the sources: patterns for kernels, and the most registers a
thread and bytes of fixed-size shared memory a block may use on any architecture. A stack frame, so
any spill, is never within budget. A kernel without an entry is an error.
"""

import fnmatch
import json
import re
import subprocess
from pathlib import Path

import pytest

from native_build import BuildError, find_toolkit

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = (ROOT / "csrc" / "cuda", ROOT / "tests" / "cuda_sim" / "modules")
SOURCES = sorted(file for folder in FOLDERS for file in folder.glob("*.cu"))
HEADERS = sorted((ROOT / "csrc" / "cuda").glob("*.cuh"))
# Ampere, Hopper, Blackwell for data centres and for workstations.
ARCHITECTURES = ("sm_80", "sm_90a", "sm_100a", "sm_120")
FLAGS = ["-std=c++17", "-Werror=all-warnings", "-Xcompiler=-Wall,-Wextra", "-I", str(ROOT / "csrc")]
FLAGS += ["-I", str(ROOT / "tests" / "cuda_sim" / "include"), "-c"]
PTXAS = "-Xptxas=-v,--warn-on-spills,--warning-as-error"


def toolkit_nvcc() -> str | None:
    """The nvcc that the build would take."""
    try:
        return str(find_toolkit().home / "bin" / "nvcc")
    except BuildError:
        return None


NVCC = toolkit_nvcc()
needs_nvcc = pytest.mark.skipif(
    NVCC is None, reason="no CUDA toolkit: CUDA sources are not compiled here"
)
KERNEL = re.compile(
    r"Compiling entry function '(?P<kernel>\w+)' for '(?P<arch>\w+)'"
    r"(?:(?!Compiling entry)[\s\S])*?(?P<stack>\d+) bytes stack frame"
    r"(?:(?!Compiling entry)[\s\S])*?Used (?P<registers>\d+) registers(?P<rest>[^\n]*)"
)


class CompileError(Exception):
    """What nvcc said."""


def compiled(source: Path, arch: str, output: Path) -> str:
    """What ptxas reports on the kernels of ``source``."""
    words = [str(NVCC), f"-arch={arch}", *FLAGS, PTXAS, str(source), "-o", str(output)]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode != 0:
        raise CompileError(f"{source.name} for {arch}:\n{demangled(done.stderr)}")
    return done.stderr


def demangled(text: str) -> str:
    return subprocess.run(["c++filt"], input=text, capture_output=True, text=True).stdout


def name_of(mangled: str) -> str:
    """With namespaces and template arguments, without return type and parameters."""
    name = demangled(mangled).strip().removeprefix("void ")
    return name[: name.rindex("(")]


def usage(report: str) -> list[tuple[str, str, dict[str, int]]]:
    """(kernel, architecture, what it uses) of every kernel in ptxas' report."""
    kernels = []
    for found in KERNEL.finditer(report):
        shared = re.search(r"(\d+) bytes smem", found["rest"])
        used = {
            "registers": int(found["registers"]),
            "shared": int(shared[1]) if shared else 0,
            "stack": int(found["stack"]),
        }
        kernels.append((name_of(found["kernel"]), found["arch"], used))
    assert len(kernels) == report.count("Compiling entry function")
    return kernels


def budgets() -> dict[str, dict[str, int]]:
    tables = [json.loads((folder / "budgets.json").read_text()) for folder in FOLDERS]
    return {pattern: budget for table in tables for pattern, budget in table.items()}


def over_budget(report: str, table: dict[str, dict[str, int]]) -> list[str]:
    """A line for each kernel and resource that is not within its budget."""
    lines = []
    for kernel, arch, used in usage(report):
        matches = [p for p in table if fnmatch.fnmatchcase(kernel, p)]
        if len(matches) != 1:
            lines.append(f"{kernel} for {arch}: {len(matches)} entries in the tables of budgets")
            continue
        allowed = {"stack": 0} | table[matches[0]]
        lines += [
            f"{kernel} for {arch}: {used[what]} {what}, the budget is {allowed[what]}"
            for what in used
            if used[what] > allowed[what]
        ]
    return lines


def compilation(source, arch):
    # One small compilation a day shows that the toolkit and the budgets work.
    everyday = source.name == "philox.cu" and arch == "sm_90a"
    marks = () if everyday else pytest.mark.slow
    return pytest.param(source, arch, id=f"{source.stem}-{arch}", marks=marks)


@needs_nvcc
@pytest.mark.parametrize(
    ("source", "arch"), [compilation(s, arch) for arch in ARCHITECTURES for s in SOURCES]
)
def test_kernels_compile_within_their_budgets(source, arch, tmp_path):
    assert over_budget(compiled(source, arch, tmp_path / "out.o"), budgets()) == []


@needs_nvcc
@pytest.mark.slow
@pytest.mark.parametrize("header", HEADERS, ids=lambda header: header.stem)
def test_a_header_includes_what_it_needs(header, tmp_path):
    source = tmp_path / "alone.cu"
    source.write_text(f'#include "cuda/{header.name}"\n')
    compiled(source, "sm_80", tmp_path / "out.o")


# --- The checks see what they should see --------------------------------------------------------

# 80 values are alive at the barrier; a thread of a block of 1024 has 64 registers.
SPILLING = """
__global__ void __launch_bounds__(1024) spilling(float* x) {
  float values[80];
#pragma unroll
  for (int i = 0; i < 80; ++i) values[i] = x[i * 1024 + threadIdx.x];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 80; ++i) x[i * 1024 + threadIdx.x] = values[i] * values[(i * 7 + 3) % 80];
}
"""


def compiled_text(text: str, folder: Path) -> str:
    source = folder / "planted.cu"
    source.write_text(text)
    return compiled(source, "sm_90a", folder / "out.o")


@needs_nvcc
def test_a_spill_or_a_warning_fails(tmp_path):
    with pytest.raises(CompileError, match=r"planted\.cu for sm_90a:\n.*spilled.*spilling"):
        compiled_text(SPILLING, tmp_path)
    with pytest.raises(CompileError, match="never referenced"):
        compiled_text("__global__ void kernel() { int unused; }", tmp_path)


@needs_nvcc
def test_the_budget_names_the_kernel_and_the_architecture(tmp_path):
    report = compiled_text(
        "namespace a { template <int N> __global__ void kernel(float* x) { __shared__ float s[N];"
        "s[threadIdx.x] = x[threadIdx.x]; __syncthreads(); x[threadIdx.x] = s[N - 1]; }"
        "template __global__ void kernel<64>(float*); }",
        tmp_path,
    )
    assert over_budget(report, {"a::kernel<*>": {"registers": 2, "shared": 255}}) == [
        "a::kernel<64> for sm_90a: 10 registers, the budget is 2",
        "a::kernel<64> for sm_90a: 256 shared, the budget is 255",
    ]
    assert over_budget(report, {"a::kernel<*>": {"registers": 255, "shared": 256}}) == []
    assert over_budget(report, {}) == [
        "a::kernel<64> for sm_90a: 0 entries in the tables of budgets"
    ]


def test_reports_are_read():
    report = """
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z5firstPf' for 'sm_80'
ptxas info    : Function properties for _Z5firstPf
    8 bytes stack frame, 4 bytes spill stores, 4 bytes spill loads
ptxas info    : Used 23 registers, used 1 barriers, 8 bytes cumulative stack size, 40 bytes smem
ptxas info    : Compiling entry function '_Z6secondPf' for 'sm_90a'
ptxas info    : Function properties for _Z6secondPf
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 9 registers, used 0 barriers, 376 bytes cmem[0]
"""
    assert usage(report) == [
        ("first", "sm_80", {"registers": 23, "shared": 40, "stack": 8}),
        ("second", "sm_90a", {"registers": 9, "shared": 0, "stack": 0}),
    ]
