"""Where the checks and measurements of a run take place: on the GPU, or in what stands for it."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch

from lepo_kernels import dispatch


@dataclass(frozen=True)
class Place:
    """A device, and the backends of a GPU that serve it."""

    device: torch.device
    backends: tuple[str, ...]

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"

    def backend_of(self, op: str) -> str | None:
        """The first of the backends that has a kernel for it."""
        return next((name for name in self.backends if name in dispatch.KERNELS[op][1]), None)


@contextmanager
def serving(on_cpu: bool) -> Iterator[Place]:
    """The GPU; or, in a dry run, the CPU with the simulated library and Triton's interpreter."""
    if not on_cpu:
        device = torch.device("cuda")
        here = [x for x in ("cuda", "triton") if x not in dispatch.MISSING]
        here = [x for x in here if dispatch.why_no_code(x, device) is None]
        yield Place(device, tuple(here))
        return
    # What stands for a GPU belongs to the tests, and takes a compiler and pytest.
    import pytest

    from tests import cuda_backend, triton_backend

    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        here = []
        for name, stand_in in (("cuda", cuda_backend), ("triton", triton_backend)):
            if stand_in.why_not() is None:
                stack.enter_context(stand_in.serving(patch))
                here.append(name)
        yield Place(torch.device("cpu"), tuple(here))
