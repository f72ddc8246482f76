"""P1 and P2: a latent step of the rollout, from logits to the mixture that is the next input.

Others: the chain that users of transformers write, and samplers of one hard token. Floors: one pass
over the logits, which every implementation needs, and torch's own selection of the 30 largest.
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
    size_of,
    tolerance_of,
)
from benchmarks.compiling import compiled, lazily
from benchmarks.peers import SAMPLERS
from benchmarks.peers.peer import Peer
from benchmarks.plan import Plan
from lepo_kernels import gumbel_noise, latent_step, mix_embeddings, sample_latent
from lepo_kernels.ops.sample_latent import LatentSample

TOP_K, TOP_P, TAU = 30, 0.95, 0.3
NO_MIXTURE = "the draw without its mixture"
# By which copies of the inputs differ: far enough to meet other rows of the table.
_SHIFT = 1009
# What sums in float32 may move the boundary of top-p.
_MASS_ERROR = 1e-5
_Step = tuple[Tensor, Tensor, Tensor]


@dataclass
class Inputs:
    logits: Tensor  # [N, V]
    embedding: Tensor  # [V, D]

    @cached_property
    def kept(self) -> tuple[Tensor, Tensor]:  # [N, K], [N, K]
        """Ids of the 30 largest entries, and which of them top-p keeps; float64, by sorting."""
        values, ids = self.logits.double().sort(dim=-1, descending=True, stable=True)
        mass = values[:, :TOP_K].softmax(-1)
        return ids[:, :TOP_K], mass.cumsum(-1) - mass < TOP_P

    @cached_property
    def may_be_kept(self) -> Tensor:  # [N, V]
        """Entries that filters with ties may keep: all that equal the 30th, ties in any order."""
        values = self.logits.double()
        least = values.gather(1, self.kept[0][:, -1:])
        mass = values.masked_fill(values < least, -torch.inf).softmax(-1)
        ordered, order = mass.sort(dim=-1, descending=True)
        above = ordered.cumsum(-1) - ordered
        # Of equal entries, the first says what lies above them all.
        first = torch.searchsorted(-ordered, -ordered)
        allowed = above.gather(1, first) < TOP_P + _MASS_ERROR
        allowed &= ordered > 0
        return torch.zeros_like(allowed).scatter_(1, order, allowed)

    @cached_property
    def weights(self) -> Tensor:  # [N, K]
        ids, mask = self.kept
        rows = torch.arange(len(ids), device=ids.device)
        noise = gumbel_noise(0, rows, 0, ids, dtype=torch.float64, backend="reference")
        scores = self.logits.double().gather(1, ids) + noise
        return (scores.masked_fill(~mask, -torch.inf) / TAU).softmax(-1)

    @cached_property
    def mixture(self) -> Tensor:  # [N, D]
        return mix(self.kept[0], self.weights, self.embedding)


def mix(ids: Tensor, weights: Tensor, embedding: Tensor) -> Tensor:  # [N, D] float64
    return (weights.double()[..., None] * embedding[ids].double()).sum(1)


def shifted(x: Inputs, index: int) -> Inputs:
    """The logits moved along the vocabulary: other memory, and other rows of the same table."""
    return replace(x, logits=x.logits.roll(_SHIFT * index, 1))


def our_draw(x: Inputs, backend: str) -> LatentSample:
    return sample_latent(x.logits, tau=TAU, top_k=TOP_K, top_p=TOP_P, backend=backend)


def our_single_call(x: Inputs, backend: str) -> _Step:
    step = latent_step(x.logits, x.embedding, tau=TAU, top_k=TOP_K, top_p=TOP_P, backend=backend)
    return step.sample.ids, step.sample.weights, step.embedding


def our_step(x: Inputs, backend: str) -> _Step:
    drawn = our_draw(x, backend)
    mixed = mix_embeddings(drawn.ids, drawn.weights, x.embedding, backend=backend)
    return drawn.ids, drawn.weights, mixed


def eager_weights(logits: Tensor) -> Tensor:  # [N, V]
    """Temperature, top-k and top-p as transformers' logits processors do them; then the noise."""
    scores = logits.float() / 1.0
    kth = torch.topk(scores, TOP_K)[0][..., -1, None]
    scores = scores.masked_fill(scores < kth, -torch.inf)
    ascending, order = torch.sort(scores, descending=False)
    beyond = ascending.softmax(dim=-1).cumsum(dim=-1) <= 1 - TOP_P
    beyond[..., -1:] = False
    scores = scores.masked_fill(beyond.scatter(1, order, beyond), -torch.inf)
    return F.gumbel_softmax(scores, tau=TAU)


