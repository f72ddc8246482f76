"""P3 and P6: LEPO's loss from hidden states and the head, forward and backward.

Others: eager torch, and ``torch.nn.functional.linear_cross_entropy``, as it is by default and
chunked. Its targets are hard (one id per row), so that it does less on the selected entries and the
same on the rest.
Floors: the three products that a loss with its gradients needs at least (6NVD flops), and the four
that a backward pass which recomputes the logits makes (8NVD), each with fresh results.
"""

from dataclasses import dataclass
from functools import cached_property
from types import ModuleType

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.case import (
    Case,
    Family,
    Implementation,
    assert_close,
    generator,
    ours,
    tolerance_of,
)
from benchmarks.cases.soft_targets import (
    eager_loss,
    oracle,
    soft_targets,
    some_advantages,
    surrogate,
)
from lepo_kernels import lepo_loss, linear_log_probs, soft_log_prob

_Result = tuple[Tensor, ...]


def missing(module: ModuleType, name: str) -> str | None:
    if hasattr(module, name):
        return None
    return f"torch {torch.__version__} has no {module.__name__}.{name}"


@dataclass
class Inputs:
    hidden: Tensor  # [N, D]
    lm_head: Tensor  # [V, D]
    ids: Tensor  # [N, K]
    weights: Tensor  # [N, K]
    advantages: Tensor  # [N]

    @property
    def leaves(self) -> tuple[Tensor, Tensor]:
        return self.hidden, self.lm_head

    @cached_property
    def soft(self) -> _Result:
        return self._oracle(self.ids, self.weights, self.advantages)

    @cached_property
    def hard(self) -> _Result:
        """Cross-entropy of the first id: the surrogate with weight 1 and advantage 1."""
        ones = torch.ones_like(self.advantages)
        return self._oracle(self.ids[:, :1], ones[:, None], ones)

    def _oracle(self, ids: Tensor, weights: Tensor, advantages: Tensor) -> _Result:
        hidden, head = (x.detach().double() for x in self.leaves)
        loss, da = oracle(hidden @ head.T, ids, weights, advantages)
        return loss, da @ head, da.T @ hidden


def our_log_probs(x: Inputs, backend: str) -> _Result:
    scored = linear_log_probs(x.hidden, x.lm_head, x.ids, backend=backend)
    loss = surrogate(soft_log_prob(scored.logits, scored.lse, x.weights), x.advantages)
    return loss.detach(), *torch.autograd.grad(loss, x.leaves)


def our_loss(x: Inputs, backend: str) -> _Result:
    rows = len(x.hidden)
    latent = torch.ones(rows, dtype=torch.bool, device=x.ids.device)
    row_weights = torch.full((rows,), 1 / rows, device=x.ids.device)
    loss = lepo_loss(
        *x.leaves, x.ids, x.weights, latent, x.advantages, row_weights, backend=backend
    ).loss
    return loss.detach(), *torch.autograd.grad(loss, x.leaves)


def eager(x: Inputs) -> _Result:
    loss = eager_loss(x.hidden @ x.lm_head.T, x.ids, x.weights, x.advantages)
    return loss.detach(), *torch.autograd.grad(loss, x.leaves)


def torch_hard(x: Inputs) -> _Result:
    loss = F.linear_cross_entropy(*x.leaves, x.ids[:, 0])
    return loss.detach(), *torch.autograd.grad(loss, x.leaves)


def torch_hard_chunked(x: Inputs) -> _Result:
    options = torch.nn.LinearCrossEntropyOptions()
    loss = F.linear_cross_entropy(*x.leaves, x.ids[:, 0], options=options)
    return loss.detach(), *torch.autograd.grad(loss, x.leaves)


def three_products(x: Inputs) -> _Result:
    hidden, head = (y.detach() for y in x.leaves)
    logits = hidden @ head.T
    return logits, logits @ head, logits.T @ hidden


