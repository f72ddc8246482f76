"""`gather_log_probs`, from precomputed logits: LEPO's surrogate and its gradient in the logits.

Others: eager torch, by autograd and with the gradient by formula, and TRL, whose fused kernel takes
hard targets, one id per row; beside it stands ours with hard targets. Floor: one pass that reads
the logits and one that reads and writes them.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
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
    compiled_loss,
    eager_loss,
    oracle,
    soft_targets,
    some_advantages,
    surrogate,
)
from benchmarks.compiling import compiled
from benchmarks.peers import HARD_LOG_PROBS, LOG_PROBS
from benchmarks.peers.peer import Peer
from benchmarks.plan import Plan
from lepo_kernels import gather_log_probs, hard_log_prob, soft_log_prob

KEPT = 30
_Result = tuple[Tensor, ...]


@dataclass
class Inputs:
    logits: Tensor  # [N, V]
    ids: Tensor  # [N, K]
    weights: Tensor  # [N, K]
    advantages: Tensor  # [N]

    @cached_property
    def soft(self) -> Tensor:  # []
        return sum(loss for _, loss, _ in self.blocks(self.ids, self.weights))

    @cached_property
    def hard(self) -> Tensor:  # []
        return sum(loss for _, loss, _ in self.blocks(*self.first))

    @property
    def first(self) -> tuple[Tensor, Tensor]:  # [N, 1], [N, 1]
        """Hard targets: the first ids, with all the weight."""
        return self.ids[:, :1], torch.ones_like(self.weights[:, :1])

    def blocks(self, ids: Tensor, weights: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """The oracle of some rows at a time: rows, their part of the loss, and their gradient."""
        share = self.advantages / len(self.logits)
        for start in range(0, len(self.logits), BLOCK):
            rows = slice(start, start + BLOCK)
            logits = self.logits.detach()[rows].double()
            yield rows, *oracle(logits, ids[rows], weights[rows], share[rows])


def with_gradient(loss: Tensor, x: Inputs) -> _Result:
    return loss.detach(), *torch.autograd.grad(loss, (x.logits,))


def our_log_probs(x: Inputs, backend: str) -> _Result:
    scored = gather_log_probs(x.logits, x.ids, backend=backend)
    log_prob = soft_log_prob(scored.logits, scored.lse, x.weights)
    return with_gradient(surrogate(log_prob, x.advantages), x)


def our_hard_log_probs(x: Inputs, backend: str) -> _Result:
    scored = gather_log_probs(x.logits, x.first[0], backend=backend)
    log_prob = hard_log_prob(scored.logits[:, 0], scored.lse)
    return with_gradient(surrogate(log_prob, x.advantages), x)


def of_logits(loss: Callable[..., Tensor], x: Inputs) -> _Result:
    return with_gradient(loss(x.logits, x.ids, x.weights, x.advantages), x)


def by_formula(x: Inputs) -> _Result:
    share = x.advantages / len(x.logits)
    return losses.of_logits(x.logits.detach(), x.ids, x.weights, share)


def peer_run(peer: Peer, x: Inputs) -> _Result:
    log_prob = (x.weights * peer.function(x.logits, x.ids)).sum(-1)
    return with_gradient(surrogate(log_prob, x.advantages), x)


def hard_peer_run(peer: Peer, x: Inputs) -> _Result:
    return with_gradient(surrogate(peer.function(x.logits, x.ids[:, 0]), x.advantages), x)


def two_passes(x: Inputs) -> _Result:
    logits = x.logits.detach()
    return logits.amax(-1), logits * 0.5


def check_soft(x: Inputs, result: _Result) -> None:
    check(x, result, x.soft, x.ids, x.weights)


def check_hard(x: Inputs, result: _Result) -> None:
    check(x, result, x.hard, *x.first)


def check(x: Inputs, result: _Result, loss: Tensor, ids: Tensor, weights: Tensor) -> None:
    # Log-probabilities in the logits' dtype, as peers return them, round the loss, too.
    tolerance = tolerance_of(x.logits.dtype)
    assert_close("loss", result[0], loss, tolerance)
    for rows, _, gradient in x.blocks(ids, weights):
        assert_close("dlogits", result[1][rows], gradient, tolerance)


def check_two_passes(x: Inputs, result: _Result) -> None:
    logits = x.logits.detach()
    assert torch.equal(result[0], logits.max(-1).values)
    assert torch.equal(result[1], logits / 2)


def case(rows: int, vocab: int, kept: int, dtype: torch.dtype, model: str = "tiny") -> Case:
    def make(device: torch.device) -> Inputs:
        rng = generator(device)
        logits = torch.randn(rows, vocab, device=device, generator=rng) * 2
        ids, weights = soft_targets(rows, kept, vocab, rng)
        advantages = some_advantages(rows, rows, rng)
        return Inputs(logits.to(dtype).requires_grad_(), ids, weights, advantages)

    ops = ("gather_log_probs", "gather_log_probs_backward")
    eager = Implementation("eager", "other", partial(of_logits, eager_loss), check_soft)
    return Case(
        op="gather_log_probs",
        shape=f"{model}: [{rows}, {vocab}] {dtype_name(dtype)}, K {kept}",
        make=make,
        implementations=(
            *ours("ours", ops, our_log_probs, check_soft),
            *ours("ours, hard targets", ops, our_hard_log_probs, check_hard, HARD),
            eager,
            Implementation("eager, gradient by formula", "other", by_formula, check_soft),
            compiled(eager, partial(of_logits, compiled_loss)),
            *(peer.row(peer_run, check_soft, dtype) for peer in LOG_PROBS),
            *(peer.row(hard_peer_run, check_hard, dtype) for peer in HARD_LOG_PROBS),
            Implementation("floor: amax and a scaled copy", "floor", two_passes, check_two_passes),
        ),
        bytes=dtype.itemsize * 3 * rows * vocab,
        dtype=dtype,
    )


def timed(plan: Plan) -> Iterator[Case]:
    for model in plan.heavy_models():
        for dtype in plan.step_dtypes():
            # Logits, two of their size in float32, the gradient, and the oracle of a block.
            rows = plan.training_rows((2 * dtype.itemsize + 8) * model.vocab)
            yield case(rows, model.vocab, KEPT, dtype, model.name)


FAMILY = Family(timed, tiny=(case(4, 23, 3, torch.float32), case(4, 23, 3, torch.bfloat16)))
