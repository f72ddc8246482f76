"""Writes docs/triton-kernels.md."""

import importlib
import inspect
import textwrap
from importlib.metadata import version

from tools.triton_report.compiled import BUDGETS, DTYPE, ROOT, TARGETS, Kernel, compiled_kernels
from tools.triton_report.models import CALLS, MODELS, Sizes

PAGE = ROOT / "docs" / "triton-kernels.md"
HEADING = """\
# The Triton kernels, as compiled

**Compiled only: predicted, not measured.** No number on this page comes from a GPU. The first table
is what the compiler says, the second what the kernels must move and compute, and how long that
takes on an H100. `python -m tools.triton_report` writes this page.
"""
KERNELS = """
## Kernels

For {dtype}. Of a program: warps, and bytes of shared memory. Of a thread: registers, and bytes of
stack. In the code: loads of 16 bytes, and instructions of tensor cores; each counts once, however
often it runs. Limits are in `{budgets}`, and
`tests/test_triton_compile.py` holds the kernels to them, also in other dtypes where tiles differ.
`gfx942` is AMD's MI300: its registers and loads are others.

Compiled with triton {compiler}.

| kernel | GPU | warps | registers | stack | shared | loads | products |
|---|---|---|---|---|---|---|---|
"""
WORK = """
## Work

Bytes, flops of tensor cores, and instructions of all lanes, where they may be the bound (the noise
is some 120 for an entry). Predicted is the largest of their times, at 3.0 TB/s, 700 TFLOP/s and
27 T instructions/s; launches and latency come on top: below some ten microseconds a launch takes
longer. The models are in `tools/triton_report/models.py`.

| kernel | shape | MB | GFLOP | G instructions | predicted | bound |
|---|---|---|---|---|---|---|
"""


def current_page() -> str:
    """The page as the kernels and the installed compiler make it."""
    # The tests need triton, this module does not.
    cases = importlib.import_module("tests.triton_sim.cases").CASES
    return page(compiled_kernels(list(cases)), version("triton"))


def page(kernels: list[Kernel], compiler: str) -> str:
    """The page of these kernels."""
    rows = sorted(kernels, key=lambda kernel: (kernel.name, TARGETS.index(kernel.target)))
    budgets = BUDGETS.relative_to(ROOT)
    head = KERNELS.format(dtype=DTYPE, budgets=budgets, compiler=compiler)
    return HEADING + head + "".join(map(_kernel_line, rows)) + work_part()


def _kernel_line(kernel: Kernel) -> str:
    numbers = (kernel.warps, kernel.registers, kernel.stack, kernel.shared)
    cells = [f"`{kernel.name}`", kernel.target, *map(str, numbers)]
    cells += [str(kernel.wide_loads), str(kernel.products)]
    return f"| {' | '.join(cells)} |\n"


def work_part() -> str:
    """The part that depends on no compiler."""
    lines = "".join(_work_line(name, CALLS[name]) for name in sorted(MODELS))
    return WORK + lines + "\n" + "".join(_words(name) for name in sorted(MODELS))


def _work_line(name: str, sizes: Sizes) -> str:
    work = MODELS[name](sizes)
    bound = work.bound()
    cells = [
        f"`{name}`",
        _shape(sizes),
        f"{work.bytes / 1e6:.4g}",
        f"{work.flops / 1e9:.4g}",
        f"{work.instructions / 1e9:.3g}",
        _time(work.seconds()[bound]),
        bound,
    ]
    return f"| {' | '.join(cells)} |\n"


def _time(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.3g} us"


def _shape(sizes: Sizes) -> str:
    named = {"N": sizes.rows, "V": sizes.vocab, "K": sizes.kept, "D": sizes.width}
    return ", ".join(f"{name} {number}" for name, number in named.items() if number)


def _words(name: str) -> str:
    text = f"- `{name}`: {' '.join((inspect.getdoc(MODELS[name]) or '').split())}"
    return textwrap.fill(text, 100, subsequent_indent="  ", break_on_hyphens=False) + "\n"
