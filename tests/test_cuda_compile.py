"""nvcc takes every CUDA source, without a warning, and every kernel stays within its budget.

A source of the library is compiled once, for all architectures. The tests' own are for one: what
they share with the library is compiled there. What the tables of budgets hold is told in
tools/cuda_report/budgets.py. A kernel without an entry is an error.
"""

import json

import pytest

from tools.cuda_report.budgets import breaches, read_budgets
from tools.cuda_report.compiler import (
    ARCHITECTURES,
    PTX_ARCHITECTURE,
    ROOT,
    CompileError,
    Usage,
    compile_source,
    find_nvcc,
    read_report,
)
from tools.cuda_report.disassembly import Code, Launch, count_code, find_tool, read_launches
from tools.cuda_report.kernels import SHIPPED, TESTED, Kernel, compiled_kernels, sources
from tools.native_build import find_toolkit

HEADERS = sorted((ROOT / "csrc" / "cuda").glob("*.cuh"))


def why_not_disassembled() -> str | None:
    try:
        find_tool("cuobjdump")
        find_tool("nvdisasm")
    except FileNotFoundError as error:
        return str(error)
    return None


needs_nvcc = pytest.mark.skipif(
    find_nvcc() is None, reason="no CUDA toolkit: CUDA sources are not compiled here"
)
needs_disassembler = pytest.mark.skipif(
    why_not_disassembled() is not None, reason=str(why_not_disassembled())
)


def compilation(source):
    # One small compilation a day shows that the toolkit and the budgets work.
    everyday = source == SHIPPED / "philox.cu"
    folder = "csrc" if source.parent == SHIPPED else "tests"
    marks = () if everyday else pytest.mark.slow
    return pytest.param(source, id=f"{folder}-{source.stem}", marks=marks)


@needs_nvcc
@needs_disassembler
@pytest.mark.parametrize("source", [compilation(s) for s in sources(SHIPPED, TESTED)])
def test_kernels_compile_within_their_budgets(source, tmp_path):
    architectures = ARCHITECTURES if source.parent == SHIPPED else (PTX_ARCHITECTURE,)
    kernels = compiled_kernels(source, tmp_path, architectures)
    table = read_budgets(SHIPPED, TESTED, toolkit=find_toolkit().version)
    assert breaches(kernels, table) == []


@needs_nvcc
@pytest.mark.slow
@pytest.mark.parametrize("header", HEADERS, ids=lambda header: header.stem)
def test_a_header_includes_what_it_needs(header, tmp_path):
    source = tmp_path / "alone.cu"
    source.write_text(f'#include "cuda/{header.name}"\n')
    compile_source(source, tmp_path / "out.o", ("sm_80",))


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

# Copies 16 bytes a thread in one access and in four, by way of each kind of shared memory; and a
# kernel whose array is in local memory, though nothing is spilled.
COPYING = """
namespace a {
extern __shared__ float4 dynamic[];
template <int N>
__global__ void __launch_bounds__(N) wide(const float4* x, float4* y) {
  __shared__ float4 fixed[N];
  fixed[threadIdx.x] = x[threadIdx.x];
  dynamic[threadIdx.x] = x[N + threadIdx.x];
  __syncthreads();
  y[threadIdx.x] = fixed[N - 1 - threadIdx.x];
  y[N + threadIdx.x] = dynamic[N - 1 - threadIdx.x];
}
template __global__ void wide<64>(const float4*, float4*);
__global__ void narrow(const float* x, float* y) {
  for (int i = 0; i < 4; ++i) y[4 * threadIdx.x + i] = x[4 * threadIdx.x + i] + 1;
}
__global__ void local(const int* x, int* y) {
  int held[64] = {};
  for (int i = 0; i < 64; ++i) held[x[i] & 63] += i;
  y[threadIdx.x] = held[y[threadIdx.x] & 63];
}
}
"""


def compile_text(text, folder):
    source = folder / "planted.cu"
    source.write_text(text)
    return compile_source(source, folder / "out.o", ("sm_90",))


@needs_nvcc
def test_a_spill_or_a_warning_fails(tmp_path):
    with pytest.raises(CompileError, match=r"planted\.cu for sm_90:\n.*spilled.*spilling"):
        compile_text(SPILLING, tmp_path)
    with pytest.raises(CompileError, match="never referenced"):
        compile_text("__global__ void kernel() { int unused; }", tmp_path)


@needs_nvcc
@needs_disassembler
@pytest.mark.slow
def test_what_an_object_holds_is_read_from_it(tmp_path):
    source = tmp_path / "copying.cu"
    source.write_text(COPYING)
    kernels = compiled_kernels(source, tmp_path)
    assert len(kernels) == 12
    for kernel in kernels:
        usage, code, launch = kernel.usage, kernel.code, kernel.launch
        if usage.kernel == "a::wide<64>":
            assert (usage.shared, launch) == (1024, Launch(64, True))
            assert code == Code(wide_loads=2, wide_stores=2, local=0)
        else:
            assert (usage.shared, launch) == (0, Launch(None, False))
            assert (code.wide_loads, code.wide_stores) == (0, 0)
        assert (code.local > 0) == (usage.stack > 0) == (usage.kernel == "a::local")


def kernel(name="a::kernel<64>", registers=10, stack=0, shared=256, dynamic=False, **code):
    usage = Usage(name, "sm_120", registers, stack, shared)
    return Kernel(usage, Code(**code), Launch(64, dynamic))


