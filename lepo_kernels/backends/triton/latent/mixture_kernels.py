"""Triton kernels of the embedding mixture.

Contract: that of mix_embeddings.py, which launches them.
"""

import triton
import triton.language as tl


@triton.jit
def _rows(
    embedding: tl.tensor,  # [V, D]
    row_stride: tl.tensor,
    column_stride: tl.tensor,
    vocab: tl.tensor,
    width: tl.tensor,
    ids: tl.tensor,  # [ENTRIES]
    wanted: tl.tensor,  # [ENTRIES] bool
    columns: tl.tensor,  # [COLUMNS]
) -> tl.tensor:  # [ENTRIES, COLUMNS] float32
    """Rows of the table, 0 where they are not wanted, NaN where there is no such row."""
    inside = (ids >= 0) & (ids < vocab)
    at = ids.to(tl.int64)[:, None] * row_stride + columns.to(tl.int64)[None, :] * column_stride
    loaded = (wanted & inside)[:, None] & (columns < width)[None, :]
    rows = tl.load(embedding + at, mask=loaded, other=0.0).to(tl.float32)
    return tl.where((wanted & ~inside)[:, None], float("nan"), rows)


@triton.jit
def mix_kernel(
    ids: tl.tensor,  # [N, K]
    weights: tl.tensor,  # [N, K]
    embedding: tl.tensor,  # [V, D]
    mixed: tl.tensor,  # [N, D], written
    row_stride: tl.tensor,
    column_stride: tl.tensor,
    vocab: tl.tensor,
    width: tl.tensor,
    entries: tl.tensor,
    ENTRIES: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    """One row of the mixture per program, and a block of columns."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((COLUMNS,), tl.float32)
    for first in range(0, entries, ENTRIES):
        entry = first + tl.arange(0, ENTRIES)
        valid = entry < entries
        id = tl.load(ids + row * entries + entry, mask=valid, other=0)
        weight = tl.load(weights + row * entries + entry, mask=valid, other=0.0).to(tl.float32)
        used = weight != 0
        rows = _rows(embedding, row_stride, column_stride, vocab, width, id, used, columns)
        total += tl.sum(weight[:, None] * rows, axis=0)
    tl.store(
        mixed + row * width + columns,
        total.to(mixed.dtype.element_ty),
        mask=columns < width,
    )


@triton.jit
def weights_gradient_kernel(
    grad: tl.tensor,  # [N, D]
    ids: tl.tensor,  # [N, K]
    embedding: tl.tensor,  # [V, D]
    dweights: tl.tensor,  # [N, K], written
    row_stride: tl.tensor,
    column_stride: tl.tensor,
    vocab: tl.tensor,
    width: tl.tensor,
    entries: tl.tensor,
    ENTRIES: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    """The products of one row's gradient with a block of its rows of the table."""
    row = tl.program_id(0).to(tl.int64)
    entry = tl.program_id(1) * ENTRIES + tl.arange(0, ENTRIES)
    valid = entry < entries
    id = tl.load(ids + row * entries + entry, mask=valid, other=0)
    products = tl.zeros((ENTRIES, COLUMNS), tl.float32)
    for first in range(0, width, COLUMNS):
        columns = first + tl.arange(0, COLUMNS)
        rows = _rows(embedding, row_stride, column_stride, vocab, width, id, valid, columns)
        de = tl.load(grad + row * width + columns, mask=columns < width, other=0.0)
        products += rows * de.to(tl.float32)[None, :]
    tl.store(
        dweights + row * entries + entry,
        tl.sum(products, axis=1).to(dweights.dtype.element_ty),
        mask=valid,
    )


@triton.jit(do_not_specialize=["total"])
def table_gradient_kernel(
    grad: tl.tensor,  # [N, D]
    sorted_ids: tl.tensor,  # [N * K], ascending
    order: tl.tensor,  # [N * K], where each of them was
    weights: tl.tensor,  # [N * K], as they were
    dembedding: tl.tensor,  # [V, D], zeros; rows that ids name are written
    vocab: tl.tensor,
    width: tl.tensor,
    entries: tl.tensor,
    total: tl.tensor,  # N * K
    ENTRIES: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    """One row of the table's gradient, by the program that is given the first entry of its id."""
    first = tl.program_id(0)
    id = tl.load(sorted_ids + first)
    before = tl.load(sorted_ids + first - 1, mask=first > 0, other=-1)
    if (id != before) & (id >= 0) & (id < vocab):
        columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
        sums = tl.zeros((COLUMNS,), tl.float32)
        at = first + tl.arange(0, ENTRIES)
        more = True
        while more:
            same = tl.load(sorted_ids + at, mask=at < total, other=-1) == id
            entry = tl.load(order + at, mask=same, other=0)
            weight = tl.load(weights + entry, mask=same, other=0.0).to(tl.float32)
            row = entry // entries
            de = tl.load(
                grad + row[:, None] * width + columns[None, :],
                mask=(weight != 0)[:, None] & (columns < width)[None, :],
                other=0.0,
            )
            sums += tl.sum(weight[:, None] * de.to(tl.float32), axis=0)
            at += ENTRIES
            more = tl.sum(same.to(tl.int32)) == ENTRIES
        tl.store(
            dembedding + id.to(tl.int64) * width + columns,
            sums.to(dembedding.dtype.element_ty),
            mask=columns < width,
        )
