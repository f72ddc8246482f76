"""Tests of the cuda backend on the device itself.

Those marked `gpu` need one. The others run in the simulator where there is none, so that what a GPU
will be asked has been asked before.
"""

from collections.abc import Iterator
from contextlib import nullcontext

import pytest
import torch

import lepo_kernels
from tests import cuda_backend


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if cuda_backend.has_gpu():
        return
    skip = pytest.mark.skip(reason=f"no GPU to be used: {cuda_backend.NO_GPU}")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    """Where tensors go; the cuda backend serves every op called on them."""
    if reason := cuda_backend.why_not():
        pytest.skip(f"the cuda backend: {reason}")
    found = torch.device("cuda" if cuda_backend.has_gpu() else "cpu")
    serving = nullcontext() if cuda_backend.has_gpu() else cuda_backend.serving(monkeypatch)
    with serving, lepo_kernels.backend("cuda"):
        yield found
