"""Builds a wheel of lepo_kernels from the source distribution, checks it, and files it in dist/.

    python -m tools.build_wheel cpu                     # -> dist/cpu
    python -m tools.build_wheel cuda                    # the installed toolkit -> dist/cu130
    python -m tools.build_wheel cuda --toolkit 13.4     # fetches that toolkit first -> dist/cu134

The folders are package indexes: pip install --extra-index-url file://$PWD/dist/cu130 lepo_kernels.
LEPO_CUDA_ARCH_LIST and MAX_JOBS count here, too; docs/wheels.md has the rest. Needs torch,
setuptools, wheel, cmake, ninja, auditwheel, and for CUDA cuobjdump (the extra `wheels`).
"""

import argparse
import hashlib
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

from tools.check_wheel import check
from tools.commands import pip, run
from tools.native_build import (
    ROOT,
    BuildError,
    Toolkit,
    architectures,
    fails_on_spill,
    find_toolkit,
)
from tools.toolkits import fetch_toolkit
from tools.wheel_checks.kernels import SMALL_SPILL
from tools.wheel_checks.linking import audit
from tools.wheel_checks.wheel import Expected

PROJECT = "lepo-kernels"


def main(words: list[str] | None = None) -> int:
    """Build, check and file one wheel."""
    parser = argparse.ArgumentParser(description="Build and check a wheel of lepo_kernels.")
    parser.add_argument("kind", choices=("cpu", "cuda"))
    parser.add_argument("--toolkit", metavar="VERSION", help="fetch this CUDA toolkit, as 13.4")
    parser.add_argument("--local-version", action="store_true", help="tag the version, as +cu130")
    parser.add_argument("--dist", type=Path, default=ROOT / "dist")
    options = parser.parse_args(words)
    if options.toolkit and options.kind == "cpu":
        parser.error("--toolkit goes with cuda")
    if options.toolkit:
        os.environ["LEPO_CUDA_HOME"] = str(fetch_toolkit(options.toolkit))
    toolkit = find_toolkit() if options.kind == "cuda" else None
    with tempfile.TemporaryDirectory() as folder:
        started = time.monotonic()
        wheel = build(Path(folder), toolkit, options.local_version)
        print(f"built {wheel.name} in {time.monotonic() - started:.0f} s", flush=True)
        failures, facts = check(wheel, expectation(toolkit))
        for line in [*facts, *(f"FAILED {wheel.name}: {failure}" for failure in failures)]:
            print(line)
        if failures:
            return 1
        print(f"ok: {file_wheel(wheel, options.dist / (toolkit.tag if toolkit else 'cpu'))}")
    return 0


def build(folder: Path, toolkit: Toolkit | None, local_version: bool) -> Path:
    """The wheel, made from the source distribution as pip makes it, with its manylinux tag."""
    sources = folder / "sources"
    run(sys.executable, "setup.py", "-q", "sdist", "-d", str(sources))
    environment = {
        "LEPO_BUILD_NATIVE": "1",
        "LEPO_BUILD_CUDA": "1" if toolkit else "0",
        "LEPO_LOCAL_VERSION": "auto" if local_version else "",
    }
    built = folder / "built"
    # pip keeps built wheels, and does not know that the environment decides what they hold.
    options = ("--no-cache-dir", "--no-build-isolation", "--no-deps")
    pip("wheel", *options, "-w", str(built), str(next(sources.iterdir())), **environment)
    wheel = next(built.iterdir())
    audited = audit(wheel)
    if isinstance(audited, str):
        raise BuildError(audited)
    run(sys.executable, "-m", "wheel", "tags", "--remove", f"--platform-tag={audited[0]}", wheel)
    return next(built.iterdir())


def expectation(toolkit: Toolkit | None) -> Expected:
    """What the wheel was asked to be."""
    if toolkit is None:
        return Expected(("_C_cpu",))
    allowed = 0 if fails_on_spill(toolkit) else SMALL_SPILL
    return Expected(("_C_cpu", "_C_cuda"), toolkit.version, architectures(toolkit), allowed)


def file_wheel(wheel: Path, index: Path) -> Path:
    """Move the wheel into a package index, and write the index's page."""
    folder = index / PROJECT
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / wheel.name
    shutil.move(wheel, target)
    links = [
        f'<a href="{path.name}#sha256={hashlib.sha256(path.read_bytes()).hexdigest()}">'
        f"{path.name}</a><br>"
        for path in sorted(folder.glob("*.whl"))
    ]
    page = ["<!DOCTYPE html>", f"<title>{PROJECT}</title>", *links, ""]
    (folder / "index.html").write_text("\n".join(page))
    return target


if __name__ == "__main__":
    sys.exit(main())
