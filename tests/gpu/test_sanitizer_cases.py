"""What compute-sanitizer watches launches every kernel there is."""

import re
import subprocess
import sys

import torch

from tests.gpu.sanitizer_cases import main
from tools.cuda_report.compiler import ROOT
from tools.cuda_report.kernels import SHIPPED

KERNEL = re.compile(r"__global__[^{;]*?(\w+_kernel)\(")


def kernels():
    files = [*SHIPPED.glob("*.cuh"), *SHIPPED.glob("*.cu")]
    return {name for file in files for name in KERNEL.findall(file.read_text())}


def run_and_list(device):
    """Run the cases; a text that names every kernel which they launched."""
    if device.type == "cpu":
        # In a process of its own: in this one, other tests have launched kernels, too.
        code = (
            "from tests.cuda_sim import library; from tests.gpu.sanitizer_cases import main; "
            "assert main() == 0; print(*library.launched_kernels(), sep='\\n')"
        )
        words = [sys.executable, "-c", code]
        return subprocess.run(words, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        assert main() == 0
        torch.cuda.synchronize()
    return "\n".join(event.key for event in profile.key_averages())


def test_the_cases_launch_every_kernel(device):
    launched = run_and_list(device)
    assert {name for name in kernels() if not re.search(rf"\b{name}\b", launched)} == set()
