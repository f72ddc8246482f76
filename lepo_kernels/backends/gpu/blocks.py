"""How the [N, V] logits of a head are cut, and what belongs to a block of them."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from lepo_kernels.structures import Head, Selection, per_row

# The row kernels' unit of summation: where the vocabulary may be cut.
UNIT = 512
# More rows would not make the products faster, and leave narrower parts of the vocabulary.
MOST_ROWS = 8192
# Rows of a matrix begin at multiples of so many entries. Products and row kernels want 16 bytes at
# least, which those of an odd vocabulary would miss; 64 entries are whole lines of the memory.
_ALIGNMENT = 64


class Blocks(NamedTuple):
    """How [N, V] logits are cut so that no block is too large."""

    rows: list[slice]
    columns: list[slice]


def blocks_of(rows: int, vocab: int, chunk_size: int) -> Blocks:
    """Cut into blocks of at most ``chunk_size * vocab`` logits, of like sizes."""
    entries = chunk_size * vocab
    height = max(1, min(rows, MOST_ROWS, entries // min(vocab, UNIT)))
    # In units; a vocabulary of less than one is not cut.
    width = max(1, entries // height // UNIT)
    return Blocks(
        even_slices(rows, height, 1),
        even_slices(vocab, width * UNIT, UNIT),
    )


def aligned_matrix(
    rows: int,
    columns: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:  # [rows, columns], each row aligned
    """Memory to be written, with a gap behind each row where their length asks for it."""
    stride = -(-columns // _ALIGNMENT) * _ALIGNMENT
    return torch.empty((rows, stride), dtype=dtype, device=device)[:, :columns]


def even_slices(count: int, most: int, unit: int) -> list[slice]:
    """Slices of at most ``most``, a multiple of ``unit``, cut at multiples of it."""
    pieces = -(-count // most)
    size = -(-count // (max(pieces, 1) * unit)) * unit
    return [slice(first, min(first + size, count)) for first in range(0, count, max(size, 1))]


class HeadPart(NamedTuple):
    """The part of a language-model head that belongs to ``columns`` of the vocabulary."""

    columns: slice
    weight: Tensor  # [C, D]
    bias: Tensor | None  # [C] float32
    softcap: float


def head_parts(
    columns: list[slice],
    head: Head,
) -> Iterator[HeadPart]:
    """Cut a head at ``columns``."""
    lm_head, bias, softcap = head.lm_head, head.bias, head.softcap
    wide = None if bias is None else bias.float().contiguous()
    for part in columns:
        part_bias = None if wide is None else wide[part]
        yield HeadPart(part, lm_head[part], part_bias, softcap or 0.0)


class Rows(NamedTuple):
    """What the kernels read of each row."""

    hidden: Tensor  # [M, D]
    ids: Tensor  # [M, K] int64
    inv_temperature: Tensor  # [M] or [1]

    def block(self, rows: slice) -> "Rows":
        """Some of them."""
        return Rows(self.hidden[rows], self.ids[rows], per_row(self.inv_temperature, rows))


def may_wait(like: Tensor) -> bool:
    """Whether the host may wait for the GPU."""
    return not (like.is_cuda and torch.cuda.is_current_stream_capturing())


def take_rows(
    x: Tensor,  # [N, ...]
    rows: Tensor | None,  # [M]
) -> Tensor:  # [M, ...] or [N, ...]
    """Some of the rows; None stands for all."""
    return x if rows is None or len(rows) == len(x) else x[rows]


def rows_of(
    hidden: Tensor,  # [N, D]
    selection: Selection,
    taken: Tensor | None,  # [M]
) -> Rows:
    """Some of the rows, as the kernels read them; None stands for all."""
    ids, inv_temperature = selection.ids, selection.inv_temperature
    if len(inv_temperature) > 1:
        inv_temperature = take_rows(inv_temperature, taken)
    return Rows(
        take_rows(hidden, taken),
        take_rows(ids, taken).long().contiguous(),
        inv_temperature.contiguous(),
    )
