"""Launches every kernel of the cuda backend, for compute-sanitizer to watch.

    compute-sanitizer --tool memcheck python -m tests.gpu.sanitizer_cases

Each tensor should have its own allocation: set PYTORCH_NO_CUDA_MEMORY_CACHING=1. Without a GPU the
calls run in the simulator.
"""

import sys

import torch

from tests import cuda_backend
from tests.gpu.calls import calls_of, cuda_ops


def main() -> int:
    if reason := cuda_backend.why_not():
        print(f"the cuda backend: {reason}")
        return 1
    device = torch.device("cuda" if cuda_backend.has_gpu() else "cpu")
    count = 0
    for op in cuda_ops():
        for case in calls_of(op, device):
            for out in case.run("cuda"):
                out.cpu()
            count += 1
    print(f"{count} calls of {len(cuda_ops())} ops on {device}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
