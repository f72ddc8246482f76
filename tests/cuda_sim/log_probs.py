"""Runs the kernels of selected log-probabilities, and says in float64 what they should give."""

import dataclasses
import itertools

import torch
from torch import Tensor

from tests.cuda_sim.simulator import SCHEDULES, Module

MODULE = Module("linear_log_probs")
KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
UNIT = 512
UNTOUCHED = -7.0


@dataclasses.dataclass
class Problem:
    """Logits of a part of the vocabulary, and where they lie: from ``offset`` on, rows ``stride``
    elements apart."""

    logits: Tensor  # [N, C]
    ids: Tensor  # [N, K]
    scale: Tensor  # [N] or [1]
    bias: Tensor | None = None  # [C]
    softcap: float = 0.0
    first: int = 0
    stride: int | None = None
    offset: int = 0

    def part(self, first: int, end: int) -> "Problem":
        bias = None if self.bias is None else self.bias[first:end].contiguous()
        columns = self.logits[:, first:end].contiguous()
        return dataclasses.replace(self, logits=columns, bias=bias, first=first)

    def rows_from(self, first: int, end: int) -> "Problem":
        scale = self.scale if len(self.scale) == 1 else self.scale[first:end].contiguous()
        rows = {"logits": self.logits[first:end], "ids": self.ids[first:end], "scale": scale}
        return dataclasses.replace(self, **rows)

    def row_stride(self) -> int:
        return self.logits.shape[1] if self.stride is None else self.stride

    def arrays(self) -> list[Tensor]:
        bias = torch.zeros(0) if self.bias is None else self.bias
        held = laid_out(self.logits, self.row_stride(), self.offset)
        return [held, bias, self.scale, self.ids.contiguous()]

    def numbers(self) -> list[float]:
        rows, columns = self.logits.shape
        return [
            rows, columns, self.ids.shape[1], self.first, KINDS[self.logits.dtype], self.offset,
            self.row_stride(), self.softcap, int(self.bias is not None), int(len(self.scale) > 1),
        ]  # fmt: skip

    def capped(self) -> Tensor:
        x = self.logits.double()
        if self.bias is not None:
            x = x + self.bias.double()
        return self.softcap * torch.tanh(x / self.softcap) if self.softcap else x

    def exact(self) -> Tensor:  # a [N, C]
        return self.capped() * self.scale.double()[:, None]

    def exact_statistics(self) -> tuple[Tensor, Tensor, Tensor]:
        a = self.exact()
        log_pi = a.log_softmax(1)
        entropy = -(log_pi.exp() * log_pi.clamp(min=-1e9)).sum(1)
        return a.gather(1, self.ids), a.logsumexp(1), entropy

    def exact_gradient(self, up: "Upstream") -> Tensor:
        log_pi = self.exact() - up.lse.double()[:, None]
        pi = log_pi.exp()
        gamma, eta, entropy = (x.double()[:, None] for x in (up.gamma, up.eta, up.entropy))
        da = pi * (gamma - eta * (log_pi.clamp(min=-1e9) + entropy))
        da.scatter_add_(1, self.ids, up.alpha.double())
        if self.softcap:
            da = da * (1 - (self.capped() / self.softcap) ** 2)
        return da * self.scale.double()[:, None]


@dataclasses.dataclass
class Upstream:
    alpha: Tensor  # [N, K]
    gamma: Tensor  # [N]
    eta: Tensor  # [N]
    lse: Tensor  # [N]
    entropy: Tensor  # [N]


def make_upstream(problem: Problem, **known: Tensor) -> Upstream:
    chance = torch.Generator().manual_seed(7)
    rows, kept = problem.ids.shape
    _, lse, entropy = (x.float() for x in problem.exact_statistics())
    alpha = torch.randn(rows, kept, generator=chance)
    gamma, eta = torch.randn(2, rows, generator=chance)
    return dataclasses.replace(Upstream(alpha, gamma, eta, lse, entropy), **known)


def laid_out(x: Tensor, stride: int, offset: int) -> Tensor:
    """Memory that ends with the last row."""
    rows, columns = x.shape
    held = torch.full((offset + (rows - 1) * stride + columns,), UNTOUCHED, dtype=x.dtype)
    held[offset:].as_strided((rows, columns), (stride, 1)).copy_(x)
    return held


def taken(held: Tensor, shape: tuple[int, int], stride: int, offset: int) -> Tensor:
    """The rows; what lies between them must be untouched."""
    rest = held.clone()
    view = rest[offset:].as_strided(shape, (stride, 1))
    found = view.clone()
    view.fill_(UNTOUCHED)
    assert rest.eq(UNTOUCHED).all()
    return found


def bits(x: Tensor) -> Tensor:
    return x.contiguous().view(torch.int32 if x.element_size() == 4 else torch.int16)


def statistics(problem, schedule=SCHEDULES[0], *, parts=(), module=MODULE):
    """Selected logits, log-sum-exp and entropy; the vocabulary is cut at ``parts``."""
    rows, vocab = problem.logits.shape
    units = -(-vocab // UNIT)
    states = torch.full((rows, units, 3), UNTOUCHED)
    selected = torch.full(problem.ids.shape, UNTOUCHED)
    cuts = [0, *parts, vocab]
    for first, end in itertools.pairwise(cuts):
        part = problem.part(first, end)
        arrays = [*part.arrays(), states, selected]
        *_, states, selected = module.run(
            "summarise_logits", arrays, [*part.numbers(), units], schedule
        )
    arrays = [states, torch.zeros(rows), torch.zeros(rows)]
    _, lse, entropy = module.run("statistics_of", arrays, (rows, units), schedule)
    return selected, lse, entropy


def gradient(
    problem,
    up,
    *,
    out_dtype=None,
    out_stride=None,
    out_offset=0,
    in_place=False,
    schedule=SCHEDULES[0],
    module=MODULE,
):
    """The gradient of the logits, written over them or elsewhere."""
    shape = tuple(problem.logits.shape)
    out_dtype = out_dtype or problem.logits.dtype
    stride = out_stride or shape[1]
    out = laid_out(torch.full(shape, UNTOUCHED, dtype=out_dtype), stride, out_offset)
    if in_place:
        stride, out_offset = problem.row_stride(), problem.offset
    arrays = [*problem.arrays(), *(getattr(up, f.name) for f in dataclasses.fields(up)), out]
    numbers = [*problem.numbers(), KINDS[out_dtype], out_offset, stride, int(in_place)]
    results = module.run("logit_gradient", arrays, numbers, schedule)
    return taken(results[0 if in_place else -1], shape, stride, out_offset)
