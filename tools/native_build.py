"""Builds the native libraries: reads the environment, finds what is needed, and runs CMake.

setup.py and the other tools share this; it needs the standard library alone. What the variables
mean is in docs/wheels.md. All that a user can put right ends in a ``BuildError``.

    python -m tools.native_build    says which CUDA toolkit a build finds; fails if it finds none
"""

import importlib.util
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DEFAULT_ARCHITECTURES = "8.0;9.0+PTX;10.0;12.0+PTX"
# CI builds with this one, and there no kernel may spill a register. Other compilers allocate
# registers otherwise, in every release.
REFERENCE_TOOLKIT = "13.0"


class BuildError(SystemExit):
    """Ends the build with a message instead of a traceback."""

    def __init__(self, message: str) -> None:
        super().__init__(f"\nlepo_kernels: {message}\n")


@dataclass(frozen=True)
class Toolkit:
    """A CUDA toolkit with a compiler and headers."""

    home: Path
    version: str  # such as "13.0"

    @property
    def nvcc(self) -> Path:
        """The compiler."""
        return self.home / "bin" / "nvcc"

    @property
    def tag(self) -> str:
        """Such as ``cu130``."""
        return "cu" + self.version.replace(".", "")


@dataclass(frozen=True)
class Torch:
    """The installed torch, found without importing it."""

    include: Path
    version: str
    cuda: str | None


@dataclass(frozen=True)
class Plan:
    """One native build."""

    libraries: tuple[str, ...]
    folder: Path
    configure: tuple[str, ...]
    compile: tuple[str, ...]


def flag(name: str, *others: str) -> bool | None:
    """What a switch in the environment says; None if it is unset, empty or ``auto``.

    ``others`` are words that it takes, too, and that the caller has looked for.
    """
    value = os.environ.get(name, "").strip().lower()
    if value in ("", "auto"):
        return None
    if value not in ("0", "1", "off", "on", "false", "true", "no", "yes"):
        words = ", ".join(("0", "1", *others))
        raise BuildError(f"{name}: expected {words} or auto, got {value!r}")
    return value in ("1", "on", "true", "yes")


def native_wanted() -> bool:
    """Whether to build native libraries at all; they are for Linux."""
    wanted = flag("LEPO_BUILD_NATIVE")
    if wanted is False and flag("LEPO_BUILD_CUDA"):
        raise BuildError("LEPO_BUILD_NATIVE=0 and LEPO_BUILD_CUDA=1 contradict each other")
    return sys.platform == "linux" if wanted is None else wanted


def find_torch() -> Torch:
    """The torch whose headers the libraries are compiled with."""
    spec = importlib.util.find_spec("torch")
    folders = spec.submodule_search_locations if spec else None
    if not folders:
        raise BuildError(
            "the native kernels are compiled with the headers of the torch they will run with,\n"
            f"and there is no torch in the Python that builds ({sys.executable}).\n"
            "pip builds in an environment of its own unless told otherwise. So, with torch 2.11\n"
            "or later installed:\n"
            "    pip install cmake ninja 'setuptools>=77.0.3' wheel\n"
            "    pip install --no-build-isolation .\n"
            "or, for the pure-Python package, without the native kernels:\n"
            "    LEPO_BUILD_NATIVE=0 pip install ."
        )
    folder = Path(folders[0])
    facts = runpy.run_path(str(folder / "version.py"))
    version = str(facts["__version__"])
    if tuple(int(part) for part in version.split(".")[:2]) < (2, 11):
        raise BuildError(f"the native kernels need torch 2.11 or later; {folder} is {version}")
    include = folder / "include"
    if not (include / "torch/csrc/stable/library.h").is_file():
        raise BuildError(f"torch {version} in {folder} came without its C++ headers")
    return Torch(include, version, facts.get("cuda"))


def find_toolkit() -> Toolkit:
    """The CUDA toolkit: LEPO_CUDA_HOME, else CUDA_HOME, else nvcc on PATH, else /usr/local/cuda."""
    searched = []
    for origin, home in _toolkit_candidates():
        lacking = [
            str(home / part)
            for part in ("bin/nvcc", "include/cuda_runtime.h")
            if not (home / part).is_file()
        ]
        if not lacking:
            return Toolkit(home, _nvcc_version(home / "bin/nvcc"))
        searched.append(f"    {origin}: no {' and no '.join(lacking)}")
    raise BuildError(
        "no CUDA toolkit was found. Looked at\n" + "\n".join(searched) + "\n"
        "Install one, or point LEPO_CUDA_HOME to it; or set LEPO_BUILD_CUDA=0."
    )


