"""P1 and P2: a latent step of the rollout, from logits to the mixture that is the next input.

Others: the chain that users of transformers write. Floors: one pass over the logits, which
every implementation needs, and torch's own selection of the 30 largest.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.case import Case, Family, Implementation, assert_close, generator, ours
from lepo_kernels import gumbel_noise, latent_step, mix_embeddings, sample_latent
from lepo_kernels.ops.sample_latent import LatentSample

TOP_K, TOP_P, TAU = 30, 0.95, 0.3
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


def our_draw(x: Inputs, backend: str) -> LatentSample:
    return sample_latent(x.logits, tau=TAU, top_k=TOP_K, top_p=TOP_P, backend=backend)


def our_single_call(x: Inputs, backend: str) -> _Step:
    step = latent_step(x.logits, x.embedding, tau=TAU, top_k=TOP_K, top_p=TOP_P, backend=backend)
    return step.sample.ids, step.sample.weights, step.embedding


def our_step(x: Inputs, backend: str) -> _Step:
    drawn = our_draw(x, backend)
    mixed = mix_embeddings(drawn.ids, drawn.weights, x.embedding, backend=backend)
    return drawn.ids, drawn.weights, mixed


def eager_weights(x: Inputs) -> Tensor:  # [N, V]
    """Temperature, top-k and top-p as transformers' logits processors do them; then the noise."""
    scores = x.logits / 1.0
    kth = torch.topk(scores, TOP_K)[0][..., -1, None]
    scores = scores.masked_fill(scores < kth, -torch.inf)
    ascending, order = torch.sort(scores, descending=False)
    beyond = ascending.softmax(dim=-1).cumsum(dim=-1) <= 1 - TOP_P
    beyond[..., -1:] = False
    scores = scores.masked_fill(beyond.scatter(1, order, beyond), -torch.inf)
    return F.gumbel_softmax(scores, tau=TAU)


def eager_dense(x: Inputs) -> _Step:
    z = eager_weights(x)
    weights, ids = z.topk(TOP_K)
    return ids, weights, z @ x.embedding


def eager_sparse(x: Inputs) -> _Step:
    weights, ids = eager_weights(x).topk(TOP_K)
    return ids, weights, (weights[..., None] * x.embedding[ids]).sum(1)


def check_draw(x: Inputs, result: LatentSample) -> None:
    ids, mask = x.kept
    assert torch.equal(result.ids[mask], ids[mask]), "other entries are kept"
    assert_close("weights", result.weights, x.weights, 1e-4)


def check_ours(x: Inputs, result: _Step) -> None:
    assert_close("weights", result[1], x.weights, 1e-4)
    assert_close("mixture", result[2], x.mixture, 1e-4)


def check_eager(x: Inputs, result: _Step) -> None:
    """Against its own definition: its noise is torch's, and differs from call to call."""
    ids, weights, mixed = result
    kept, mask = x.kept
    support = torch.zeros_like(x.logits, dtype=torch.bool).scatter_(1, kept, mask)
    assert (support.gather(1, ids) | (weights == 0)).all(), "an entry that the filters drop"
    assert_close("sum of weights", weights.sum(-1), torch.ones(len(ids)), 1e-4)
    assert_close("mixture", mixed, mix(ids, weights, x.embedding), 1e-4)


def check_amax(x: Inputs, result: Tensor) -> None:
    assert torch.equal(result, x.logits.gather(1, x.kept[0][:, :1])[:, 0])


def check_topk(x: Inputs, result: tuple[Tensor, Tensor]) -> None:
    assert torch.equal(result[0], x.logits.gather(1, x.kept[0]))
    assert torch.equal(result[1], x.kept[0])


def case(rows: int, vocab: int, width: int, *, rounds: int = 5) -> Case:
    def make(device: torch.device) -> Inputs:
        rng = generator(device)
        logits = torch.randn(rows, vocab, device=device, generator=rng) * 3
        embedding = torch.empty(vocab, width, device=device).uniform_(-1, 1, generator=rng)
        return Inputs(logits, embedding)

    ops = ("sample_latent", "mix_embeddings")
    return Case(
        op="latent step (P1+P2)",
        shape=f"[{rows}, {vocab}] float32, D {width}",
        make=make,
        implementations=(
            *ours("ours", ops, our_step, check_ours),
            *ours("ours, one call", ("latent_step",), our_single_call, check_ours),
            *ours("ours, P1 alone", ops[:1], our_draw, check_draw),
            Implementation("eager, z @ E", "other", eager_dense, check_eager),
            Implementation("eager, 30 rows of E", "other", eager_sparse, check_eager),
            Implementation("floor: amax", "floor", lambda x: x.logits.amax(-1), check_amax),
            Implementation("floor: topk(30)", "floor", lambda x: x.logits.topk(TOP_K), check_topk),
        ),
        bytes=4 * (rows * vocab + rows * (TOP_K + 1) * width),
        rounds=rounds,
    )


FAMILY = Family(
    # SmolLM2-135M and Qwen2.5-3B: vocabulary and width; 32 sequences decode together.
    timed=(case(32, 49152, 576, rounds=9), case(32, 151936, 2048)),
    tiny=(case(3, 100, 5),),
)
