"""Builds the SIMD layer of the CPU kernels, and loads it once per instruction set."""

import fcntl
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from lepo_kernels import native
from tests.csrc.layer import Layer

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "tests"


def build() -> None:
    """Run CMake; a build that is up to date takes half a second."""
    BUILD.mkdir(parents=True, exist_ok=True)
    with (BUILD / ".lock").open("w") as lock:
        # Workers of pytest-xdist take turns.
        fcntl.flock(lock, fcntl.LOCK_EX)
        configure = [
            *("cmake", "-S", str(ROOT), "-B", str(BUILD), "-G", "Ninja"),
            f"-DCMAKE_MAKE_PROGRAM={shutil.which('ninja')}",
            "-DCMAKE_BUILD_TYPE=Release",
            f"-DLEPO_TORCH_INCLUDE={Path(torch.__file__).parent / 'include'}",
            "-DLEPO_TESTS=ON",
            "-DLEPO_WERROR=ON",
            # Set by tests/csrc/sanitize.py.
            f"-DLEPO_SANITIZE={os.environ.get('LEPO_SANITIZE', '')}",
        ]
        # The compiler itself does not run under the sanitizers.
        environment = {k: v for k, v in os.environ.items() if k != "LD_PRELOAD"}
        for command in (configure, ["cmake", "--build", str(BUILD), "--target", "simd_layers"]):
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="session")
def built() -> None:
    if os.environ.get("LEPO_BUILD_NATIVE") == "0":
        pytest.skip("LEPO_BUILD_NATIVE=0: a pure-Python installation was asked for")
    build()


@pytest.fixture(params=native.CAPABILITIES, scope="session")
def layer(request: pytest.FixtureRequest, built: None) -> Layer:
    """Runs the test once per instruction set that this machine offers."""
    name: str = request.param
    best = native.CAPABILITIES.index(native.cpu_capability())
    if native.CAPABILITIES.index(name) > best:
        pytest.skip(f"this machine does not offer {name}")
    return Layer(BUILD / f"simd_layer_{name}.so")