@pytest.mark.parametrize(
    ("found", "budget", "line"),
    [
        (kernel(), {}, None),
        (kernel(registers=41), {}, "41 registers, the budget is 40"),
        (kernel(shared=257), {}, "257 bytes of fixed shared memory, the budget is 256"),
        (kernel(stack=8), {}, "8 bytes of stack, the budget is 0"),
        (kernel(local=2), {}, "2 loads and stores of local memory, the budget is 0"),
        (kernel(wide_loads=1), {"wide_loads": 2}, "1 16-byte loads, the budget asks for 2"),
        (kernel(wide_loads=2), {"wide_loads": 2}, None),
        (kernel(), {"wide_stores": 1}, "0 16-byte stores, the budget asks for 1"),
        (kernel(dynamic=True), {"dynamic_shared": 1000}, None),
        (
            kernel(dynamic=True),
            {},
            "uses dynamic shared memory, the budget says otherwise",
        ),
        (
            kernel(),
            {"dynamic_shared": 16},
            "does not use dynamic shared memory, the budget says otherwise",
        ),
        # 99 KiB is what a block of sm_120 has.
        (
            kernel(dynamic=True),
            {"dynamic_shared": 101376},
            "101632 bytes of shared memory, a block has 101376",
        ),
    ],
)
def test_a_breach_names_the_kernel_the_architecture_and_the_number(found, budget, line):
    table = {"a::kernel<*>": {"registers": 40, "shared": 256, **budget}}
    expected = [] if line is None else [f"a::kernel<64> for sm_120: {line}"]
    assert breaches([found], table) == expected


def test_every_kernel_has_one_entry():
    assert breaches([kernel()], {}) == [
        "a::kernel<64> for sm_120: 0 entries in the tables of budgets"
    ]
    budget = {"registers": 40, "shared": 256}
    assert breaches([kernel()], {"a::*": budget, "a::kernel<*>": budget}) == [
        "a::kernel<64> for sm_120: 2 entries in the tables of budgets"
    ]
    assert breaches([kernel()], {"a::*": {**budget, "registers": 1}, "a::kernel<64>": budget}) == []


@pytest.mark.parametrize("entry", [{"registers": 1}, {"registers": 1, "shared": 1, "stak": 0}])
def test_an_entry_holds_what_it_can_hold(entry, tmp_path):
    (tmp_path / "budgets.json").write_text(str({"kernel": entry}).replace("'", '"'))
    with pytest.raises(ValueError, match="kernel has the entries registers"):
        read_budgets(tmp_path)


def write_budgets(folder, others):
    entry = {"registers": 24, "shared": 16, "wide_loads": 4, "toolkits": others}
    (folder / "budgets.json").write_text(json.dumps({"a::kernel": entry, "a::*": entry}))


def test_a_toolkit_may_have_numbers_of_its_own(tmp_path):
    write_budgets(tmp_path, {"13.1": {"registers": 40}, "13.4": {"wide_loads": 2}})
    usual = {"registers": 24, "shared": 16, "wide_loads": 4}
    for toolkit, others in {
        None: {},
        "13.0": {},
        "13.1": {"registers": 40},
        "13.4": {"wide_loads": 2},
    }.items():
        table = read_budgets(tmp_path, toolkit=toolkit)
        assert table == dict.fromkeys(("a::kernel", "a::*"), usual | others)


# No version, a number that is not there, a misspelt one.
@pytest.mark.parametrize(
    "others",
    [{"13": {"registers": 1}}, {"13.4": {"wide_stores": 1}}, {"13.4": {"register": 1}}],
)
def test_a_toolkit_has_no_other_entries(others, tmp_path):
    write_budgets(tmp_path, others)
    with pytest.raises(ValueError, match=r"budgets.json: a::kernel has for toolkit 13(\.4)? \w+"):
        read_budgets(tmp_path)


def test_reports_are_read():
    report = """
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z5firstPf' for 'sm_80'
ptxas info    : Function properties for _Z5firstPf
    8 bytes stack frame, 4 bytes spill stores, 4 bytes spill loads
ptxas info    : Used 23 registers, used 1 barriers, 8 bytes cumulative stack size, 40 bytes smem
ptxas info    : Compiling entry function '_Z6secondPf' for 'sm_90'
ptxas info    : Function properties for _Z6secondPf
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 9 registers, used 0 barriers, 376 bytes cmem[0]
"""
    assert read_report(report) == [
        Usage("first", "sm_80", registers=23, stack=8, shared=40),
        Usage("second", "sm_90", registers=9, stack=0, shared=0),
    ]
    with pytest.raises(ValueError, match="not as expected"):
        read_report(report.replace("Used 9", "Took 9"))


def test_listings_are_counted():
    listing = """
Fatbin elf code:
================
arch = sm_80
\t\tFunction : _Z5firstPf
        /*0820*/                   LDG.E R8, [R8.64] ;
        /*09c0*/                   LDG.E.128.CONSTANT R8, [R8.64] ;
        /*09d0*/              @!P0 STG.E.128 [R8.64], R12 ;
        /*09e0*/                   LDS.128 R12, [0x2000] ;
arch = sm_100
\t\tFunction : _Z5firstPf
        /*0820*/                   LDG.E.ENL2.256 R8, desc[UR6][R8.64] ;
        /*0830*/                   LDL.LU R8, [R1+0x4] ;
        /*0840*/                   STL.128 [R1], R8 ;
"""
    assert count_code(listing) == {
        ("first", "sm_80"): Code(wide_loads=1, wide_stores=1, local=0),
        ("first", "sm_100"): Code(wide_loads=1, wide_stores=0, local=2),
    }


def test_ptx_is_read():
    ptx = """
.extern .shared .align 16 .b8 dyn[];
.visible .entry _Z5firstPf(
.param .u64 _Z5firstPf_param_0
)
.maxntid 32, 4
{
mov.u32 %r3, dyn;
ret;
}
.visible .entry _Z6secondPf(
)
{
ret;
}
"""
    assert read_launches(ptx) == {"first": Launch(128, True), "second": Launch(None, False)}
