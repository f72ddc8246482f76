"""Builds test modules with g++; a build is kept under the hash of all that went into it."""

import fcntl
import functools
import hashlib
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
ENGINE = sorted((HERE / "engine").glob("*.cpp"))
DRIVER = HERE / "engine" / "driver.cpp"

WARNINGS = ["-Wall", "-Wextra", "-Werror", "-Wno-psabi"]
# The compiler may not merge a product and a sum: what is tested is what is written.
COMMON = ["-std=c++17", "-fPIC", "-g1", "-ffp-contract=off", "-fno-math-errno", "-DLEPO_CUDA_SIM"]
ADDRESS = ["-O1", "-fno-omit-frame-pointer", "-fsanitize=address,undefined"]
ADDRESS += ["-fno-sanitize-recover=all"]
THREAD = ["-O1", "-fno-omit-frame-pointer", "-fsanitize=thread"]

INCLUDE = re.compile(r'^\s*#include "([^"]+)"', re.MULTILINE)

# variant: flags of kernels, flags of the engine and the driver, flags of linking
VARIANTS = {
    "plain": (["-O2"], ["-O2"], []),
    "ucontext": (["-O2"], ["-O2", "-DLEPO_SIM_UCONTEXT"], []),
    "address": (ADDRESS, ADDRESS, ["-fsanitize=address,undefined"]),
    # The engine stays unseen by the race check.
    "thread": (THREAD, ["-O2", "-DLEPO_SIM_TSAN"], ["-fsanitize=thread"]),
}


# What this process could not build, and why: hundreds of tests may ask for it.
_failed: dict[Path, str] = {}


class BuildError(Exception):
    """The compiler's messages."""


def compiler() -> list[str]:
    """The words of ``$CXX``, or g++; none if there is no such program."""
    words = shlex.split(os.environ.get("CXX") or "g++")
    return words if shutil.which(words[0]) else []


def cache() -> Path:
    """``$LEPO_SIM_CACHE``, or the checkout's build folder, or one in the folder for temp files."""
    chosen = os.environ.get("LEPO_SIM_CACHE")
    if chosen:
        return Path(chosen)
    if os.access(ROOT, os.W_OK):
        return ROOT / "build" / "cuda_sim"
    return Path(tempfile.gettempdir()) / f"lepo_cuda_sim_{os.getuid()}"


def include_folders(csrc: Path) -> list[str]:
    return [f"-I{csrc}", f"-I{HERE / 'include'}", f"-I{HERE / 'toolkit'}"]


@functools.cache
def compiler_version() -> bytes:
    return subprocess.run([*compiler(), "--version"], capture_output=True, check=True).stdout


def hash_of(words: list[str], files: list[Path]) -> str:
    digest = hashlib.sha256(compiler_version())
    digest.update("\0".join(words).encode())
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:20]


def is_object(file: Path) -> bool:
    """Whether `built` made this object file, whose name ends with its hash."""
    return ".o-" in file.name


def with_includes(sources: list[Path], csrc: Path) -> list[Path]:
    """``sources`` and all of our own files that they include; object files include none."""
    found: list[Path] = []
    waiting = list(sources)
    while waiting:
        file = waiting.pop()
        if file in found:
            continue
        found.append(file)
        if is_object(file):
            continue
        for name in INCLUDE.findall(file.read_text()):
            places = [
                folder / name for folder in (file.parent, csrc, HERE / "include", HERE / "toolkit")
            ]
            waiting += [place for place in places if place.exists()][:1]
    return sorted(found)


def built(
    name: str, words: list[str], sources: list[Path], csrc: Path, last: Sequence[str] = ()
) -> Path:
    """What the compiler makes of ``words``, ``sources`` and ``last``, now or earlier."""
    # Mutants lie in folders of any name.
    nameless = [word.replace(str(csrc), "csrc") for word in words]
    target = cache() / f"{name}-{hash_of([*nameless, *last], with_includes(sources, csrc))}"
    if target.exists():
        return target
    if target in _failed:
        raise BuildError(_failed[target])
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{target}.lock", "w") as lock:
        # Another process of the same test run may be at it.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            half = Path(f"{target}.half")
            command = [*compiler(), *words, *map(str, sources), "-o", str(half), *last, "-ldl"]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode != 0:
                _failed[target] = done.stderr
                raise BuildError(done.stderr)
            half.replace(target)
    Path(f"{target}.lock").unlink(missing_ok=True)
    return target


def engine(variant: str) -> Path:
    """The engine, as one relocatable object."""
    _, flags, _ = VARIANTS[variant]
    words = [*COMMON, *WARNINGS, *flags, *include_folders(ROOT / "csrc"), "-r", "-nostdlib"]
    sources = [source for source in ENGINE if source != DRIVER]
    return built(f"engine-{variant}.o", words, sources, ROOT / "csrc")


def driver(variant: str) -> Path:
    _, flags, link = VARIANTS[variant]
    words = [*COMMON, *WARNINGS, *flags, *link, *include_folders(ROOT / "csrc")]
    return built(f"driver-{variant}", words, [DRIVER], ROOT / "csrc")


def module(source: Path, variant: str, csrc: Path = ROOT / "csrc") -> Path:
    """A shared library of the kernels and entries in ``source``, with the engine.

    ``csrc`` is the folder that the kernels' headers come from.
    """
    flags, _, link = VARIANTS[variant]
    words = [*COMMON, *WARNINGS, *flags, *include_folders(csrc), "-shared", *link]
    # Kernels are CUDA sources, but for g++ they are C++.
    # The engine's name has its hash.
    words += [str(engine(variant)), "-x", "c++"]
    return built(f"{source.stem}-{variant}.so", words, [source], csrc)
