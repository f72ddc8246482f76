"""What the cuda backend launches for a mixture: nothing beside its kernels, and no waiting.

The kernels themselves are tested in tests/cuda_sim.
"""

import functools

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import lepo_kernels
from lepo_kernels.backends import checks
from lepo_kernels.backends.cuda import latent_step as both
from lepo_kernels.backends.cuda import mix_embeddings as mixture
from lepo_kernels.structures import Draw
from tests import cuda_backend
from tests.seeds import seeded

pytestmark = [
    pytest.mark.usefixtures("backend"),
    pytest.mark.parametrize("backend", ["cuda"], indirect=True),
]


class Operations(TorchDispatchMode):
    """Records the names of all operations, in their order."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func).removesuffix(".default"))
        return func(*args, **(kwargs or {}))


@pytest.fixture(autouse=True)
def unchecked(monkeypatch):
    """As on a GPU, where values are not looked at."""
    monkeypatch.setattr(checks, "checks_enabled", lambda device: False)


def operations(kernel, *arguments):
    place = "cuda" if cuda_backend.has_gpu() else "cpu"
    there = [x.to(place) if isinstance(x, torch.Tensor) else x for x in arguments]
    with Operations() as recorded:
        kernel(*there)
    return [name for name in recorded.names if "new_empty" not in name]


def make():
    torch.manual_seed(seeded(0))
    ids = torch.randint(0, 50, (3, 4))
    weights, table = torch.rand(3, 4), torch.randn(50, 8).bfloat16()
    return torch.randn(3, 8).bfloat16(), ids, weights, table


def test_a_mixture_of_a_draw_is_one_launch():
    _, ids, weights, table = make()
    names = ["lepo_kernels_cuda.mix_embeddings"]
    assert operations(mixture.mix_embeddings, ids, weights, table) == names
    assert operations(mixture.mix_embeddings, ids.int(), weights, table) == names


def test_the_gradients_wait_for_nothing():
    names = operations(mixture.mix_embeddings_backward, *make(), True, True)
    assert names == [
        "lepo_kernels_cuda.mix_dweights",
        "lepo_kernels_cuda.mix_keys",
        "aten.sort.stable",
        "lepo_kernels_cuda.mix_dembedding",
    ]


def test_a_frozen_table_is_not_sorted_for():
    names = operations(mixture.mix_embeddings_backward, *make(), True, False)
    assert names == ["lepo_kernels_cuda.mix_dweights"]


def test_constant_weights_take_no_products():
    names = operations(mixture.mix_embeddings_backward, *make(), False, True)
    assert "lepo_kernels_cuda.mix_dweights" not in names


def test_a_decoding_step_is_one_call():
    logits, table = torch.randn(3, 50), torch.randn(50, 8)
    one = torch.ones(1, dtype=torch.float64)
    filters = (5, 0.9, 0.0, "gumbel", 1.0, -torch.inf, torch.inf, 1, None)
    key = (torch.tensor(0), torch.arange(3), torch.tensor([0]))
    draw = Draw(one, one, *filters, *key, 1.0, 1.0, 0, 0)
    names = operations(both.latent_step, logits, table, draw)
    assert names == ["lepo_kernels_cuda.latent_step"]


def test_numbers_are_no_launches_of_their_own():
    logits, table = torch.randn(3, 50), torch.randn(50, 8)
    numbers = {"tau": 0.5, "temperature": 0.7, "seed": 7, "step": 3}
    for op, rest in ((lepo_kernels.sample_latent, ()), (lepo_kernels.latent_step, (table,))):
        names = operations(functools.partial(op, top_k=5, **numbers), logits, *rest)
        assert names == ["aten.detach", f"lepo_kernels.{op.__name__}"]


def test_numbers_do_what_tensors_of_them_do():
    logits, table = torch.randn(3, 50), torch.randn(50, 8)
    # Each of them differs from what stands in for it where a tensor is given.
    numbers = {"tau": 0.5, "temperature": 0.7, "seed": -7, "step": 2**32 - 1}
    tensors = {
        name: torch.tensor(value, dtype=torch.float64 if isinstance(value, float) else torch.int64)
        for name, value in numbers.items()
    }
    expected = lepo_kernels.latent_step(logits, table, top_k=5, **tensors)
    for name in (None, *numbers):
        mixed = numbers | ({} if name is None else {name: tensors[name]})
        step = lepo_kernels.latent_step(logits, table, top_k=5, **mixed)
        for ours, theirs in zip(
            (*step.sample, step.embedding), (*expected.sample, expected.embedding), strict=True
        ):
            assert torch.equal(ours, theirs)


def test_results_are_not_made_through_the_dispatcher():
    logits, table = torch.randn(3, 50), torch.randn(50, 8)
    lepo_kernels.latent_step(logits, table, top_k=5)
    with torch.autograd.profiler.profile() as profile:
        lepo_kernels.latent_step(logits, table, top_k=5)
    names = {event.name for event in profile.function_events}
    assert "lepo_kernels_cuda::latent_step" in names
    assert "aten::new_empty" not in names
