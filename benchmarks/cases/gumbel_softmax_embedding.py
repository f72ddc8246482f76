"""The dense Gumbel-softmax mixture, forward and backward.

Others: torch's gumbel_softmax and a product, by autograd and with the gradient by formula. Floor:
the three products alone.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.baselines import mixture
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
from lepo_kernels import gumbel_noise, gumbel_softmax_embedding

TAU = 0.5
_Result = tuple[Tensor, ...]


@dataclass
class Inputs:
    logits: Tensor  # [N, V]
    embedding: Tensor  # [V, D]
    upstream: Tensor  # [N, D]

    @property
    def leaves(self) -> tuple[Tensor, Tensor]:
        return self.logits, self.embedding

    @cached_property
    def oracle(self) -> _Result:
        rows, vocab = self.logits.shape
        ids, keys = (torch.arange(n, device=self.logits.device) for n in (vocab, rows))
        noise = gumbel_noise(0, keys, 0, ids, dtype=torch.float64, backend="reference")
        return self.with_noise(noise)

    def with_noise(self, noise: Tensor) -> _Result:
        """Mixture and gradients by formula, in float64."""
        table, upstream = self.embedding.detach().double(), self.upstream.double()
        z = ((self.logits.detach().double() + noise) / TAU).softmax(-1)
        mixed = z @ table
        pull = upstream @ table.T - (mixed * upstream).sum(-1, keepdim=True)
        return mixed, z * pull / TAU, z.T @ upstream


def ours_run(x: Inputs, backend: str) -> _Result:
    mixed = gumbel_softmax_embedding(*x.leaves, TAU, backend=backend).embedding
    return mixed.detach(), *torch.autograd.grad(mixed, x.leaves, x.upstream)


def eager_mixture(logits: Tensor, embedding: Tensor) -> Tensor:  # [N, D]
    return F.gumbel_softmax(logits.float(), tau=TAU).to(embedding.dtype) @ embedding


compiled_mixture = lazily(eager_mixture)


def seeded(mixture: Callable[..., Tensor], x: Inputs) -> _Result:
    torch.manual_seed(0)
    mixed = mixture(*x.leaves)
    return mixed.detach(), *torch.autograd.grad(mixed, x.leaves, x.upstream)


def by_formula(x: Inputs) -> _Result:
    torch.manual_seed(0)
    logits, table = (y.detach() for y in x.leaves)
    mixed, weights, gradient = mixture.of_logits(logits, table, x.upstream, TAU)
    return mixed, gradient, weights.T @ x.upstream


def three_products(x: Inputs) -> _Result:
    logits, table = (y.detach() for y in x.leaves)
    return logits @ table, x.upstream @ table.T, logits.T @ x.upstream


def check(x: Inputs, result: _Result, want: _Result | None = None) -> None:
    names = ("mixture", "dlogits", "dembedding")
    tolerance = tolerance_of(x.embedding.dtype)
    for name, got, expected in zip(names, result, want or x.oracle, strict=True):
        assert_close(name, got, expected, tolerance)


def check_eager(x: Inputs, result: _Result) -> None:
    """Against the same formulas with its own noise, drawn again as torch's gumbel_softmax does."""
    torch.manual_seed(0)
    noise = -torch.empty_like(x.logits.detach(), dtype=torch.float32).exponential_().log()
    check(x, result, x.with_noise(noise.double()))


def check_products(x: Inputs, result: _Result) -> None:
    logits, table = (y.detach().double() for y in x.leaves)
    upstream = x.upstream.double()
    check(x, result, (logits @ table, upstream @ table.T, logits.T @ upstream))


def case(rows: int, vocab: int, width: int, dtype: torch.dtype, model: str = "tiny") -> Case:
    def make(device: torch.device) -> Inputs:
        rng = generator(device)
        logits = torch.randn(rows, vocab, device=device, generator=rng) * 2
        embedding = torch.randn(vocab, width, device=device, generator=rng)
        upstream = torch.randn(rows, width, device=device, generator=rng)
        leaves = (y.to(dtype).requires_grad_() for y in (logits, embedding))
        return Inputs(*leaves, upstream.to(dtype))

    ops = ("gumbel_softmax_embedding", "gumbel_softmax_embedding_backward")
    eager = Implementation("eager", "other", partial(seeded, eager_mixture), check_eager)
    return Case(
        op="gumbel_softmax_embedding",
        shape=f"{model}: [{rows}, {vocab}] x [{vocab}, {width}] {dtype_name(dtype)}",
        make=make,
        implementations=(
            *ours("ours", ops, ours_run, check),
            eager,
            Implementation("eager, gradient by formula", "other", by_formula, check_eager),
            compiled(eager, partial(seeded, compiled_mixture)),
            Implementation("floor: 3 GEMMs", "floor", three_products, check_products),
        ),
        # The table in each pass and its gradient; the logits in each pass and their gradient.
        bytes=dtype.itemsize * 3 * vocab * (rows + width),
        flops=6 * rows * vocab * width,
        dtype=dtype,
    )


def timed(plan: Plan) -> Iterator[Case]:
    for model in plan.heavy_models():
        for dtype in plan.step_dtypes():
            yield case(plan.rollout_rows(), model.vocab, model.width, dtype, model.name)


FAMILY = Family(timed, tiny=(case(3, 50, 5, torch.float32), case(3, 50, 5, torch.bfloat16)))
