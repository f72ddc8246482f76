"""Writes docs/cuda-kernels.md."""

import inspect
import tempfile
import textwrap
from pathlib import Path

from tools.cuda_report.budgets import Table, matches, read_budgets
from tools.cuda_report.compiler import ARCHITECTURES, ROOT, nvcc_version
from tools.cuda_report.kernels import SHIPPED, Kernel, compiled_kernels, sources
from tools.cuda_report.occupancy import blocks_per_multiprocessor, occupancy
from tools.cuda_report.traffic import CASES, MODELS, Model, Sizes, formula, seconds, total
from tools.native_build import find_toolkit

PAGE = ROOT / "docs" / "cuda-kernels.md"
HEADING = """\
# The CUDA kernels, as compiled

**Compiled only: predicted, not measured.** No number on this page comes from a GPU. The first table
is what the compiler says, and what follows from it; the second is what the ops must move, and how
long that takes at 3.0 TB/s. `python -m tools.cuda_report` writes this page; how to confirm it on a
GPU is in [gpu.md](gpu.md).
"""
KERNELS = """
## Kernels

Per thread: registers, and bytes of stack. Per block: threads, and bytes of shared memory of fixed
size and, at most, of dynamic size. In the code: loads and stores of 16 bytes or more, of global
memory; each instruction counts once, however often it runs. Then the blocks that a multiprocessor
holds at a time, and the share of its warps that they fill. Limits are in `budgets.json` beside the
sources, and `tests/test_cuda_compile.py` holds the kernels to them.

Compiled with {compiler}.

| kernel | GPU | registers | stack | threads | shared: fixed | dynamic | loads | stores | \
blocks | warps |
|---|---|---|---|---|---|---|---|---|---|---|
"""
TRAFFIC = """
## Traffic

Bytes of a row, with V the vocabulary, K the kept or selected entries, D the width of the embedding
and E the bytes of an element; here E = 2 (bfloat16). The models are in
`tools/cuda_report/traffic.py`. They leave out launches, latency and what is read again from a
cache: below some ten microseconds a call takes longer than its bytes. Of the ops with matrix
products these are the row kernels alone, on a part of the logits that one product made.

| op | shape | bytes of a row | MB | predicted at 3.0 TB/s |
|---|---|---|---|---|
"""


def current_page() -> str:
    """The page as the sources and the installed compiler make it."""
    with tempfile.TemporaryDirectory() as folder:
        kernels = [
            kernel
            for source in sources(SHIPPED)
            for kernel in compiled_kernels(source, Path(folder))
        ]
    return page(
        kernels, read_budgets(SHIPPED, toolkit=find_toolkit().version), f"nvcc {nvcc_version()}"
    )


def page(kernels: list[Kernel], table: Table, compiler: str) -> str:
    """The page of these kernels."""
    rows = sorted(kernels, key=_order)
    lines = [_kernel_line(kernel, table) for kernel in rows]
    return HEADING + KERNELS.format(compiler=compiler) + "".join(lines) + traffic_part()


def _order(kernel: Kernel) -> tuple[str, int]:
    return kernel.usage.kernel, ARCHITECTURES.index(kernel.usage.architecture)


def _kernel_line(kernel: Kernel, table: Table) -> str:
    usage, code, launch = kernel.usage, kernel.code, kernel.launch
    (entry,) = matches(usage.kernel, table)
    dynamic = table[entry].get("dynamic_shared", 0)
    if launch.threads is None:
        raise ValueError(f"{kernel}: has no __launch_bounds__, so its blocks are not known")
    blocks = blocks_per_multiprocessor(
        usage.architecture, launch.threads, usage.registers, usage.shared + dynamic
    )
    share = occupancy(usage.architecture, launch.threads, blocks)
    numbers = (usage.registers, usage.stack, launch.threads, usage.shared, dynamic)
    cells = [f"`{usage.kernel.removeprefix('lepo::')}`", usage.architecture, *map(str, numbers)]
    cells += [str(code.wide_loads), str(code.wide_stores), str(blocks), f"{share:.0%}"]
    return f"| {' | '.join(cells)} |\n"


def traffic_part() -> str:
    """The part that depends on no compiler."""
    lines = "".join(_traffic_line(op, sizes) for op, sizes in CASES)
    return (
        TRAFFIC + lines + "\n" + "".join(_words(model) for model in dict.fromkeys(MODELS.values()))
    )


def _words(model: Model) -> str:
    ops = ", ".join(f"`{op}`" for op, its_model in MODELS.items() if its_model is model)
    text = f"- {ops}: {' '.join((inspect.getdoc(model) or '').split())}"
    return textwrap.fill(text, 100, subsequent_indent="  ", break_on_hyphens=False) + "\n"


def _traffic_line(op: str, sizes: Sizes) -> str:
    count = total(op, sizes)
    time = f"{seconds(count) * 1e6:.3g} us"
    cells = [f"`{op}`", _shape(sizes), formula(MODELS[op](sizes)), f"{count / 1e6:.4g}", time]
    return f"| {' | '.join(cells)} |\n"


def _shape(sizes: Sizes) -> str:
    named = {"N": sizes.rows, "V": sizes.vocab, "K": sizes.kept, "D": sizes.width}
    return ", ".join(f"{name} {number}" for name, number in named.items() if number)