def _toolkit_candidates() -> list[tuple[str, Path]]:
    for name in ("LEPO_CUDA_HOME", "CUDA_HOME"):
        if os.environ.get(name):  # what somebody names is not quietly replaced by something else
            return [(f"{name}={os.environ[name]}", Path(os.environ[name]))]
    candidates = [("/usr/local/cuda", Path("/usr/local/cuda"))]
    nvcc = shutil.which("nvcc")
    if nvcc:  # it may be a script that calls another one; the headers then lie elsewhere
        candidates.insert(0, (f"nvcc on PATH ({nvcc})", Path(nvcc).resolve().parents[1]))
    else:
        candidates.insert(0, ("nvcc on PATH", Path("(not on PATH)")))
    return candidates


def _nvcc_version(nvcc: Path) -> str:
    done = subprocess.run([str(nvcc), "--version"], capture_output=True, text=True)
    release = re.search(r"release (\d+\.\d+)", done.stdout)
    if release is None:
        raise BuildError(f"{nvcc} --version does not say its release: {done.stdout}{done.stderr}")
    return release[1]


def wanted_toolkit() -> Toolkit | None:
    """The toolkit to build ``_C_cuda`` with; None where it is not to be built.

    Left to itself, a build makes the CUDA library only for a torch that can run it.
    """
    wanted = flag("LEPO_BUILD_CUDA")
    if wanted is not None:
        return find_toolkit() if wanted else None
    cuda = find_torch().cuda
    if cuda is None:
        return None
    try:
        toolkit = find_toolkit()
    except BuildError as error:
        print(f"{error}\nBuilding without CUDA kernels.", file=sys.stderr)
        return None
    if int(cuda.split(".")[0]) < int(toolkit.version.split(".")[0]):
        print(
            f"lepo_kernels: torch is built for CUDA {cuda} and the toolkit in {toolkit.home} is "
            f"{toolkit.version}: building without CUDA kernels.",
            file=sys.stderr,
        )
        return None
    return toolkit


def architectures(toolkit: Toolkit) -> tuple[str, ...]:
    """The GPU architectures to compile for, such as ``9.0`` and ``12.0+PTX``."""
    for name in ("LEPO_CUDA_ARCH_LIST", "TORCH_CUDA_ARCH_LIST"):
        if os.environ.get(name):
            origin, listed = f"{name}={os.environ[name]}", os.environ[name]
            break
    else:
        origin, listed = "the default list", DEFAULT_ARCHITECTURES
    found = tuple(part for part in re.split(r"[;,\s]+", listed) if part)
    if not found:
        raise BuildError(f"{origin}: names no architecture")
    done = subprocess.run([str(toolkit.nvcc), "--list-gpu-code"], capture_output=True, text=True)
    known = set(re.findall(r"sm_(\d+)\b", done.stdout))
    for architecture in found:
        number = re.fullmatch(r"(\d+)\.(\d)[af]?(\+PTX)?", architecture)
        if number is None:
            raise BuildError(
                f"{origin}: {architecture!r} is no CUDA architecture; expected a list such as "
                f"{DEFAULT_ARCHITECTURES!r}"
            )
        if number[1] + number[2] not in known:
            raise BuildError(f"{origin}: CUDA {toolkit.version} does not compile {architecture}")
    return found


def fails_on_spill(toolkit: Toolkit) -> bool:
    """Whether a kernel that spills registers fails a build with this toolkit: LEPO_FAIL_ON_SPILL.

    ``reference`` says so of ``REFERENCE_TOOLKIT`` alone.
    """
    if os.environ.get("LEPO_FAIL_ON_SPILL", "").strip().lower() == "reference":
        return toolkit.version == REFERENCE_TOOLKIT
    return flag("LEPO_FAIL_ON_SPILL", "reference") is True


def find_tool(name: str) -> str:
    """The path of ``cmake`` or ``ninja``, the one beside this Python first."""
    path = os.pathsep.join((sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)))
    found = shutil.which(name, path=path)
    if found is None:
        raise BuildError(
            f"the native build needs {name}, and there is none beside {sys.executable} or on PATH. "
            f"Do\n    pip install cmake ninja\nor set LEPO_BUILD_NATIVE=0 for the pure-Python "
            "package."
        )
    return found


