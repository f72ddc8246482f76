"""What compute-sanitizer watches launches every kernel there is."""

import re

import pytest
import torch

from cuda_report.kernels import SHIPPED
from tests.gpu.sanitizer_cases import main

KERNEL = re.compile(r"__global__[^{;]*?(\w+_kernel)\(")


def test_the_cases_run():
    assert main() == 0


@pytest.mark.gpu
def test_the_cases_launch_every_kernel():
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        assert main() == 0
        torch.cuda.synchronize()
    launched = "\n".join(event.key for event in profile.key_averages())
    sources = [*SHIPPED.glob("*.cuh"), *SHIPPED.glob("*.cu")]
    kernels = {name for file in sources for name in KERNEL.findall(file.read_text())}
    assert {name for name in kernels if not re.search(rf"\b{name}\b", launched)} == set()
