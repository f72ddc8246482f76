"""One read of rows of logits: their statistics, and what finds their best entries later.

Contract: a row is cut into units of 512 entries, blocks of 64 and groups of 32 blocks. Of a unit,
the scan leaves the largest entry, the sum of exp(a - largest), and the sum of these terms times
a - largest; of a block and of a group, the largest entry that is not excluded. All of it depends on
these entries alone: not on tiles, the batch, the layout or the element type. `merged_statistics`
adds up units in float64, in an order that the vocabulary alone gives. A row that is all -inf, or
holds NaN or +inf, has NaN for both statistics.

`best_of_rows` finds the best entries without another pass: k blocks that precede a block (by their
largest entry, then by place) each hold an entry that precedes all of its entries. So no entry of
the top k lies outside the top k blocks, nor a block of these outside the top k groups.
"""

import torch
import triton
import triton.language as tl

from lepo_kernels.backends.triton.common.sum_kernels import ordered_sum
from lepo_kernels.backends.triton.latent.best_entry_kernels import NO_KEY, key_of, largest, place_of

UNIT = tl.constexpr(512)
BLOCK = tl.constexpr(64)
GROUP_BLOCKS = tl.constexpr(32)
# A tile holds whole ones of all.
GROUP = tl.constexpr(GROUP_BLOCKS.value * BLOCK.value)
_LARGEST = tl.constexpr(torch.finfo(torch.float32).max)
# Below, a term is 0: its distance does not matter, but may not be infinite.
_MOST_NEGATIVE_SHIFT = tl.constexpr(-128.0)


@triton.jit
def inverse_of(
    temperature: tl.tensor,  # [N] or [1]
    stride_temperature: tl.tensor,
    rows: tl.tensor,  # [ROWS] int64
) -> tl.tensor:  # [ROWS]
    """1 / temperature, rounded as the reference rounds it."""
    values = tl.load(temperature + rows * stride_temperature).to(tl.float32)
    return tl.div_rn(tl.full(values.shape, 1.0, tl.float32), values)


@triton.jit
def kept_entries(
    a: tl.tensor,
    dropped: tl.tensor,  # [V] int8, or None
    ids: tl.tensor,  # as a
    inside: tl.tensor,  # as a
) -> tl.tensor:
    """-inf for excluded entries."""
    if dropped is not None:
        a = tl.where(tl.load(dropped + ids, mask=inside, other=1) != 0, -float("inf"), a)
    return a