def check_compiler() -> None:
    """A C++ compiler, as CMake looks for one."""
    named = os.environ.get("CXX", "")
    names = (shlex.split(named)[0],) if named.strip() else ("c++", "g++", "clang++")
    if not any(shutil.which(name) for name in names):
        origin = f"CXX={named}" if named.strip() else ", ".join(names) + " on PATH"
        raise BuildError(
            f"the native build needs a C++17 compiler, and there is none (looked for {origin}).\n"
            "Install g++ (Debian, Ubuntu: apt-get install g++) or name one in CXX,\n"
            "or set LEPO_BUILD_NATIVE=0 for the pure-Python package."
        )


def local_version() -> str:
    """``+`` and the local tag that LEPO_LOCAL_VERSION asks for; nothing by default."""
    wanted = os.environ.get("LEPO_LOCAL_VERSION", "")
    if wanted != "auto":
        return f"+{wanted}" if wanted else ""
    if not native_wanted():
        return ""
    toolkit = wanted_toolkit()
    return f"+{toolkit.tag}" if toolkit else "+cpu"


def make_plan(version: str) -> Plan:
    """What to build here, and how; a ``BuildError`` if something for it is missing."""
    torch, toolkit = find_torch(), wanted_toolkit()
    check_compiler()
    cmake, ninja = find_tool("cmake"), find_tool("ninja")
    sanitizers = os.environ.get("LEPO_SANITIZE", "")
    # One folder per configuration: CMake starts anew when a compiler changes.
    name = "-".join(["cmake", toolkit.tag if toolkit else "cpu", *re.findall(r"\w+", sanitizers)])
    folder = ROOT / "build" / name
    settings = {
        "CMAKE_BUILD_TYPE": "Release",
        "CMAKE_MAKE_PROGRAM": ninja,
        "LEPO_VERSION": version,
        "LEPO_TORCH_INCLUDE": str(torch.include),
        "LEPO_SANITIZE": sanitizers,
        "LEPO_WERROR": "ON" if flag("LEPO_WERROR") else "OFF",
        "LEPO_FAIL_ON_SPILL": "ON" if toolkit and fails_on_spill(toolkit) else "OFF",
        "LEPO_CUDA_ARCHITECTURES": ";".join(architectures(toolkit)) if toolkit else "",
        "CMAKE_CXX_COMPILER_LAUNCHER": _launcher(),
    }
    if toolkit:
        settings["CMAKE_CUDA_COMPILER"] = str(toolkit.nvcc)
        settings["CMAKE_CUDA_COMPILER_LAUNCHER"] = _launcher()
    jobs = os.environ.get("MAX_JOBS") or str(len(os.sched_getaffinity(0)))
    return Plan(
        ("_C_cpu", "_C_cuda") if toolkit else ("_C_cpu",),
        folder,
        (
            *(cmake, "-S", str(ROOT), "-B", str(folder), "-G", "Ninja"),
            *(f"-D{key}={value}" for key, value in settings.items()),
            *shlex.split(os.environ.get("CMAKE_ARGS", "")),
        ),
        (cmake, "--build", str(folder), "--parallel", jobs),
    )


def _launcher() -> str:
    """LEPO_CCACHE: 0 for none, a program, or (by default) ccache or sccache if there is one."""
    named = os.environ.get("LEPO_CCACHE", "")
    if named.lower() in ("0", "off", "no", "false"):
        return ""
    if named.lower() not in ("", "1", "on", "yes", "true", "auto"):
        found = shutil.which(named)
        if found is None:
            raise BuildError(f"LEPO_CCACHE={named}: there is no such program")
        return found
    return shutil.which("ccache") or shutil.which("sccache") or ""


def run_plan(plan: Plan) -> None:
    """Configure and compile; the libraries then lie in ``plan.folder``."""
    for command in (plan.configure, plan.compile):
        if subprocess.run(command).returncode != 0:
            raise BuildError(
                "the native build failed; the reason is in the lines above. To install without\n"
                "the native kernels, set LEPO_BUILD_NATIVE=0."
            )


if __name__ == "__main__":
    toolkit_at_hand = find_toolkit()
    print(f"CUDA {toolkit_at_hand.version} in {toolkit_at_hand.home}")
