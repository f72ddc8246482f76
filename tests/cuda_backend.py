"""Lets the ``cuda`` backend serve CPU tensors: on the GPU if there is one, else in the simulator.

So one contract test covers every backend, and what a GPU will be asked is what the simulator was.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from lepo_kernels import dispatch
from tests import gpu_backends
from tests.cuda_sim import library

# Seen once: in the simulator's place the name is no longer missing.
NO_GPU = dispatch.MISSING.get("cuda") or dispatch.why_no_code("cuda", torch.device("cuda"))


def why_not() -> str | None:
    """Make the backend ready; None if that worked, else the reason."""
    return None if has_gpu() else library.why_not()


def has_gpu() -> bool:
    """Whether the real library is here, and a GPU that it has code for."""
    return NO_GPU is None


@contextmanager
def serving(patch: pytest.MonkeyPatch) -> Iterator[None]:
    """Offer the backend for CPU tensors, as the last choice."""
    gpu_backends.offer_for_cpu_tensors(patch, "cuda")
    if has_gpu():
        gpu_backends.run_on_gpu(patch, "cuda")
    else:
        patch.delitem(dispatch.MISSING, "cuda")
    yield
