"""CPU kernels of the dense Gumbel-softmax mixture: csrc/cpu/gumbel_softmax_embedding.cpp.

Contract: float32, bfloat16 and float16 in any combination; computes in float32, and where both
logits and table are bfloat16 multiplies as products.py has it. The vocabulary is
worked off in chunks, the rows of a large batch in blocks: the native kernels make the weights of a
block's chunk in a buffer that stays in the cache, and they are multiplied with the table's chunk,
which is converted if the products want it. Forward reads the logits twice and the
table once, backward both once; each draws noise as often as it reads logits. Nothing of size [N, V]
or [V, D] exists but the gradients asked for. Rows whose upstream gradients are all zero are dropped
from the backward pass. Deterministic; log-probabilities and statistics have the same bits for any
number of threads and any batch, what comes from a matrix product may not.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lepo_kernels.backends.checks import check_positive, check_rows, check_steps
from lepo_kernels.backends.cpu.memory import fresh
from lepo_kernels.backends.cpu.products import Products, products_for
from lepo_kernels.backends.reference.gumbel_softmax_embedding import log_density_of, with_density
from lepo_kernels.structures import Mixtures, MixtureUpstream, Noise

# A block of rows that keeps a matrix product busy.
_BLOCK_ROWS = 1024
# Weights of a block's chunk: 4 MiB, for the cores' second-level caches or the last level.
_BUFFER_ENTRIES = 1 << 20
_CHUNK_IDS = 1 << 14
# Rows of the table that are converted at a time: 2 MiB, unless that makes too thin a product.
_CONVERTED_ENTRIES = 1 << 19
_CONVERTED_IDS = 256
# Noise is drawn for up to this many neighbours at a time.
_NOISE_IDS = 64


def gumbel_softmax_embedding(
    logits: Tensor,  # [N, V]
    embedding: Tensor,  # [V, D]
    noise: Noise,
    shard: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # [N, D], [N], [N], [N, D], [N, 8]
    """Mixtures ``z @ embedding``, ``sum z log pi``, log-densities, and what backward takes over.

    The latter are the deviations ``e - E_peak`` and the statistics of the rows, see the op.
    """
    return mixtures_of(logits, embedding, noise, shard, products_for(logits, embedding))


def mixtures_of(
    logits: Tensor,  # [N, V]
    embedding: Tensor,  # [V, D]
    noise: Noise,
    shard: bool,
    products: Products,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # [N, D], [N], [N], [N, D], [N, 8]
    """`gumbel_softmax_embedding` with a mixture by these products."""
    check_positive("tau", noise.tau, zero_included=True)
    check_positive("temperature", noise.temperature)
    check_steps(noise.step)
    noisy = _noisy_rows(logits, noise)
    log_prob, statistics = torch.ops.lepo_kernels_cpu.gumbel_softmax_statistics(*noisy)
    if not shard:
        check_rows("logits", log_prob)
    rows = torch.arange(len(logits))
    grid = _Grid(len(rows), embedding, products.dtype)
    beside_peak = torch.zeros(len(rows), embedding.shape[1], dtype=torch.float32)
    for ids in grid.chunks():
        table = products.right(grid.converted(embedding, ids).T)
        for block in grid.blocks():
            z = grid.weights(block, ids)
            torch.ops.lepo_kernels_cpu.gumbel_softmax_weights_beside_peak(
                z, *noisy, statistics, rows[block], ids.start
            )
            products.multiply(products.left(z), table, beside_peak[block], add=True)
    peaks = embedding[statistics[:, 4].long()].float()
    at_peak = statistics[:, 1:2]
    # Both from the same sum: the larger of them may be much larger than the other.
    mixed = torch.addcmul(beside_peak, at_peak.float(), peaks)
    deviation = beside_peak.addcmul_((1 - at_peak).float(), peaks, value=-1)
    log_density = log_density_of(statistics, noise.tau, torch.float32)
    return mixed, log_prob, log_density, deviation, statistics


def gumbel_softmax_embedding_backward(
    upstream: MixtureUpstream,
    logits: Tensor,  # [N, V]
    embedding: Tensor,  # [V, D]
    noise: Noise,
    mixtures: Mixtures,
    need_dlogits: bool,
    need_dembedding: bool,
) -> tuple[Tensor, Tensor]:  # [N, V] or [0], [V, D] or [0]
    """da and dE as the op's file has them."""
    dlogits = fresh(logits.shape if need_dlogits else (0,), logits.dtype)
    dembedding = fresh(embedding.shape if need_dembedding else (0,), embedding.dtype)
    active = active_upstream(upstream, noise.tau, mixtures)
    rows, grad = active.rows, active.grad_embedding
    if need_dlogits:
        dlogits.index_fill_(0, active.idle_rows, 0)
    if not active.has_pull:
        dembedding.zero_()
    if not (active.has_pull or need_dlogits):
        return dlogits, dembedding
    noisy = _noisy_rows(logits, noise)
    statistics = mixtures.statistics.contiguous()
    products = products_for(logits, embedding)
    grid = _Grid(len(rows), embedding, products.dtype)
    need_pull = need_dlogits and active.has_pull
    need_sums = need_dembedding and active.has_pull
    pulls = [products.left(grad[block]) if need_pull else None for block in grid.blocks()]
    shares = [products.right(grad[block].T) if need_sums else None for block in grid.blocks()]
    for ids in grid.chunks():
        table = products.right(grid.converted(embedding, ids)) if need_pull else None
        sums = grid.sums(dembedding, ids) if need_sums else None
        for block, pull, share in zip(grid.blocks(), pulls, shares, strict=True):
            z = grid.weights(block, ids)
            # What pulls at the logits; the native kernel puts the weights in its place.
            if pull is not None and table is not None:
                products.multiply(pull, table, z)
            else:
                z.zero_()
            torch.ops.lepo_kernels_cpu.gumbel_softmax_gradients(
                z, dlogits, *noisy, statistics, rows[block], ids.start, active.per_row[block]
            )
            if share is not None and sums is not None:
                products.multiply(products.left(z.T), share, sums, add=block.start > 0)
        if sums is not None and sums.dtype != dembedding.dtype:
            dembedding[ids] = sums
    return dlogits, dembedding


