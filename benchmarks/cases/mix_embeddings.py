"""The mixture alone, forward (a rollout step) and with its gradients (training).

Others: the plain expression, and torch's embedding bag. Floors: reading the rows that the
mixture reads (as many, one after another), and with gradients also making the zeros that the
table's gradient starts from.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.case import (
    Case,
    Family,
    Implementation,
    assert_close,
    dtype_name,
    generator,
    ours,
    tolerance_of,
)
from benchmarks.compiling import compiled, lazily
from benchmarks.plan import Plan
from lepo_kernels import mix_embeddings

KEPT = 30
# By which copies of the inputs differ: far enough to meet other rows of the table.
_SHIFT = 1009
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


def shifted(x: Inputs, index: int) -> Inputs:
    """Other rows of the same table."""
    ids = (x.ids + _SHIFT * index) % len(x.embedding)
    return replace(x, ids=ids, upstream=x.upstream.clone())


def of_tensors(ids: Tensor, weights: Tensor, embedding: Tensor) -> Tensor:  # [N, D]
    return (weights[..., None] * embedding[ids]).sum(1).to(embedding.dtype)


compiled_of_tensors = lazily(of_tensors)


def called(function: Callable[..., Tensor], x: Inputs) -> Tensor:
    return function(x.ids, x.weights, x.embedding)


def bag(x: Inputs) -> Tensor:
    weights = x.weights.to(x.embedding.dtype)
    return F.embedding_bag(x.ids, x.embedding, per_sample_weights=weights, mode="sum")


def our_mix(x: Inputs, backend: str) -> Tensor:
    return mix_embeddings(x.ids, x.weights, x.embedding, backend=backend)


def with_gradients(mix: _Mix, x: Inputs) -> tuple[Tensor, ...]:
    mixed = mix(x)
    return mixed.detach(), *torch.autograd.grad(mixed, (x.weights, x.embedding), x.upstream)


def our_gradients(x: Inputs, backend: str) -> tuple[Tensor, ...]:
    return with_gradients(partial(our_mix, backend=backend), x)


def read_rows(x: Inputs) -> Tensor:
    return x.embedding.detach()[: x.ids.numel()].amax(-1)


def read_rows_and_zeros(x: Inputs) -> tuple[Tensor, Tensor]:
    return read_rows(x), torch.zeros_like(x.embedding.detach())


def check_forward(x: Inputs, result: Tensor) -> None:
    assert_close("mixture", result, x.mixture, tolerance_of(x.embedding.dtype))


def check_with_gradients(x: Inputs, result: tuple[Tensor, ...]) -> None:
    check_forward(x, result[0])
    tolerance = tolerance_of(x.embedding.dtype)
    for name, got, want in zip(("dweights", "dembedding"), result[1:], x.grads, strict=True):
        assert_close(name, got, want, tolerance)


def check_rows(x: Inputs, result: Tensor) -> None:
    assert torch.equal(result, x.embedding.detach()[: x.ids.numel()].max(-1).values)


def check_rows_and_zeros(x: Inputs, result: tuple[Tensor, Tensor]) -> None:
    check_rows(x, result[0])
    assert not result[1].any()


def forward_rows() -> list[Implementation]:
    eager = Implementation("eager", "other", partial(called, of_tensors), check_forward)
    return [
        *ours("ours", ("mix_embeddings",), our_mix, check_forward),
        eager,
        compiled(eager, partial(called, compiled_of_tensors)),
        Implementation("embedding_bag", "other", bag, check_forward),
        Implementation("floor: rows", "floor", read_rows, check_rows),
    ]


def gradient_rows() -> list[Implementation]:
    ops = ("mix_embeddings", "mix_embeddings_backward")
    check = check_with_gradients
    plain, fused = partial(called, of_tensors), partial(called, compiled_of_tensors)
    eager = Implementation("eager", "other", partial(with_gradients, plain), check)
    floor = "floor: rows and zeros"
    return [
        *ours("ours", ops, our_gradients, check),
        eager,
        compiled(eager, partial(with_gradients, fused)),
        Implementation("embedding_bag", "other", partial(with_gradients, bag), check),
        Implementation(floor, "floor", read_rows_and_zeros, check_rows_and_zeros),
    ]


def case(
    rows: int,
    vocab: int,
    width: int,
    kept: int,
    dtype: torch.dtype,
    *,
    gradients: bool,
    model: str = "tiny",
) -> Case:
    def make(device: torch.device) -> Inputs:
        rng = generator(device)
        ids = torch.randint(vocab, (rows, kept), device=device, generator=rng)
        weights = torch.randn(rows, kept, device=device, generator=rng).softmax(-1)
        embedding = torch.randn(vocab, width, device=device, generator=rng).to(dtype)
        upstream = torch.randn(rows, width, device=device, generator=rng).to(dtype)
        weights.requires_grad_(gradients)
        return Inputs(ids, weights, embedding.requires_grad_(gradients), upstream)

    # Rows of the table, each once, and the mixture; ids in eight bytes and weights in four.
    read = min(vocab, rows * kept)
    forward = dtype.itemsize * (read + rows) * width + 12 * rows * kept
    # The table's gradient is written whole.
    backward = forward + dtype.itemsize * vocab * width + 4 * rows * kept
    direction = "forward + backward" if gradients else "forward"
    return Case(
        op="mix_embeddings",
        shape=f"{model}: [{rows}, {kept}] of [{vocab}, {width}] {dtype_name(dtype)}, {direction}",
        make=make,
        implementations=tuple(gradient_rows() if gradients else forward_rows()),
        bytes=forward + backward if gradients else forward,
        dtype=dtype,
        another=shifted,
    )


def timed(plan: Plan) -> Iterator[Case]:
    for model in plan.heavy_models():
        for dtype in plan.step_dtypes():
            sizes = (model.vocab, model.width, KEPT, dtype)
            # A copy of the rows in float32, as the plain expression makes it, and the oracle's.
            training = plan.training_rows(24 * KEPT * model.width)
            yield case(plan.rollout_rows(), *sizes, gradients=False, model=model.name)
            yield case(training, *sizes, gradients=True, model=model.name)


FAMILY = Family(
    timed,
    tiny=tuple(
        case(3, 13, 5, 4, dtype, gradients=gradients)
        for dtype in (torch.float32, torch.bfloat16)
        for gradients in (False, True)
    ),
)
