"""The contract's tests of an op run on every backend that works here."""

from collections.abc import Iterator
from contextlib import nullcontext

import pytest
import torch

import lepo_kernels
from lepo_kernels import dispatch
from tests import cuda_backend, gpu_backends, triton_backend

# Backends that need a GPU, or something in its place.
GPU_BACKENDS = {"cuda": cuda_backend, "triton": triton_backend}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    marks = metafunc.definition.iter_markers("parametrize")
    if "backend" in metafunc.fixturenames and not any("backend" in mark.args[0] for mark in marks):
        names = backends_to_try(metafunc.module.__name__)
        metafunc.parametrize("backend", names, indirect=True)


# Before pytest leaves out what is slow.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        parameters = getattr(item, "callspec", None)
        if parameters is None or item.get_closest_marker("large") is None:
            continue
        if is_simulated(parameters.params.get("backend")):
            item.add_marker(pytest.mark.slow)


def is_simulated(backend: str | None) -> bool:
    """Whether something stands in for the GPU that the backend needs."""
    return backend in GPU_BACKENDS and not GPU_BACKENDS[backend].has_gpu()


def backends_to_try(module: str) -> list[str]:
    """The backends for the tests in this file: those that serve every op of its family."""
    stem = module.rsplit(".", 1)[-1].removeprefix("test_")
    ops = [op for op, (family, _) in dispatch.KERNELS.items() if stem.startswith(family)]
    return [
        name
        for name in (*dispatch.candidates(gpu_backends.CPU), *GPU_BACKENDS)
        if all(serves(name, op) for op in ops or dispatch.KERNELS)
    ]


def serves(name: str, op: str) -> bool:
    """Whether the backend has a kernel for the op, or for its fallback."""
    return any(name in dispatch.KERNELS[x][1] for x in (op, dispatch.FALLBACKS.get(op, op)))


@pytest.fixture
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Runs the test once per backend, which serves every op called without ``backend=``."""
    name: str = request.param
    special = GPU_BACKENDS.get(name)
    reason = dispatch.MISSING.get(name) if special is None else special.why_not()
    if reason is not None:
        pytest.skip(f"backend {name}: {reason}")
    serving = nullcontext() if special is None else special.serving(monkeypatch)
    with serving, lepo_kernels.backend(name):
        yield name


@pytest.fixture
def fast_backend(backend: str) -> str:
    """For a test that a simulated GPU would take minutes for, and has a smaller form of."""
    if is_simulated(backend):
        pytest.skip("a simulated GPU takes the smaller form of this test")
    return backend


@pytest.fixture
def drawn_backend(backend: str) -> str:
    """For a distribution, which takes thousands of rows, and the interpreter minutes for them.

    Its draws are compared with the reference's, number by number, by tests of its own.
    """
    if backend == "triton" and is_simulated(backend):
        pytest.skip("the interpreter's draws are compared with the reference's instead")
    return backend


@pytest.fixture
def real(backend: str) -> torch.dtype:
    """The widest dtype the backend computes in."""
    return torch.float64 if backend == "reference" else torch.float32
