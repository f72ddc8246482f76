"""All that is known of a kernel on one architecture."""

from dataclasses import dataclass
from pathlib import Path

from tools.cuda_report.compiler import ARCHITECTURES, ROOT, Usage, compile_source, read_report
from tools.cuda_report.disassembly import Code, Launch, read_code, read_launches, read_ptx

SHIPPED = ROOT / "csrc" / "cuda"
# Kernels of the tests, which are held to budgets, too.
TESTED = ROOT / "tests" / "cuda_sim" / "modules"


@dataclass(frozen=True)
class Kernel:
    """One kernel on one architecture."""

    usage: Usage
    code: Code
    launch: Launch

    def __str__(self) -> str:
        return f"{self.usage.kernel} for {self.usage.architecture}"


def sources(*folders: Path) -> list[Path]:
    """The CUDA sources of these folders."""
    return sorted(file for folder in folders for file in folder.glob("*.cu"))


def compiled_kernels(
    source: Path, folder: Path, architectures: tuple[str, ...] = ARCHITECTURES
) -> list[Kernel]:
    """Compile ``source`` into ``folder``, and look at its kernels.

    ``PTX_ARCHITECTURE`` must be one of ``architectures``.
    """
    output = folder / f"{source.stem}.o"
    usages = read_report(compile_source(source, output, architectures))
    code, launches = read_code(output), read_launches(read_ptx(output))
    return [
        Kernel(usage, code[usage.kernel, usage.architecture], launches[usage.kernel])
        for usage in usages
    ]
