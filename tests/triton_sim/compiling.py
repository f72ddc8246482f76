"""Compiles the kernels of a case for a GPU that need not be here, and says what they use.

    python -m tests.triton_sim.compiling mix_embeddings bfloat16 sm_90

prints a line of JSON before each kernel, with its name and the warps of a program, and one after
it, with what it uses.
"""

import json
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from tests.triton_sim.cases import CASES, DTYPES, PLANTED, UNEVEN, launching_for
from tests.triton_sim.launches import Launch, launches_of

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
# Instructions of NVIDIA's machine code: loads of 16 bytes, to registers or to shared memory, and
# products on tensor cores (mma, wgmma, tcgen05).
WIDE_LOADS = re.compile(r"\b(?:LDG\.E(?:\.\w+)*\.128|LDGSTS\.E(?:\.\w+)*\.128|UTMALDG)")
PRODUCTS = re.compile(r"\b(?:HMMA|HGMMA|UTC\w*MMA)\b")
AMD_PRODUCTS = re.compile(r"\bv_mfma_")
AMD_WIDE_LOADS = re.compile(r"\b(?:global|buffer)_load_dwordx4")


@dataclass
class Usage:
    """Of a thread: registers and bytes of stack. Of a program: bytes of shared memory.

    Of the code: how many loads of 16 bytes and tensor-core products it has.
    """

    registers: int
    stack: int
    shared: int
    wide_loads: int
    products: int


def target_of(name: str) -> GPUTarget:
    if name.startswith("gfx"):
        return GPUTarget("hip", name, 64)
    return GPUTarget("cuda", int(name[3:]), 32)


def compiled(launch: Launch, target: str) -> Any:
    source = ASTSource(**launch.source())
    return triton.compile(source, target=target_of(target), options=launch.options)


def usage(kernel: Any) -> Usage:
    if "cubin" not in kernel.asm:
        return _amd_usage(kernel)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        resources = _output("cuobjdump", "-res-usage", file.name)
        code = _output("nvdisasm", "-c", file.name)
    (registers,), (stack,) = (re.findall(rf"{x}:(\d+)", resources) for x in ("REG", "STACK"))
    return Usage(
        registers=int(registers),
        stack=int(stack),
        shared=kernel.metadata.shared,
        wide_loads=len(WIDE_LOADS.findall(code)),
        products=len(PRODUCTS.findall(code)),
    )


def _output(tool: str, *words: str) -> str:
    command = [str(TOOLS / tool), *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _amd_usage(kernel: Any) -> Usage:
    code = kernel.asm["amdgcn"]

    def number(name: str) -> int:
        return int(re.findall(rf"\.{name}:\s*(\d+)", code)[0])

    return Usage(
        registers=number("vgpr_count"),
        stack=number("private_segment_fixed_size"),
        shared=kernel.metadata.shared,
        wide_loads=len(AMD_WIDE_LOADS.findall(code)),
        products=len(AMD_PRODUCTS.findall(code)),
    )


def distinct(launches: list[Launch]) -> list[Launch]:
    """Of launches that compile to the same code, the first."""
    kept: dict[str, Launch] = {}
    for launch in launches:
        source = {name: x for name, x in launch.source().items() if name != "fn"}
        kept.setdefault(repr((launch.name, source, launch.options)), launch)
    return list(kept.values())


def main(case: str, dtype: str, target: str) -> None:
    with launching_for(target):
        call = (CASES | UNEVEN | PLANTED)[case]
        for launch in distinct(launches_of(lambda: call(DTYPES[dtype]))):
            warps = launch.options.get("num_warps", 4)
            print(json.dumps({"kernel": launch.name, "warps": warps}), flush=True)
            print(json.dumps(vars(usage(compiled(launch, target)))), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
