"""What the libraries ask of the machine: symbols, other libraries, the age of the C library."""

import json
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from tools.wheel_checks.wheel import Wheel

# torch is there before our libraries are loaded; the rest is part of every Linux.
NEEDED = {
    "_C_cpu.so": {"libtorch_cpu.so"},
    "_C_cuda.so": {"libtorch.so", "libtorch_cpu.so"},
}
SYSTEM = re.compile(
    r"(libstdc\+\+\.so\.6|libgcc_s\.so\.1|libm\.so\.6|libc\.so\.6|libdl\.so\.2|libpthread\.so\.0"
    r"|librt\.so\.1|ld-linux-.*\.so\.\d)"
)


def check_linking(wheel: Wheel) -> list[str]:
    """No Python API, no search path, and only libraries that are always there."""
    failures = []
    for library in wheel.libraries:
        name = wheel.about(library)
        for check in (_check_symbols, _check_needed):
            failures += [f"{name}: {failure}" for failure in check(library)]
    return failures


def _check_symbols(library: Path) -> list[str]:
    symbols = _output("nm", "-D", "--undefined-only", str(library)).split()
    python = sorted(name for name in symbols if re.match(r"_?Py[A-Z_]", name))
    return [f"uses Python's API ({', '.join(python[:3])})"] if python else []


def _check_needed(library: Path) -> list[str]:
    dynamic = _output("readelf", "-d", str(library))
    needed = set(re.findall(r"\(NEEDED\).*\[(.+)\]", dynamic))
    torch = NEEDED.get(library.name, set())
    failures = [f"does not name {name} as needed" for name in sorted(torch - needed)]
    failures += [
        f"needs {name}, which a machine may lack"
        for name in sorted(needed - torch)
        if not SYSTEM.fullmatch(name)
    ]
    return failures + [
        f"has an {kind} of {path}"
        for kind, path in re.findall(r"\((RPATH|RUNPATH)\).*\[(.*)\]", dynamic)
    ]


def check_platform(wheel: Wheel) -> tuple[list[str], str]:
    """Failures, and the manylinux tag that auditwheel finds the libraries to be worth."""
    found = audit(wheel.path)
    if isinstance(found, str):
        return [found], ""
    verdict, foreign = found
    foreign -= set().union(*NEEDED.values())
    failures = [f"auditwheel: external library {name}" for name in sorted(foreign)]
    claimed = wheel.path.stem.split("-")[-1]
    if claimed.startswith("manylinux") and _glibc(claimed) < _glibc(verdict):
        failures.append(f"tag {claimed}, but auditwheel says {verdict}")
    return failures, verdict


def audit(path: Path) -> tuple[str, set[str]] | str:
    """The tag of the versioned symbols, and the external libraries; or why there is no answer."""
    program = shutil.which("auditwheel", path=sysconfig.get_path("scripts"))
    program = program or shutil.which("auditwheel")
    if program is None:
        return f"auditwheel is not installed (pip install auditwheel, for {sys.executable})"
    done = subprocess.run([program, "show", "--json", str(path)], capture_output=True, text=True)
    if done.returncode != 0:
        return f"auditwheel: {done.stderr.strip()}"
    facts = json.loads(done.stdout)
    return facts["sym_tag"], set(facts["external_libs"])


def _glibc(tag: str) -> tuple[int, ...]:
    version = re.match(r"manylinux_(\d+)_(\d+)_", tag)
    return tuple(map(int, version.groups())) if version else (sys.maxsize,)


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
