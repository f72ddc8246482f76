"""Builds what the tests load of csrc, in a folder of its own."""

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

import torch


def _tool(name: str) -> str:
    """The program beside this Python, else the one on the path."""
    folders = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    found = shutil.which(name, path=folders)
    assert found, f"{name} is missing; pip install cmake ninja"
    return found


def build_folder(root: Path) -> Path:
    """Where `build` leaves the libraries of the checkout at ``root``."""
    return root / "build" / "tests"


def build(root: Path, *targets: str, sanitize: str | None = None) -> None:
    """Build ``targets`` of the checkout at ``root``; takes half a second if nothing changed.

    Args:
        root: holds CMakeLists.txt.
        targets: of CMake.
        sanitize: the sanitizers, such as "address,undefined"; None takes those of the last build.

    Raises:
        AssertionError: with the compiler's output.
    """
    folder = build_folder(root)
    folder.mkdir(parents=True, exist_ok=True)
    configure = [
        *(_tool("cmake"), "-S", str(root), "-B", str(folder), "-G", "Ninja"),
        f"-DCMAKE_MAKE_PROGRAM={_tool('ninja')}",
        "-DCMAKE_BUILD_TYPE=Release",
        f"-DLEPO_TORCH_INCLUDE={Path(torch.__file__).parent / 'include'}",
        "-DLEPO_TESTS=ON",
        "-DLEPO_WERROR=ON",
    ]
    if sanitize is not None:
        configure.append(f"-DLEPO_SANITIZE={sanitize}")
    # The compiler itself does not run under the sanitizers.
    environment = {k: v for k, v in os.environ.items() if k != "LD_PRELOAD"}
    with (folder / ".lock").open("w") as lock:
        # Workers of pytest-xdist take turns.
        fcntl.flock(lock, fcntl.LOCK_EX)
        for command in (configure, [_tool("cmake"), "--build", str(folder), "--target", *targets]):
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, done.stdout + done.stderr
