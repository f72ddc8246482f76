"""Small numeric pieces that several reference kernels share."""

import torch
from torch import Tensor

# exp(-10000) is 0 in float64 too: a logit this far below its row's maximum carries no mass.
_NO_MASS = -1e4
# A probability up to exp(-69) = 1e-30 is 0 to any sum, in float64 too. Below exp(-87) float32 is
# subnormal, which slows a matrix product on the CPU down many times.
_SPECK = 1e-30
_LOG_SPECK = -80.0
_BLOCK = 64
_CHUNK_ENTRIES = 1 << 22
# Entries whose temporaries stay in a core's cache.
_CACHED_ENTRIES = 1 << 17


def rows_per_chunk(vocab: int) -> int:
    """How many rows of ``vocab`` entries to work on at a time, so that temporaries stay small."""
    return max(1, _CHUNK_ENTRIES // vocab)


def add_rows(
    table: Tensor,  # [V, D], changed in place
    ids: Tensor,  # [M]
    rows: Tensor,  # [M, D]
) -> None:
    """``table[ids] += rows``, duplicates added in a fixed order on every device."""
    if table.device.type == "cpu":
        # index_add_ is serial over ids here; index_put_ would use atomics.
        table.index_add_(0, ids.long(), rows)
    else:
        # index_put_ sorts the ids here; index_add_ would use atomics.
        table.index_put_((ids.long(),), rows, accumulate=True)


def add_entries(
    table: Tensor,  # [N, V], changed in place
    ids: Tensor,  # [N, K]
    values: Tensor,  # [N, K]
) -> None:
    """``table[n, ids[n]] += values[n]``, duplicates added in a fixed order on every device."""
    if table.device.type == "cpu":
        table.scatter_add_(1, ids.long(), values)
    else:
        # As in add_rows: scatter_add_ would use atomics here.
        rows = torch.arange(len(table), device=table.device)[:, None].expand(ids.shape)
        table.index_put_((rows, ids.long()), values, accumulate=True)


def running_sums(
    x: Tensor,  # [N, K]
) -> Tensor:  # [N, K]
    """The sum of every prefix of each row, in a fixed order on every device."""
    if x.device.type == "cpu":
        return x.cumsum(dim=-1)
    # On a GPU cumsum of floats adds in no fixed order; torch's deterministic mode refuses it.
    return _sums_by_doubling(x)


def _sums_by_doubling(
    x: Tensor,  # [N, K]
) -> Tensor:  # [N, K]
    """Every entry holds the sum of the last 1, 2, 4, ... entries, until that is all before it."""
    reach = 1
    while reach < x.shape[-1]:
        x = x + torch.nn.functional.pad(x[..., :-reach], (reach, 0))
        reach *= 2
    return x


def row_statistics(
    a: Tensor,  # [N, V]
) -> tuple[Tensor, Tensor]:  # [N], [N]
    """Log-sum-exp of each row, and entropy of its softmax; entries may be -inf.

    Both are NaN in a row that is all -inf, or holds NaN or +inf, and finite in any other.
    """
    if a.device.type != "cpu":
        return _row_statistics(a)
    parts = [_row_statistics(part) for part in a.split(max(1, _CACHED_ENTRIES // a.shape[1]))]
    lse, entropy = (torch.cat(values) for values in zip(*parts, strict=True))
    return lse, entropy


def _row_statistics(a: Tensor) -> tuple[Tensor, Tensor]:
    top = a.amax(dim=-1)
    shifted = (a - top[:, None]).clamp_min_(_NO_MASS)
    weights = shifted.exp()
    total = weights.sum(dim=-1)
    mean_shift = shifted.mul_(weights).sum(dim=-1) / total
    return top + total.log(), total.log() - mean_shift


def probabilities_of(
    a: Tensor,  # [N, V]
    lse: Tensor,  # [N]
) -> tuple[Tensor, Tensor]:  # [N, V], [N, V]
    """Probabilities, 0 where they are specks, and their logarithms, which are finite there."""
    log_pi = (a - lse[:, None]).clamp_min_(_LOG_SPECK)
    return drop_specks(log_pi.exp()), log_pi


def drop_specks(
    probabilities: Tensor,  # changed in place
) -> Tensor:
    """Set probabilities that are 0 to any sum to 0."""
    return torch.nn.functional.threshold(probabilities, _SPECK, 0.0, inplace=True)


def flush_tiny(values: Tensor) -> Tensor:
    """0 for numbers whose reciprocal their dtype cannot hold."""
    return values.masked_fill(values.abs() < torch.finfo(values.dtype).tiny, 0)


def top_ids(
    a: Tensor,  # [N, V]
    k: int,
) -> Tensor:  # [N, k] int64
    """Ids of the k largest entries, by value descending, then id ascending.

    Selects blocks by their maximum first: k blocks that precede a block in that order each hold an
    entry that precedes all of its entries, so no entry of the top k lies outside the top k blocks.
    """
    vocab = a.shape[1]
    if 2 * k * _BLOCK >= vocab:
        return _largest(a, k)
    blocks = vocab // _BLOCK
    peaks = a[:, : blocks * _BLOCK].unflatten(1, (blocks, _BLOCK)).amax(dim=-1)
    if blocks * _BLOCK < vocab:
        tail = a[:, blocks * _BLOCK :].amax(dim=-1, keepdim=True)
        peaks = torch.cat((peaks, tail), dim=1)
    # In ascending order, so that positions among the candidates are ordered as their ids.
    chosen = _largest(peaks, k).sort(dim=-1).values
    inside = torch.arange(_BLOCK, device=a.device)
    candidates = (chosen[..., None] * _BLOCK + inside).flatten(1)
    values = a.gather(1, candidates.clamp_max(vocab - 1))
    values.masked_fill_(candidates >= vocab, -torch.inf)
    return candidates.gather(1, _largest(values, k)).clamp_max_(vocab - 1)


def _largest(values: Tensor, k: int) -> Tensor:  # [N, k]
    """Positions of the k largest values, by value descending, then position ascending."""
    width = values.shape[1]
    if values.dtype != torch.float32 or 4 * k > width:
        return values.sort(dim=-1, descending=True, stable=True).indices[:, :k]
    # One int64 key holds both: the float's bits, made monotone, above the reversed position.
    # Adding 0 turns -0.0, which ties with 0.0, into 0.0.
    bits = (values + 0.0).view(torch.int32)
    monotone = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long()
    reversed_position = torch.arange(width - 1, -1, -1, device=values.device)
    return ((monotone << 32) + reversed_position).topk(k, dim=-1).indices
