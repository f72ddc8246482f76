"""A latent step in plain torch: as published code does it, and as well as a careful user can.

Published code filters, perturbs and mixes over the whole vocabulary, which it sorts. Nothing but
the first K entries can be kept, so a careful user takes these first; what follows is [N, K].
"""

import torch
from torch import Tensor
from torch.nn import functional as F

TOP_K, TOP_P, TAU = 30, 0.95, 0.3
# Entries to a block: as many maxima, and candidates, as make both selections small.
_BLOCK = 64

Step = tuple[Tensor, Tensor, Tensor]  # ids [N, K], weights [N, K], mixture [N, D]


def published_weights(logits: Tensor) -> Tensor:  # [N, V]
    """Temperature, top-k and top-p as transformers' logits processors do them; then the noise."""
    scores = logits.float() / 1.0
    kth = torch.topk(scores, TOP_K)[0][..., -1, None]
    scores = scores.masked_fill(scores < kth, -torch.inf)
    ascending, order = torch.sort(scores, descending=False)
    beyond = ascending.softmax(dim=-1).cumsum(dim=-1) <= 1 - TOP_P
    beyond[..., -1:] = False
    scores = scores.masked_fill(beyond.scatter(1, order, beyond), -torch.inf)
    return F.gumbel_softmax(scores, tau=TAU)


def published_dense(logits: Tensor, embedding: Tensor) -> Step:
    z = published_weights(logits)
    weights, ids = z.topk(TOP_K)
    return ids, weights, z.to(embedding.dtype) @ embedding


def published_sparse(logits: Tensor, embedding: Tensor) -> Step:
    weights, ids = published_weights(logits).topk(TOP_K)
    return ids, weights, (weights[..., None] * embedding[ids]).sum(1)


def topk_first(logits: Tensor, embedding: Tensor) -> Step:
    values, ids = logits.topk(TOP_K)
    return _step(values, ids, embedding)


def blocks_first(logits: Tensor, embedding: Tensor) -> Step:
    """The K blocks with the largest maxima hold the K largest entries: torch selects among few."""
    rows, vocab = logits.shape
    blocks = vocab // _BLOCK
    maxima = logits[:, : blocks * _BLOCK].unflatten(1, (blocks, _BLOCK)).amax(-1)
    best = maxima.topk(min(TOP_K, blocks), sorted=False).indices  # [N, K]
    offsets = torch.arange(_BLOCK, device=logits.device)
    rest = torch.arange(blocks * _BLOCK, vocab, device=logits.device)
    candidates = (best[..., None] * _BLOCK + offsets).flatten(1)
    candidates = torch.cat([candidates, rest.expand(rows, -1)], dim=1)
    values, places = logits.gather(1, candidates).topk(TOP_K)
    return _step(values, candidates.gather(1, places), embedding)


def _step(
    values: Tensor,  # [N, K], descending
    ids: Tensor,  # [N, K]
    embedding: Tensor,  # [V, D]
) -> Step:
    """Top-p, noise, softmax and mixture of the kept entries."""
    scores = values.float()
    mass = scores.softmax(-1)
    scores = scores.masked_fill(mass.cumsum(-1) - mass >= TOP_P, -torch.inf)
    noise = -torch.empty_like(scores).exponential_().log()
    weights = ((scores + noise) / TAU).softmax(-1)
    per_row = weights.to(embedding.dtype)
    return ids, weights, F.embedding_bag(ids, embedding, per_sample_weights=per_row, mode="sum")
