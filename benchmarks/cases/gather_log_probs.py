"""P3 for logits at hand: LEPO's surrogate and its gradient in the logits.

Other: eager torch. Floor: one pass that reads the logits and one that reads and writes them.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from benchmarks.case import Case, Family, Implementation, assert_close, generator, ours
from benchmarks.cases.soft_targets import (
    eager_loss,
    oracle,
    soft_targets,
    some_advantages,
    surrogate,
)
from lepo_kernels import gather_log_probs, soft_log_prob

_Result = tuple[Tensor, ...]


@dataclass
class Inputs:
    logits: Tensor  # [N, V]
    ids: Tensor  # [N, K]
    weights: Tensor  # [N, K]
    advantages: Tensor  # [N]

    @cached_property
    def oracle(self) -> _Result:
        return oracle(self.logits.detach(), self.ids, self.weights, self.advantages)


def our_log_probs(x: Inputs, backend: str) -> _Result:
    scored = gather_log_probs(x.logits, x.ids, backend=backend)
    loss = surrogate(soft_log_prob(scored.logits, scored.lse, x.weights), x.advantages)
    return loss.detach(), *torch.autograd.grad(loss, (x.logits,))


def eager(x: Inputs) -> _Result:
    loss = eager_loss(x.logits, x.ids, x.weights, x.advantages)
    return loss.detach(), *torch.autograd.grad(loss, (x.logits,))


def two_passes(x: Inputs) -> _Result:
    logits = x.logits.detach()
    return logits.amax(-1), logits * 0.5


def check(x: Inputs, result: _Result) -> None:
    assert_close("loss", result[0], x.oracle[0], 1e-4)
    assert_close("dlogits", result[1], x.oracle[1], 1e-4)


def check_two_passes(x: Inputs, result: _Result) -> None:
    logits = x.logits.detach()
    assert torch.equal(result[0], logits.max(-1).values)
    assert torch.equal(result[1], logits / 2)


def case(rows: int, vocab: int, kept: int) -> Case:
    def make(device: torch.device) -> Inputs:
        rng = generator(device)
        logits = torch.randn(rows, vocab, device=device, generator=rng) * 2
        ids, weights = soft_targets(rows, kept, vocab, rng)
        advantages = some_advantages(rows, rows, rng)
        return Inputs(logits.requires_grad_(), ids, weights, advantages)

    ops = ("gather_log_probs", "gather_log_probs_backward")
    return Case(
        op="gather_log_probs (P3)",
        shape=f"[{rows}, {vocab}] float32, K {kept}",
        make=make,
        implementations=(
            *ours("ours", ops, our_log_probs, check),
            Implementation("eager", "other", eager, check),
            Implementation("floor: amax and a scaled copy", "floor", two_passes, check_two_passes),
        ),
        bytes=4 * 3 * rows * vocab,
        rounds=5,
    )


FAMILY = Family(timed=(case(1024, 49152, 30),), tiny=(case(4, 23, 3),))
