"""Small numeric pieces that several reference kernels share."""

import torch
from torch import Tensor

from lepo_kernels.validation import (
    FLOAT32_MAX,
    FLOAT32_TINY,
    NonFiniteRowError,
    checks_enabled,
)

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


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype sums are formed in: float64 for float64, float32 for everything else."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def rows_per_chunk(vocab: int) -> int:
    """How many rows of ``vocab`` entries to work on at a time, so that temporaries stay small."""
    return max(1, _CHUNK_ENTRIES // vocab)


def active_rows(
    grad_logits: Tensor,  # [N, K]
    grad_lse: Tensor,  # [N]
    grad_entropy: Tensor,  # [N]
) -> Tensor:  # [M]
    """Rows with a coefficient that is not zero, in ascending order."""
    return has_coefficients(grad_logits, grad_lse, grad_entropy).nonzero().squeeze(-1)


def has_coefficients(
    grad_logits: Tensor,  # [N, K]
    grad_lse: Tensor,  # [N]
    grad_entropy: Tensor,  # [N]
) -> Tensor:  # [N] bool
    """Whether a row has a coefficient that is not zero."""
    return (grad_logits != 0).any(dim=-1) | (grad_lse != 0) | (grad_entropy != 0)


def per_row(
    values: Tensor,  # [N] or [1]
    rows: slice | Tensor,
) -> Tensor:  # [R] or [1]
    """The values of some of the rows."""
    return values if len(values) == 1 else values[rows]


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


def fill_empty_sums(
    lse: Tensor,  # [N], changed in place
    entropy: Tensor,  # [N], changed in place
    massless: Tensor,  # [N] bool
) -> None:
    """Give rows that are all -inf in their shard of the vocabulary what sums of nothing have."""
    lse.masked_fill_(massless, -torch.inf)
    entropy.masked_fill_(massless, 0)


def check_rows(
    name: str,
    values: Tensor,  # [N]
) -> None:
    """Raise if the value of a row of logits is not finite.

    Raises:
        NonFiniteRowError: naming the first such row.
    """
    if not checks_enabled(values.device):
        return
    bad = values.isfinite().logical_not_()
    if bad.any():
        row = int(bad.int().argmax())
        raise NonFiniteRowError(f"{name}: row {row} is all -inf, or holds NaN or +inf")


def check_positive(name: str, values: Tensor, *, zero_included: bool = False) -> None:
    """Raise if a value is not above 0 (or 0, where that is welcome), or float32 cannot hold it.

    Raises:
        ValueError: naming the argument.
    """
    if not checks_enabled(values.device):
        return
    enough = values >= (0 if zero_included else FLOAT32_TINY)
    if not (enough & (values <= FLOAT32_MAX)).all():
        sign = ">=" if zero_included else ">"
        raise ValueError(f"{name}: expected finite numbers {sign} 0, in the range of float32")


def flush_tiny(values: Tensor) -> Tensor:
    """0 for numbers whose reciprocal their dtype cannot hold."""
    return values.masked_fill(values.abs() < torch.finfo(values.dtype).tiny, 0)


def check_steps(step: Tensor) -> None:
    """Raise if a step is outside [0, 2^32), which is all that the noise counter holds of it.

    Raises:
        ValueError: naming the argument and the step.
    """
    if not checks_enabled(step.device) or step.numel() == 0:
        return
    low, high = (int(x) for x in torch.aminmax(step))
    if low < 0 or high >= 1 << 32:
        got = low if low < 0 else high
        raise ValueError(f"step: expected values in [0, 2^32), got {got}")


def check_ids(name: str, ids: Tensor, vocab: int) -> None:
    """Raise if an id is outside [0, vocab).

    Raises:
        IndexError: naming the argument and the id.
    """
    if not checks_enabled(ids.device) or ids.numel() == 0:
        return
    low, high = (int(x) for x in torch.aminmax(ids))
    if low < 0 or high >= vocab:
        got = low if low < 0 else high
        raise IndexError(f"{name}: expected values in [0, {vocab}), got {got}")


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