def four_products(x: Inputs) -> _Result:
    hidden, head = (y.detach() for y in x.leaves)
    # The forward pass's, which a recomputing implementation does not keep.
    hidden @ head.T
    return three_products(x)


def check(result: _Result, want: _Result, room: float = 1.0) -> None:
    tolerance = room * tolerance_of(result[1].dtype)
    for name, x, y in zip(("loss", "dhidden", "dlm_head"), result, want, strict=True):
        assert_close(name, x, y, tolerance)


def check_soft(x: Inputs, result: _Result) -> None:
    check(result, x.soft)


def check_hard(x: Inputs, result: _Result) -> None:
    # Torch's own sums of the loss are in the input's dtype.
    check(result, x.hard, room=4.0)


def check_products(x: Inputs, result: _Result) -> None:
    """A few rows of each product, in float64."""
    hidden, head = (y.detach().double() for y in x.leaves)
    logits, dhidden, dhead = result
    tolerance = tolerance_of(logits.dtype)
    assert_close("logits", logits[:4], hidden[:4] @ head.T, tolerance)
    assert_close("dhidden", dhidden[:4], logits[:4].double() @ head, tolerance)
    assert_close("dlm_head", dhead[:4], logits[:, :4].double().T @ hidden, tolerance)


def case(
    rows: int, width: int, vocab: int, kept: int, dtype: torch.dtype, *, active: int | None = None
) -> Case:
    def make(device: torch.device) -> Inputs:
        rng = generator(device)
        hidden = torch.randn(rows, width, device=device, generator=rng) * 2 * width**-0.5
        head = torch.randn(vocab, width, device=device, generator=rng)
        ids, weights = soft_targets(rows, kept, vocab, rng)
        advantages = some_advantages(rows, rows if active is None else active, rng)
        hidden, head = hidden.to(dtype).requires_grad_(), head.to(dtype).requires_grad_()
        return Inputs(hidden, head, ids, weights, advantages)

    ops = ("linear_log_probs", "linear_log_probs_backward")
    everywhere = (
        *ours("ours, P3 + P4", ops, our_log_probs, check_soft),
        *ours("ours, lepo_loss", ops, our_loss, check_soft),
        Implementation("eager", "other", eager, check_soft),
    )
    # What they compute does not depend on the advantages.
    with_all_rows = (
        Implementation(
            "linear_cross_entropy (hard)",
            "other",
            torch_hard,
            check_hard,
            missing(F, "linear_cross_entropy"),
        ),
        Implementation(
            "linear_cross_entropy (hard, chunked)",
            "other",
            torch_hard_chunked,
            check_hard,
            missing(torch.nn, "LinearCrossEntropyOptions"),
        ),
        Implementation("floor: 3 GEMMs", "floor", three_products, check_products),
        Implementation("floor: 4 GEMMs", "floor", four_products, check_products),
    )
    name = str(dtype).removeprefix("torch.")
    share = "" if active is None else f", {active} rows with advantage"
    working = rows if active is None else active
    size = torch.empty((), dtype=dtype).element_size()
    return Case(
        op="linear_log_probs (P3, P6)",
        shape=f"[{rows}, {width}] x [{vocab}, {width}] {name}, K {kept}{share}",
        make=make,
        implementations=everywhere + (with_all_rows if active is None else ()),
        # Both inputs in each pass, both gradients once.
        bytes=3 * size * (rows + vocab) * width,
        # A row without advantage needs the forward product alone.
        flops=2 * (rows + 2 * working) * vocab * width,
        dtype=dtype,
        rounds=3,
    )


FAMILY = Family(
    # A batch of 1024 scored steps with the head of SmolLM2-135M.
    timed=(
        case(1024, 576, 49152, 30, torch.float32),
        case(1024, 576, 49152, 30, torch.bfloat16),
        case(1024, 576, 49152, 30, torch.float32, active=512),
    ),
    tiny=(
        case(8, 5, 23, 3, torch.float32),
        case(8, 5, 23, 3, torch.bfloat16),
        case(8, 5, 23, 3, torch.float32, active=4),
    ),
)
