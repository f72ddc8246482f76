"""The Gumbel-softmax mixture of a tied head's own logits, from hidden states, with gradients.

Others: torch's gumbel_softmax between two products, by autograd and with the gradient by formula.
Beside ours stands our mixture of logits that are kept.
Floors: the six products of an implementation that keeps the logits, and the seven of one that forms
them again, each with fresh results.
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
from lepo_kernels import (
    gumbel_noise,
    gumbel_softmax_embedding,
    linear_gumbel_softmax_embedding,
)

TAU = 0.5
KEPT = "the logits are stored"
_Result = tuple[Tensor, ...]


@dataclass
class Inputs:
    hidden: Tensor  # [N, D]
    lm_head: Tensor  # [V, D], the table, too
    upstream: Tensor  # [N, D]

    @property
    def leaves(self) -> tuple[Tensor, Tensor]:
        return self.hidden, self.lm_head

    @cached_property
    def oracle(self) -> _Result:
        ids, keys = (torch.arange(len(x), device=x.device) for x in (self.lm_head, self.hidden))
        noise = gumbel_noise(0, keys, 0, ids, dtype=torch.float64, backend="reference")
        return self.with_noise(noise)

    def with_noise(self, noise: Tensor) -> _Result:
        """Mixture and gradients by formula, in float64."""
        hidden, head = (x.detach().double() for x in self.leaves)
        upstream = self.upstream.double()
        z = ((hidden @ head.T + noise) / TAU).softmax(-1)
        mixed = z @ head
        da = z * (upstream @ head.T - (mixed * upstream).sum(-1, keepdim=True)) / TAU
        return mixed, da @ head, da.T @ hidden + z.T @ upstream


def with_gradients(x: Inputs, mixed: Tensor) -> _Result:
    return mixed.detach(), *torch.autograd.grad(mixed, x.leaves, x.upstream)


def ours_run(x: Inputs, backend: str) -> _Result:
    fields = linear_gumbel_softmax_embedding(x.hidden, x.lm_head, None, TAU, backend=backend)
    return with_gradients(x, fields.embedding)


def of_kept_logits(x: Inputs) -> _Result:
    logits = x.hidden @ x.lm_head.T
    return with_gradients(x, gumbel_softmax_embedding(logits, x.lm_head, TAU).embedding)


def eager_mixture(hidden: Tensor, lm_head: Tensor) -> Tensor:  # [N, D]
    weights = F.gumbel_softmax((hidden @ lm_head.T).float(), tau=TAU)
    return weights.to(lm_head.dtype) @ lm_head


compiled_mixture = lazily(eager_mixture)


def seeded(mixture: Callable[..., Tensor], x: Inputs) -> _Result:
    torch.manual_seed(0)
    return with_gradients(x, mixture(*x.leaves))


def by_formula(x: Inputs) -> _Result:
    torch.manual_seed(0)
    hidden, head = (y.detach() for y in x.leaves)
    return mixture.tied(hidden, head, x.upstream, TAU)


def six_products(x: Inputs) -> _Result:
    """With the logits in the place of weights, pulls and gradients."""
    hidden, head = (y.detach() for y in x.leaves)
    logits = hidden @ head.T
    # What pulls at the logits.
    x.upstream @ head.T
    return logits @ head, logits @ head, (logits.T @ hidden).addmm_(logits.T, x.upstream)


def seven_products(x: Inputs) -> _Result:
    hidden, head = (y.detach() for y in x.leaves)
    # The forward pass's, which a recomputing implementation does not keep.
    hidden @ head.T
    return six_products(x)


def check(x: Inputs, result: _Result, want: _Result | None = None) -> None:
    names = ("mixture", "dhidden", "dlm_head")
    for name, got, expected in zip(names, result, want or x.oracle, strict=True):
        assert_close(name, got, expected, tolerance_of(x.lm_head.dtype))


def check_eager(x: Inputs, result: _Result) -> None:
    """Against the same formulas with its own noise, drawn again as torch's gumbel_softmax does."""
    torch.manual_seed(0)
    like = x.upstream.new_empty(len(x.hidden), len(x.lm_head), dtype=torch.float32)
    check(x, result, x.with_noise(-like.exponential_().log().double()))


def check_products(x: Inputs, result: _Result) -> None:
    """A few rows of each, in float64."""
    hidden, head = (y.detach().double() for y in x.leaves)
    logits, upstream = hidden @ head[:4].T, x.upstream.double()
    some = hidden[:4] @ head.T @ head
    want = (some, some, logits.T @ (hidden + upstream))
    check(x, tuple(y[:4] for y in result), want)


def case(rows: int, vocab: int, width: int, dtype: torch.dtype, model: str = "tiny") -> Case:
    def make(device: torch.device) -> Inputs:
        rng = generator(device)
        hidden = torch.randn(rows, width, device=device, generator=rng) * 2 * width**-0.5
        head = torch.randn(vocab, width, device=device, generator=rng)
        upstream = torch.randn(rows, width, device=device, generator=rng)
        leaves = (y.to(dtype).requires_grad_() for y in (hidden, head))
        return Inputs(*leaves, upstream.to(dtype))

    ops = ("linear_gumbel_softmax_embedding", "linear_gumbel_softmax_embedding_backward")
    eager = Implementation("eager", "other", partial(seeded, eager_mixture), check_eager)
    return Case(
        op="linear_gumbel_softmax_embedding",
        shape=f"{model}: [{rows}, {width}] x [{vocab}, {width}] tied, {dtype_name(dtype)}",
        make=make,
        implementations=(
            *ours("ours", ops, ours_run, check),
            Implementation("ours, kept logits", "ours", of_kept_logits, check, lacks=KEPT),
            eager,
            Implementation("eager, gradient by formula", "other", by_formula, check_eager),
            compiled(eager, partial(seeded, compiled_mixture)),
            Implementation("floor: 6 GEMMs", "floor", six_products, check_products),
            Implementation("floor: 7 GEMMs", "floor", seven_products, check_products),
        ),
        # The head in each pass and its gradient; hidden states and mixtures are small.
        bytes=dtype.itemsize * 3 * (rows + vocab) * width,
        flops=12 * rows * vocab * width,
        dtype=dtype,
    )


def timed(plan: Plan) -> Iterator[Case]:
    for model in plan.heavy_models():
        if model.tied and model.softcap is None:
            # Logits, their weights and pulls in float32, and the oracle's in float64.
            rows = plan.training_rows(56 * model.vocab)
            for dtype in plan.step_dtypes():
                yield case(rows, model.vocab, model.width, dtype, model.name)


FAMILY = Family(timed, tiny=(case(3, 50, 5, torch.float32), case(3, 50, 5, torch.bfloat16)))
