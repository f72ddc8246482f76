"""A CUDA toolkit that only says what it is, and an environment without any."""

from collections.abc import Callable
from pathlib import Path

import pytest

MakeToolkit = Callable[..., Path]

# Answers as nvcc does.
NVCC = """#!/bin/sh
case "$1" in
--version) echo "Cuda compilation tools, release {version}, V{version}.88" ;;
--list-gpu-code) printf 'sm_80\\nsm_90\\nsm_100\\nsm_120\\n' ;;
esac
"""


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable that steers a build; PATH keeps the system's tools."""
    for name in (
        *("LEPO_BUILD_NATIVE", "LEPO_BUILD_CUDA", "LEPO_CUDA_HOME", "CUDA_HOME", "CXX"),
        *("LEPO_CUDA_ARCH_LIST", "TORCH_CUDA_ARCH_LIST", "LEPO_LOCAL_VERSION", "LEPO_SANITIZE"),
        *("LEPO_WERROR", "LEPO_FAIL_ON_SPILL", "LEPO_CCACHE", "MAX_JOBS", "CMAKE_ARGS"),
    ):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def make_toolkit(tmp_path: Path) -> MakeToolkit:
    def make(name: str, version: str = "13.0", headers: bool = True) -> Path:
        home = tmp_path / name
        (home / "bin").mkdir(parents=True)
        nvcc = home / "bin" / "nvcc"
        nvcc.write_text(NVCC.format(version=version))
        nvcc.chmod(0o755)
        if headers:
            (home / "include").mkdir()
            (home / "include" / "cuda_runtime.h").touch()
        return home

    return make