@triton.jit(do_not_specialize=["total_rows"])
def row_scan_kernel(
    logits: tl.tensor,  # [N, V]
    row_stride: tl.tensor,
    temperature: tl.tensor,  # [N] or [1]
    stride_temperature: tl.tensor,
    dropped: tl.tensor,  # [V] int8, or None
    units: tl.tensor,  # [N, 3, tiles * IDS / UNIT], written
    blocks: tl.tensor,  # [N, tiles * IDS / BLOCK], written
    groups: tl.tensor,  # [N, tiles * IDS / GROUP], written
    total_rows: tl.tensor,
    vocab: tl.tensor,
    tiles: tl.tensor,
    ROWS: tl.constexpr,
    IDS: tl.constexpr,
) -> None:
    """A tile of rows and ids per program."""
    wanted = tl.program_id(0) // tiles * ROWS + tl.arange(0, ROWS)
    tile = tl.program_id(0) % tiles
    there = (wanted < total_rows)[:, None]
    # A row that is not there is the last one, once more.
    rows = tl.minimum(wanted, total_rows - 1).to(tl.int64)
    ids = (tile * IDS + tl.arange(0, IDS))[None, :]
    inside = ids < vocab
    at = logits + rows[:, None] * row_stride + ids
    x = tl.load(at, mask=inside, other=-float("inf")).to(tl.float32)
    a = x * inverse_of(temperature, stride_temperature, rows)[:, None]

    per_row: tl.constexpr = IDS // UNIT
    entries = tl.reshape(a, (ROWS * per_row, UNIT))
    # Finite where all is -inf; NaN is left out: the sums will tell.
    top = tl.maximum(tl.max(entries, axis=1), -_LARGEST)
    shift = entries - top[:, None]
    terms = tl.exp(shift)
    shifted = terms * tl.maximum(shift, _MOST_NEGATIVE_SHIFT)
    unit = tile * per_row + tl.arange(0, per_row)[None, :]
    count = tiles * per_row
    out = units + rows[:, None] * (3 * count) + unit
    tl.store(out, tl.reshape(top, (ROWS, per_row)), mask=there)
    sums = tl.reshape(ordered_sum(terms, UNIT), (ROWS, per_row))
    tl.store(out + count, sums, mask=there)
    sums = tl.reshape(ordered_sum(shifted, UNIT), (ROWS, per_row))
    tl.store(out + 2 * count, sums, mask=there)

    kept = kept_entries(a, dropped, ids, inside)
    peaks = tl.max(tl.reshape(kept, (ROWS, IDS // BLOCK, BLOCK)), axis=2)
    block = tile * (IDS // BLOCK) + tl.arange(0, IDS // BLOCK)[None, :]
    tl.store(blocks + rows[:, None] * (tiles * (IDS // BLOCK)) + block, peaks, mask=there)
    peaks = tl.max(tl.reshape(peaks, (ROWS, IDS // GROUP, GROUP_BLOCKS)), axis=2)
    group = tile * (IDS // GROUP) + tl.arange(0, IDS // GROUP)[None, :]
    tl.store(groups + rows[:, None] * (tiles * (IDS // GROUP)) + group, peaks, mask=there)


@triton.jit
def merged_statistics(
    units: tl.tensor,  # [N, 3, count]
    rows: tl.tensor,  # [ROWS] int64
    count: tl.tensor,
    UNITS: tl.constexpr,
) -> tl.tensor:  # [ROWS], [ROWS]
    """Log-sum-exp and entropy of rows, NaN for bad ones."""
    ROWS: tl.constexpr = rows.shape[0]
    first_of_row = units + rows[:, None] * (3 * count)
    top = tl.full((ROWS, UNITS), -_LARGEST, tl.float32)
    for first in range(0, count, UNITS):
        unit = first + tl.arange(0, UNITS)[None, :]
        top = tl.maximum(top, tl.load(first_of_row + unit, mask=unit < count, other=-_LARGEST))
    top = tl.max(top, axis=1).to(tl.float64)
    mass = tl.zeros((ROWS, UNITS), tl.float64)
    shift = tl.zeros((ROWS, UNITS), tl.float64)
    for first in range(0, count, UNITS):
        unit = first + tl.arange(0, UNITS)[None, :]
        inside = unit < count
        of_unit = tl.load(first_of_row + unit, mask=inside, other=-_LARGEST)
        distance = of_unit.to(tl.float64) - top[:, None]
        scale = tl.exp(distance.to(tl.float32)).to(tl.float64)
        total = tl.load(first_of_row + count + unit, mask=inside, other=0.0).to(tl.float64)
        shifted = tl.load(first_of_row + 2 * count + unit, mask=inside, other=0.0).to(tl.float64)
        mass += scale * total
        shift += scale * (shifted + distance * total)
    mass_of_row = ordered_sum(mass, UNITS)
    log_mass = tl.log(mass_of_row)
    lse = (top + log_mass).to(tl.float32)
    entropy = (log_mass - ordered_sum(shift, UNITS) / mass_of_row).to(tl.float32)
    good = tl.abs(lse) <= _LARGEST
    return tl.where(good, lse, float("nan")), tl.where(good, entropy, float("nan"))


@triton.jit
def best_of_rows(
    logits: tl.tensor,  # [N, V]
    row_stride: tl.tensor,
    temperature: tl.tensor,  # [N] or [1]
    stride_temperature: tl.tensor,
    dropped: tl.tensor,  # [V] int8, or None
    blocks: tl.tensor,  # [N, group_count * GROUP_BLOCKS]
    groups: tl.tensor,  # [N, group_count]
    rows: tl.tensor,  # [ROWS] int64
    vocab: tl.tensor,
    group_count: tl.tensor,
    GROUPS: tl.constexpr,  # at least KEPT
    KEPT: tl.constexpr,
) -> tl.tensor:  # [ROWS, KEPT] int64
    """Keys of the best entries, descending."""
    ROWS: tl.constexpr = rows.shape[0]
    best = tl.full((ROWS, KEPT), NO_KEY, tl.int64)
    for first in range(0, group_count, GROUPS):
        group = first + tl.arange(0, GROUPS)[None, :]
        at = groups + rows[:, None] * group_count + group
        peaks = tl.load(at, mask=group < group_count, other=-float("inf"))
        found = largest(key_of(peaks, group), GROUPS, KEPT)
        both = tl.reshape(tl.join(best, found), (ROWS, 2 * KEPT))
        best = largest(both, 2 * KEPT, KEPT)

    # Where there are fewer groups than are kept, one behind the end stands in, all of -inf.
    group = tl.minimum(place_of(best), group_count)[:, :, None]
    inside = group < group_count
    block = group * GROUP_BLOCKS + tl.arange(0, GROUP_BLOCKS)[None, None, :]
    at = blocks + rows[:, None, None] * (group_count * GROUP_BLOCKS) + block
    keys = key_of(tl.load(at, mask=inside, other=-float("inf")), block)
    found = tl.reshape(keys, (ROWS, KEPT * GROUP_BLOCKS))
    best = largest(found, KEPT * GROUP_BLOCKS, KEPT)

    ids = place_of(best)[:, :, None] * BLOCK + tl.arange(0, BLOCK)[None, None, :]
    inside = ids < vocab
    at = logits + rows[:, None, None] * row_stride + ids
    x = tl.load(at, mask=inside, other=-float("inf")).to(tl.float32)
    a = x * inverse_of(temperature, stride_temperature, rows)[:, None, None]
    keys = key_of(kept_entries(a, dropped, ids, inside), ids)
    return largest(tl.reshape(keys, (ROWS, KEPT * BLOCK)), KEPT * BLOCK, KEPT)