class ActiveUpstream(NamedTuple):
    """The gradients that come from above, and which rows they come to."""

    rows: Tensor  # [M], those with a gradient that is not zero
    idle_rows: Tensor  # [N - M], the others
    grad_embedding: Tensor  # [M, D] float32
    per_row: Tensor  # [M, 4] float32, what the native kernel takes
    has_pull: bool  # or a loss of log-probabilities and densities alone, without matrix products


def active_upstream(
    upstream: MixtureUpstream,
    tau: Tensor,  # [N] or [1]
    mixtures: Mixtures,
) -> ActiveUpstream:
    """Gather the upstream gradients of the rows that have any."""
    mixed, deviation, statistics = mixtures
    upstream = with_density(upstream, statistics, tau, torch.float32)
    grad_embedding, grad_log_prob, grad_log_density = upstream
    pulled = (grad_embedding != 0).any(dim=-1)
    active = pulled | (grad_log_prob != 0) | (grad_log_density != 0)
    rows, idle_rows = (x.nonzero().squeeze(-1) for x in (active, ~active))
    has_pull = bool(pulled.any())
    grad = grad_embedding[rows].float()
    per_row = torch.zeros(len(rows), 4, dtype=torch.float32)
    if has_pull:
        per_row[:, 0] = _dots(mixed[rows], grad)
        per_row[:, 1] = _dots(deviation[rows], grad)
    per_row[:, 2] = grad_log_prob[rows]
    per_row[:, 3] = grad_log_density[rows]
    return ActiveUpstream(rows, idle_rows, grad, per_row, has_pull)


class _Grid:
    """Blocks of rows and chunks of the vocabulary, and the buffers that serve one of each."""

    def __init__(self, rows: int, table: Tensor, dtype: torch.dtype) -> None:
        self.rows, (self.vocab, self.width) = rows, table.shape
        # Blocks of the same size, give or take one.
        self.block = -(-rows // max(1, -(-rows // _BLOCK_ROWS)))
        chunk = min(_CHUNK_IDS, _BUFFER_ENTRIES // max(1, self.block))
        if table.dtype != dtype:
            chunk = min(chunk, max(_CONVERTED_ENTRIES // max(1, self.width), _CONVERTED_IDS))
        self.chunk = min(chunk // _NOISE_IDS * _NOISE_IDS, self.vocab)
        self._weights = torch.empty(self.block, self.chunk, dtype=torch.float32)
        shape = (self.chunk, self.width)
        # A single block of rows is one product, which rounds its sums itself.
        self._sums_in_place = table.dtype == torch.float32 or (
            table.dtype == dtype and rows <= self.block
        )
        self._converted = torch.empty(shape if table.dtype != dtype else (0, 0), dtype=dtype)
        self._sums = torch.empty((0, 0) if self._sums_in_place else shape, dtype=torch.float32)

    def chunks(self) -> Iterator[slice]:
        """Ranges of ids."""
        return _ranges(self.vocab if self.rows else 0, self.chunk)

    def blocks(self) -> Iterator[slice]:
        """Ranges of rows."""
        return _ranges(self.rows, self.block)

    def weights(self, block: slice, ids: slice) -> Tensor:  # [block, ids]
        """Where the weights of a block's chunk are made."""
        return self._weights[: block.stop - block.start, : ids.stop - ids.start]

    def converted(self, table: Tensor, ids: slice) -> Tensor:  # [ids, D]
        """Rows of the table in the products' dtype."""
        if table.dtype == self._converted.dtype:
            return table[ids]
        return self._converted[: ids.stop - ids.start].copy_(table[ids])

    def sums(self, gradient: Tensor, ids: slice) -> Tensor:  # [ids, D]
        """Where the gradient of the table's rows is summed up: in place if it can be."""
        if self._sums_in_place:
            return gradient[ids]
        return self._sums[: ids.stop - ids.start]


def _dots(x: Tensor, y: Tensor) -> Tensor:  # [N]
    return (x * y).sum(dim=-1)


def _ranges(total: int, size: int) -> Iterator[slice]:
    for start in range(0, total, size or 1):
        yield slice(start, min(start + size, total))


def _noisy_rows(
    logits: Tensor,  # [N, V]
    noise: Noise,
) -> tuple[Any, ...]:
    """The arguments in the layout that the native kernels read; rows may lie apart."""
    if logits.stride(1) != 1 and logits.shape[1] > 1:
        logits = logits.contiguous()
    return logits, *noise.contiguous()
