"""Builds the SIMD layer of the CPU kernels, and loads it once per instruction set."""

import os
from pathlib import Path

import pytest

from tests.csrc.building import build, build_folder
from tests.csrc.layer import Layer
from tests.ops.native_cases import offered_capabilities

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def built() -> Path:
    if os.environ.get("LEPO_BUILD_NATIVE") == "0":
        pytest.skip("LEPO_BUILD_NATIVE=0: a pure-Python installation was asked for")
    build(ROOT, "simd_layers")
    return build_folder(ROOT)


@pytest.fixture(params=offered_capabilities(), scope="session")
def layer(request: pytest.FixtureRequest, built: Path) -> Layer:
    """Runs the test once per instruction set that this machine offers."""
    return Layer(built / f"simd_layer_{request.param}.so")
