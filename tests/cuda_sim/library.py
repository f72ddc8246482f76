"""The CUDA library, built by g++ for the simulator: its torch ops then take CPU tensors.

All of ``csrc/cuda/*.cu`` and of the bindings goes into it as it is. So a test of a public op on the
``cuda`` backend runs validation, dispatch, binding, launch and kernel, with every thread a fiber.
"""

import ctypes
import functools
import os
import re
from pathlib import Path

import torch

from tests.cuda_sim import build

CSRC = build.ROOT / "csrc"
TORCH = Path(torch.__file__).parent
TARGET = re.compile(r'LEPO_TORCH_TARGET "(\w+)"')


def sources() -> list[Path]:
    """The library's sources; its account of its own build is replaced by one without."""
    kernels = (CSRC / "cuda").glob("*.cu")
    bindings = set((CSRC / "cuda" / "bindings").glob("*.cpp"))
    bindings -= {CSRC / "cuda" / "bindings" / "library.cpp"}
    return sorted([*kernels, *bindings, build.HERE / "toolkit" / "library.cpp"])


def torch_flags() -> list[str]:
    target = TARGET.search((build.ROOT / "CMakeLists.txt").read_text())
    assert target is not None
    return [
        f"-DTORCH_TARGET_VERSION={target[1]}",
        f'-DTORCH_OF_THIS_BUILD="{torch.__version__}"',
        "-isystem",
        str(TORCH / "include"),
    ]


def compiled(source: Path) -> Path:
    """One object file."""
    kernels, _, _ = build.VARIANTS["plain"]
    words = [*build.COMMON, *build.WARNINGS, *kernels, *build.include_folders(CSRC)]
    words += [*torch_flags(), "-c", "-x", "c++"]
    return build.built(f"library-{source.stem}{source.suffix}.o", words, [source], CSRC)


def built() -> Path:
    """The library, built now or earlier."""
    objects = [build.engine("plain"), *map(compiled, sources())]
    words = [*build.COMMON, "-shared", f"-L{TORCH / 'lib'}"]
    return build.built("library.so", words, objects, CSRC, ["-ltorch_cpu"])


def real_library_is_loaded() -> bool:
    return hasattr(torch.ops.lepo_kernels_cuda, "build_info")


@functools.cache
def why_not() -> str | None:
    """Load the library; None if that worked, else the reason."""
    if not build.compiler():
        return "no g++ (or $CXX): CUDA kernels are not simulated here"
    if real_library_is_loaded():
        return "the real _C_cuda.so has taken the names of the simulated one"
    # Its symbols stay its own: modules of kernels have an engine and kernels of the same names.
    _loaded()
    return None


@functools.cache
def _loaded() -> ctypes.CDLL:
    return ctypes.CDLL(str(built()), mode=os.RTLD_NOW | os.RTLD_LOCAL)


def launched_kernels() -> list[str]:
    """The kernels that the library has launched in this process, with their template arguments."""
    names = _loaded().lepo_sim_launched
    names.restype = ctypes.c_char_p
    return names().decode().splitlines()