def eager_dense(logits: Tensor, embedding: Tensor) -> _Step:
    z = eager_weights(logits)
    weights, ids = z.topk(TOP_K)
    return ids, weights, z.to(embedding.dtype) @ embedding


def eager_sparse(logits: Tensor, embedding: Tensor) -> _Step:
    weights, ids = eager_weights(logits).topk(TOP_K)
    return ids, weights, (weights[..., None] * embedding[ids]).sum(1)


compiled_sparse = lazily(eager_sparse)


def step(function: Callable[..., _Step], x: Inputs) -> _Step:
    return function(x.logits, x.embedding)


def peer_run(peer: Peer, x: Inputs) -> Tensor:  # [N]
    return peer.function(x.logits.float(), TOP_K, TOP_P)


def amax(x: Inputs) -> Tensor:  # [N]
    return x.logits.amax(-1)


def topk(x: Inputs) -> tuple[Tensor, Tensor]:  # [N, K], [N, K]
    return x.logits.topk(TOP_K)


def check_draw(x: Inputs, result: LatentSample) -> None:
    ids, mask = x.kept
    assert torch.equal(result.ids[mask], ids[mask]), "other entries are kept"
    assert_close("weights", result.weights, x.weights, 1e-4)


def check_ours(x: Inputs, result: _Step) -> None:
    assert_close("weights", result[1], x.weights, 1e-4)
    assert_close("mixture", result[2], x.mixture, tolerance_of(x.embedding.dtype))


def check_eager(x: Inputs, result: _Step) -> None:
    """Against its own definition: its noise is torch's, and differs from call to call."""
    ids, weights, mixed = result
    assert (x.may_be_kept.gather(1, ids) | (weights == 0)).all(), "an entry that the filters drop"
    assert_close("sum of weights", weights.sum(-1), torch.ones_like(weights[:, 0]), 1e-4)
    tolerance = tolerance_of(x.embedding.dtype)
    assert_close("mixture", mixed, mix(ids, weights, x.embedding), tolerance)


def check_token(x: Inputs, result: Tensor) -> None:
    assert x.may_be_kept.gather(1, result[:, None].long()).all(), "a token that the filters drop"


def check_amax(x: Inputs, result: Tensor) -> None:
    assert torch.equal(result, x.logits.gather(1, x.kept[0][:, :1])[:, 0])


def check_topk(x: Inputs, result: tuple[Tensor, Tensor]) -> None:
    # Of equal entries torch takes any.
    assert torch.equal(result[0], x.logits.gather(1, x.kept[0]))
    assert torch.equal(x.logits.gather(1, result[1]), result[0])


def case(rows: int, vocab: int, width: int, dtype: torch.dtype, model: str = "tiny") -> Case:
    def make(device: torch.device) -> Inputs:
        rng = generator(device)
        logits = torch.randn(rows, vocab, device=device, generator=rng) * 3
        embedding = torch.empty(vocab, width, device=device).uniform_(-1, 1, generator=rng)
        return Inputs(logits.to(dtype), embedding.to(dtype))

    ops = ("sample_latent", "mix_embeddings")
    dense = Implementation("eager, z @ E", "other", partial(step, eager_dense), check_eager)
    sparse = Implementation(
        "eager, 30 rows of E", "other", partial(step, eager_sparse), check_eager
    )
    return Case(
        op="latent step (P1+P2)",
        shape=f"{model}: [{rows}, {vocab}] {dtype_name(dtype)}, D {width}",
        make=make,
        implementations=(
            *ours("ours", ops, our_step, check_ours),
            *ours("ours, one call", ("latent_step",), our_single_call, check_ours),
            *ours("ours, P1 alone", ops[:1], our_draw, check_draw, NO_MIXTURE),
            dense,
            sparse,
            compiled(sparse, partial(step, compiled_sparse)),
            *(peer.row(peer_run, check_token, dtype) for peer in SAMPLERS),
            Implementation("floor: amax", "floor", amax, check_amax),
            Implementation("floor: topk(30)", "floor", topk, check_topk),
        ),
        bytes=size_of(dtype) * (rows * vocab + rows * (TOP_K + 1) * width),
        dtype=dtype,
        another=shifted,
    )


def timed(plan: Plan) -> Iterator[Case]:
    for model in plan.light_models():
        for dtype in plan.step_dtypes():
            yield case(plan.rollout_rows(), model.vocab, model.width, dtype, model.name)


FAMILY = Family(timed, tiny=(case(3, 100, 5, torch.float32), case(3, 100, 5, torch.bfloat16)))
