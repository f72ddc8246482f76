"""The native libraries: that they are here, and which instruction set they use."""

import os
import subprocess
import sys

import pytest

from lepo_kernels import dispatch, native


def test_the_cpu_library_is_part_of_this_installation():
    if os.environ.get("LEPO_BUILD_NATIVE") == "0":
        pytest.skip("LEPO_BUILD_NATIVE=0: a pure-Python installation was asked for")
    assert "cpu" not in dispatch.MISSING


def capability_with(value):
    code = "import lepo_kernels.native as n, lepo_kernels; print(n.cpu_capability())"
    environment = {**os.environ, "LEPO_CPU_CAPABILITY": value}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )


def test_the_environment_chooses_the_instruction_set():
    best = native.CAPABILITIES.index(native.cpu_capability())
    for name in native.CAPABILITIES[: best + 1]:
        assert capability_with(name).stdout.strip() == name


def test_an_unknown_instruction_set_is_an_error():
    done = capability_with("sse9")
    assert done.returncode != 0
    assert "LEPO_CPU_CAPABILITY: expected one of baseline, avx2, avx512, got 'sse9'" in done.stderr
