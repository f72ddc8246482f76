"""P2: the mixture alone, forward (a rollout step) and with its gradients (training).

Others: the plain expression, and torch's embedding bag. Floors: reading the rows that the
mixture reads (as many, one after another), and with gradients also making the zeros that the
table's gradient starts from.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.case import Case, Family, Implementation, assert_close, generator, ours
from lepo_kernels import mix_embeddings

_Mix = Callable[["Inputs"], Tensor]


@dataclass
class Inputs:
    ids: Tensor  # [N, K]
    weights: Tensor  # [N, K]
    embedding: Tensor  # [V, D]
    upstream: Tensor  # [N, D]

    @cached_property
    def mixture(self) -> Tensor:  # [N, D]
        weights, rows = self.weights.detach(), self.embedding.detach()[self.ids]
        return (weights.double()[..., None] * rows.double()).sum(1)

    @cached_property
    def grads(self) -> tuple[Tensor, Tensor]:  # [N, K], [V, D]
        upstream, rows = self.upstream.double(), self.embedding.detach()[self.ids].double()
        contributions = self.weights.detach().double()[..., None] * upstream[:, None]
        table = torch.zeros(self.embedding.shape, dtype=torch.float64, device=upstream.device)
        table.index_add_(0, self.ids.flatten(), contributions.flatten(0, 1))
        return (rows * upstream[:, None]).sum(-1), table


def plain(x: Inputs) -> Tensor:
    return (x.weights[..., None] * x.embedding[x.ids]).sum(1)


def bag(x: Inputs) -> Tensor:
    return F.embedding_bag(x.ids, x.embedding, per_sample_weights=x.weights, mode="sum")


def with_gradients(mix: _Mix) -> Callable[[Inputs], tuple[Tensor, ...]]:
    def run(x: Inputs) -> tuple[Tensor, ...]:
        mixed = mix(x)
        return mixed.detach(), *torch.autograd.grad(mixed, (x.weights, x.embedding), x.upstream)

    return run


def read_rows(x: Inputs) -> Tensor:
    return x.embedding.detach()[: x.ids.numel()].amax(-1)


def read_rows_and_zeros(x: Inputs) -> tuple[Tensor, Tensor]:
    return read_rows(x), torch.zeros_like(x.embedding.detach())


def check_forward(x: Inputs, result: Tensor) -> None:
    assert_close("mixture", result, x.mixture, 1e-4)


def check_with_gradients(x: Inputs, result: tuple[Tensor, ...]) -> None:
    check_forward(x, result[0])
    for name, got, want in zip(("dweights", "dembedding"), result[1:], x.grads, strict=True):
        assert_close(name, got, want, 1e-4)


def check_rows(x: Inputs, result: Tensor) -> None:
    assert torch.equal(result, x.embedding.detach()[: x.ids.numel()].max(-1).values)


def check_rows_and_zeros(x: Inputs, result: tuple[Tensor, Tensor]) -> None:
    check_rows(x, result[0])
    assert not result[1].any()


def case(rows: int, kept: int, vocab: int, width: int, *, gradients: bool) -> Case:
    def make(device: torch.device) -> Inputs:
        rng = generator(device)
        ids = torch.randint(vocab, (rows, kept), device=device, generator=rng)
        weights = torch.randn(rows, kept, device=device, generator=rng).softmax(-1)
        embedding = torch.randn(vocab, width, device=device, generator=rng)
        upstream = torch.randn(rows, width, device=device, generator=rng)
        weights.requires_grad_(gradients)
        return Inputs(ids, weights, embedding.requires_grad_(gradients), upstream)

    ops = ("mix_embeddings", "mix_embeddings_backward")

    def our_mix(backend: str) -> _Mix:
        return lambda x: mix_embeddings(x.ids, x.weights, x.embedding, backend=backend)

    entries = rows * kept * (width + 3) + rows * width
    if gradients:
        check = check_with_gradients
        shape = f"[{rows}, {kept}] of [{vocab}, {width}] float32, forward + backward"
        implementations = [
            *ours("ours", ops, lambda x, backend: with_gradients(our_mix(backend))(x), check),
            Implementation("eager", "other", with_gradients(plain), check),
            Implementation("embedding_bag", "other", with_gradients(bag), check),
            Implementation(
                "floor: rows and zeros", "floor", read_rows_and_zeros, check_rows_and_zeros
            ),
        ]
        entries = 2 * entries + vocab * width + rows * kept * width
    else:
        shape = f"[{rows}, {kept}] of [{vocab}, {width}] float32, forward"
        implementations = [
            *ours("ours", ops, lambda x, backend: our_mix(backend)(x), check_forward),
            Implementation("eager", "other", plain, check_forward),
            Implementation("embedding_bag", "other", bag, check_forward),
            Implementation("floor: rows", "floor", read_rows, check_rows),
        ]
    return Case(
        op="mix_embeddings (P2)",
        shape=shape,
        make=make,
        implementations=tuple(implementations),
        bytes=4 * entries,
        rounds=9,
    )


FAMILY = Family(
    # A step of 32 rollouts; the 1024 latent rows of a small training batch.
    timed=(
        case(32, 30, 49152, 576, gradients=False),
        case(1024, 30, 49152, 576, gradients=False),
        case(1024, 30, 49152, 576, gradients=True),
    ),
    tiny=(case(3, 4, 13, 5, gradients=False), case(3, 4, 13, 5, gradients=True)),
)
