"""The contract's tests of an op run on every backend that works here."""

from collections.abc import Iterator

import pytest
import torch

import lepo_kernels
from lepo_kernels import dispatch


@pytest.fixture(params=dispatch.candidates(torch.device("cpu")))
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test once per CPU backend, which serves every op called without ``backend=``."""
    name: str = request.param
    if name in dispatch.MISSING:
        pytest.skip(f"backend {name}: {dispatch.MISSING[name]}")
    with lepo_kernels.backend(name):
        yield name


@pytest.fixture
def real(backend: str) -> torch.dtype:
    """The widest dtype the backend computes in."""
    return torch.float64 if backend == "reference" else torch.float32
