"""A latent step of the rollout, from logits to the mixture that is the next input.

Others: what a careful user of torch writes, who selects the 30 largest first, by torch's own
selection or with the help of maxima of blocks; the chain of published code, which sorts the
vocabulary; and samplers of one hard token. Ours also gives the log-sum-exp and the entropy of the
whole row. Floors: one pass over the logits, which every implementation needs, and torch's own
selection of the 30 largest.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial

import torch
from torch import Tensor

from benchmarks.baselines.latent_step import (
    TAU,
    TOP_K,
    TOP_P,
    Step,
    blocks_first,
    published_dense,
    published_sparse,
    topk_first,
)
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
from benchmarks.peers import SAMPLERS
from benchmarks.peers.peer import Peer
from benchmarks.plan import Plan
from lepo_kernels import gumbel_noise, latent_step, mix_embeddings, sample_latent
from lepo_kernels.ops.sample_latent import LatentSample

NO_MIXTURE = "the draw without its mixture"
# By which copies of the inputs differ: far enough to meet other rows of the table.
_SHIFT = 1009
# What sums in float32 may move the boundary of top-p.
_MASS_ERROR = 1e-5


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


def our_single_call(x: Inputs, backend: str) -> Step:
    step = latent_step(x.logits, x.embedding, tau=TAU, top_k=TOP_K, top_p=TOP_P, backend=backend)
    return step.sample.ids, step.sample.weights, step.embedding


def our_step(x: Inputs, backend: str) -> Step:
    drawn = our_draw(x, backend)
    mixed = mix_embeddings(drawn.ids, drawn.weights, x.embedding, backend=backend)
    return drawn.ids, drawn.weights, mixed


compiled_topk_first = lazily(topk_first)


def step(function: Callable[..., Step], x: Inputs) -> Step:
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


def check_ours(x: Inputs, result: Step) -> None:
    assert_close("weights", result[1], x.weights, 1e-4)
    assert_close("mixture", result[2], x.mixture, tolerance_of(x.embedding.dtype))


def check_eager(x: Inputs, result: Step) -> None:
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

    def other(name: str, function: Callable[..., Step]) -> Implementation:
        return Implementation(name, "other", partial(step, function), check_eager)

    careful = other("eager, topk first", topk_first)
    return Case(
        op="latent step",
        shape=f"{model}: [{rows}, {vocab}] {dtype_name(dtype)}, D {width}",
        make=make,
        implementations=(
            *ours("ours", ops, our_step, check_ours),
            *ours("ours, one call", ("latent_step",), our_single_call, check_ours),
            *ours("ours, draw alone", ops[:1], our_draw, check_draw, NO_MIXTURE),
            careful,
            other("eager, blocks first", blocks_first),
            compiled(careful, partial(step, compiled_topk_first)),
            other("published code, z @ E", published_dense),
            other("published code, 30 rows of E", published_sparse),
            *(peer.row(peer_run, check_token, dtype) for peer in SAMPLERS),
            Implementation("floor: amax", "floor", amax, check_amax),
            Implementation("floor: topk(30)", "floor", topk, check_topk),
        ),
        bytes=dtype.itemsize * (rows * vocab + rows * (TOP_K + 1) * width),
        dtype=dtype,
        another=shifted,
    )


def timed(plan: Plan) -> Iterator[Case]:
    for model in plan.light_models():
        for dtype in plan.step_dtypes():
            yield case(plan.rollout_rows(), model.vocab, model.width, dtype, model.name)


FAMILY = Family(timed, tiny=(case(3, 100, 5, torch.float32), case(3, 100, 5, torch.bfloat16)))
