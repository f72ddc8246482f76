"""LEPO's loss from hidden states and the head, forward and backward: two ops, or `lepo_loss`.

Others: eager torch, by autograd and with the gradient by formula, and the peers' losses, which take
hard targets, one id per row: they do less on the selected entries, and the same on the rest. Beside
them stands ours with hard targets.
Floors: the three products that a loss with its gradients needs at least (6NVD flops), and the four
that a backward pass which recomputes the logits makes (8NVD), each with fresh results.

Where only some rows have an advantage, the loss and its gradients depend on these alone: others are
given no more, and so are the floors. Ours take all rows, whose log-probabilities are metrics, too.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial

import torch
from torch import Tensor

from benchmarks.baselines import losses
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
from benchmarks.cases.soft_targets import (
    BLOCK,
    HARD,
    eager_loss,
    oracle,
    soft_targets,
    some_advantages,
    surrogate,
)
from benchmarks.compiling import compiled, lazily
from benchmarks.peers import LOSSES
from benchmarks.peers.peer import Peer
from benchmarks.plan import Plan
from lepo_kernels import hard_log_prob, lepo_loss, linear_log_probs, soft_log_prob

KEPT = 30
_Result = tuple[Tensor, ...]


@dataclass
class Inputs:
    hidden: Tensor  # [N, D]
    lm_head: Tensor  # [V, D]
    ids: Tensor  # [N, K]
    weights: Tensor  # [N, K]
    advantages: Tensor  # [N]
    softcap: float | None

    @property
    def leaves(self) -> tuple[Tensor, Tensor]:
        return self.hidden, self.lm_head

    @cached_property
    def soft(self) -> _Result:
        return self._oracle(self.ids, self.weights, self.advantages)

    @cached_property
    def hard(self) -> _Result:
        """Mean cross-entropy of the first ids of the rows with an advantage."""
        used = (self.advantages != 0).to(self.weights.dtype)
        share = used * (len(used) / used.sum())
        return self._oracle(self.ids[:, :1], torch.ones_like(self.weights[:, :1]), share)

    def active(self) -> "Inputs":
        """The rows with an advantage; gradients go to all."""
        rows = self.advantages.nonzero().flatten()
        ids, weights, advantages = self.ids[rows], self.weights[rows], self.advantages[rows]
        return replace(
            self, hidden=self.hidden[rows], ids=ids, weights=weights, advantages=advantages
        )

    def _oracle(self, ids: Tensor, weights: Tensor, advantages: Tensor) -> _Result:
        """Loss and gradients in float64, a block of rows at a time."""
        hidden, head = (x.detach().double() for x in self.leaves)
        dhidden, dhead = torch.empty_like(hidden), torch.zeros_like(head)
        loss = torch.zeros((), dtype=torch.float64, device=hidden.device)
        share = advantages / len(hidden)
        for start in range(0, len(hidden), BLOCK):
            rows = slice(start, start + BLOCK)
            logits = capped(hidden[rows] @ head.T, self.softcap)
            part, da = oracle(logits, ids[rows], weights[rows], share[rows])
            if self.softcap is not None:
                da *= 1 - (logits / self.softcap) ** 2
            loss += part
            torch.mm(da, head, out=dhidden[rows])
            dhead.addmm_(da.T, hidden[rows])
        return loss, dhidden, dhead


def capped(logits: Tensor, softcap: float | None) -> Tensor:
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def with_gradients(loss: Tensor, x: Inputs) -> _Result:
    return loss.detach(), *torch.autograd.grad(loss, x.leaves)


def our_log_probs(x: Inputs, backend: str) -> _Result:
    scored = linear_log_probs(*x.leaves, x.ids, softcap=x.softcap, backend=backend)
    log_prob = soft_log_prob(scored.logits, scored.lse, x.weights)
    return with_gradients(surrogate(log_prob, x.advantages), x)


def our_hard_loss(x: Inputs, backend: str) -> _Result:
    scored = linear_log_probs(*x.leaves, x.ids[:, :1], softcap=x.softcap, backend=backend)
    return with_gradients(-hard_log_prob(scored.logits[:, 0], scored.lse).mean(), x)


def our_active_hard_loss(x: Inputs, backend: str) -> _Result:
    some = x.active()
    scored = linear_log_probs(*some.leaves, some.ids[:, :1], softcap=x.softcap, backend=backend)
    return with_gradients(-hard_log_prob(scored.logits[:, 0], scored.lse).mean(), x)


def our_loss(x: Inputs, backend: str) -> _Result:
    rows = len(x.hidden)
    latent = torch.ones(rows, dtype=torch.bool, device=x.ids.device)
    row_weights = torch.full((rows,), 1 / rows, device=x.ids.device)
    found = lepo_loss(
        *x.leaves,
        x.ids,
        x.weights,
        latent,
        x.advantages,
        row_weights,
        softcap=x.softcap,
        backend=backend,
    )
    return with_gradients(found.loss, x)


def eager_of_hidden(
    hidden: Tensor,
    lm_head: Tensor,
    ids: Tensor,
    weights: Tensor,
    advantages: Tensor,
    softcap: float | None,
) -> Tensor:  # []
    return eager_loss(capped(hidden @ lm_head.T, softcap), ids, weights, advantages)


compiled_of_hidden = lazily(eager_of_hidden)


def of_hidden(loss: Callable[..., Tensor], x: Inputs) -> _Result:
    return with_gradients(loss(*x.leaves, x.ids, x.weights, x.advantages, x.softcap), x)


def of_active(loss: Callable[..., Tensor], x: Inputs) -> _Result:
    """What a user writes who leaves idle rows out."""
    some = x.active()
    part = loss(*some.leaves, some.ids, some.weights, some.advantages, x.softcap)
    return with_gradients(part * (len(some.hidden) / len(x.hidden)), x)


def by_formula(x: Inputs) -> _Result:
    """What a careful user writes: rows without advantage left out, the gradient by hand."""
    some = x.active() if bool((x.advantages == 0).any()) else x
    share = some.advantages / len(x.hidden)
    tensors = (some.hidden.detach(), some.lm_head.detach(), some.ids, some.weights, share)
    loss, dhidden, dhead = losses.of_hidden(*tensors, x.softcap)
    if some is not x:
        dhidden = torch.zeros_like(x.hidden).index_copy_(0, x.advantages.nonzero()[:, 0], dhidden)
    return loss, dhidden, dhead


def peer_run(peer: Peer, x: Inputs) -> _Result:
    return with_gradients(peer.function(*x.leaves, x.ids[:, 0], x.softcap), x)


def active_peer_run(peer: Peer, x: Inputs) -> _Result:
    some = x.active()
    return with_gradients(peer.function(*some.leaves, some.ids[:, 0], x.softcap), x)


def three_products(x: Inputs) -> _Result:
    hidden, head = (y.detach() for y in x.leaves)
    logits = hidden @ head.T
    return logits, logits @ head, logits.T @ hidden


def three_active_products(x: Inputs) -> _Result:
    return three_products(x.active())


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


def check_active_products(x: Inputs, result: _Result) -> None:
    check_products(x.active(), result)


def check_products(x: Inputs, result: _Result) -> None:
    """A few rows of each product, in float64."""
    hidden, head = (y.detach().double() for y in x.leaves)
    logits, dhidden, dhead = result
    tolerance = tolerance_of(logits.dtype)
    assert_close("logits", logits[:4], hidden[:4] @ head.T, tolerance)
    assert_close("dhidden", dhidden[:4], logits[:4].double() @ head, tolerance)
    assert_close("dlm_head", dhead[:4], logits[:, :4].double().T @ hidden, tolerance)


def case(
    rows: int,
    width: int,
    vocab: int,
    kept: int,
    dtype: torch.dtype,
    *,
    active: int | None = None,
    softcap: float | None = None,
    model: str = "tiny",
) -> Case:
    def make(device: torch.device) -> Inputs:
        rng = generator(device)
        hidden = torch.randn(rows, width, device=device, generator=rng) * 2 * width**-0.5
        head = torch.randn(vocab, width, device=device, generator=rng)
        ids, weights = soft_targets(rows, kept, vocab, rng)
        advantages = some_advantages(rows, rows if active is None else active, rng)
        hidden, head = hidden.to(dtype).requires_grad_(), head.to(dtype).requires_grad_()
        return Inputs(hidden, head, ids, weights, advantages, softcap)

    ops = ("linear_log_probs", "linear_log_probs_backward")
    eager = Implementation("eager", "other", partial(of_hidden, eager_of_hidden), check_soft)
    everywhere = (
        *ours("ours, two ops", ops, our_log_probs, check_soft),
        *ours("ours, lepo_loss", ("lepo_loss", "lepo_loss_backward"), our_loss, check_soft),
        eager,
        Implementation("eager, gradient by formula", "other", by_formula, check_soft),
        compiled(eager, partial(of_hidden, compiled_of_hidden)),
    )
    of_all = (
        *ours("ours, hard targets", ops, our_hard_loss, check_hard, HARD),
        *(peer.row(peer_run, check_hard, dtype, softcap) for peer in LOSSES),
        Implementation("floor: 3 GEMMs", "floor", three_products, check_products),
        Implementation("floor: 4 GEMMs", "floor", four_products, check_products),
    )
    some_rows, products = partial(of_active, eager_of_hidden), three_active_products
    of_some = (
        Implementation("eager, active rows", "other", some_rows, check_soft),
        *ours("ours, hard targets", ops, our_active_hard_loss, check_hard, HARD),
        *(peer.row(active_peer_run, check_hard, dtype, softcap) for peer in LOSSES),
        Implementation("floor: 3 GEMMs", "floor", products, check_active_products),
    )
    cap = "" if softcap is None else f", softcap {softcap:g}"
    share = "" if active is None else f", {active} rows with advantage"
    working = rows if active is None else active
    return Case(
        op="linear_log_probs",
        shape=f"{model}: [{rows}, {width}] x [{vocab}, {width}] {dtype_name(dtype)}, "
        f"K {kept}{cap}{share}",
        make=make,
        implementations=everywhere + (of_all if active is None else of_some),
        # Both inputs in each pass, both gradients once.
        bytes=3 * dtype.itemsize * (working + vocab) * width,
        flops=6 * working * vocab * width,
        dtype=dtype,
    )


def timed(plan: Plan) -> Iterator[Case]:
    for model in plan.heavy_models():
        # What eager torch keeps for a row: logits, two of their size in float32, and gradients.
        rows = plan.training_rows(16 * model.vocab)
        for dtype in plan.product_dtypes():
            wanted = {"softcap": model.softcap, "model": model.name}
            sizes = (rows, model.width, model.vocab, KEPT, dtype)
            yield case(*sizes, **wanted)
            if dtype == plan.product_dtypes()[0]:
                yield case(*sizes, active=rows // 2, **wanted)


FAMILY = Family(
    timed,
    tiny=(
        case(8, 5, 23, 3, torch.float32),
        case(8, 5, 23, 3, torch.bfloat16),
        case(8, 5, 23, 3, torch.float32, active=4),
        case(8, 5, 23, 3, torch.bfloat16, active=4),
        case(8, 5, 23, 3, torch.float32, softcap=2.0),
    ),
)
