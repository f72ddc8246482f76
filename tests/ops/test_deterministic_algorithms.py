"""``torch.use_deterministic_algorithms(True)`` refuses no op, and moves no bit of it.

Memory that torch has not yet written is full of NaN then: what is read before it is written shows.
"""

import os

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode

import lepo_kernels
from lepo_kernels import dispatch
from lepo_kernels.backends.reference import numerics, sample_latent
from tests.ops.calls import DIFFERENTIABLE, SAMPLED, arguments_of
from tests.ops.conftest import GPU_BACKENDS, is_simulated, serves
from tests.ops.native_cases import same_bits

# Public functions that call an op of another name.
OPS = {"gumbel_noise": "philox_words", "normal_noise": "philox_words"}


# Every public op on every backend that has a kernel for it.
SERVED = [
    pytest.param(name, backend, id=f"{name}-{backend}")
    for name in (*DIFFERENTIABLE, *SAMPLED)
    for backend in ("cpu", "reference", *GPU_BACKENDS)
    if serves(backend, OPS.get(name, name))
]


@pytest.fixture
def deterministic():
    """Switches the mode on within the test; afterwards it is off, as it was."""
    yield lambda: torch.use_deterministic_algorithms(True)
    torch.use_deterministic_algorithms(False)


def values_and_gradients(name):
    arguments = arguments_of(name)
    leaves = [arguments[x].requires_grad_() for x in DIFFERENTIABLE.get(name, ())]
    results = _pytree.tree_leaves(getattr(lepo_kernels, name)(**arguments))
    results = [x for x in results if isinstance(x, Tensor)]
    if leaves:
        loss = sum(x.sum() for x in results if x.requires_grad)
        results += [
            x for x in torch.autograd.grad(loss, leaves, allow_unused=True) if x is not None
        ]
    return [x.detach().clone() for x in results]


@pytest.mark.parametrize(("name", "backend"), SERVED, indirect=["backend"])
def test_every_op_has_the_same_bits(name, backend, deterministic):
    on_gpu = backend in GPU_BACKENDS and not is_simulated(backend)
    if on_gpu and "CUBLAS_WORKSPACE_CONFIG" not in os.environ:
        pytest.skip("torch refuses every product on a GPU: CUBLAS_WORKSPACE_CONFIG is not set")
    usual = values_and_gradients(name)
    deterministic()
    found = values_and_gradients(name)
    assert len(found) == len(usual) > 0
    for x, y in zip(found, usual, strict=True):
        assert same_bits(x, y)


def test_no_op_is_left_out():
    names = {OPS.get(name, name) for name in (*DIFFERENTIABLE, *SAMPLED)}
    assert names == {op for op in dispatch.KERNELS if not op.endswith("_backward")}


class Recorder(TorchDispatchMode):
    """Keeps the names of the ops that torch runs."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


# On a GPU, for which "meta" stands, the mode refuses cumsum of floats.
def test_the_nucleus_is_found_without_cumsum_on_a_gpu():
    names = {}
    for device in ("cpu", "meta"):
        kept = torch.zeros(2, 5, device=device)
        with Recorder() as recorder:
            sample_latent._filter(kept, top_p=0.5, min_p=0.0)
        names[device] = recorder.names
    assert "cumsum" in names["cpu"]  # it is seen where it is
    assert "cumsum" not in names["meta"]


# One entry, a power of two, and widths beside it.
@pytest.mark.parametrize("width", [0, 1, 7, 8, 9])
def test_sums_by_doubling(width):
    # Small integers add up without rounding, in any order.
    x = torch.arange(2.0 * width).reshape(2, width)
    assert torch.equal(numerics._sums_by_doubling(x), x.cumsum(dim=-1))
