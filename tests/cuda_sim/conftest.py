import pytest

from tests.cuda_sim import build


@pytest.fixture(autouse=True)
def compiler() -> None:
    if not build.compiler():
        pytest.skip("no g++ (or $CXX): CUDA kernels are not simulated here")
