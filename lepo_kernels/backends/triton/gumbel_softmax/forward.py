"""Launches of the forward pass that both forms of the dense Gumbel-softmax mixture share.

A chunk takes three: the scores, which are the form's own, what they make of the rows' statistics,
and the product with the table. The second-level cache need not hold a chunk: the scores that a
product reads back are a fraction of the table, and smaller chunks would multiply the launches.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from lepo_kernels.backends.checks import check_rows
from lepo_kernels.backends.triton.common.launching import UNFUSED
from lepo_kernels.backends.triton.gumbel_softmax.launching import (
    COMBINE,
    Chunk,
    Draws,
    chunks_of,
    dtype_class_beside_floats,
    ids_per_split,
    is_split,
    options,
)
from lepo_kernels.backends.triton.gumbel_softmax.mixture_kernels import (
    combine_mixtures_kernel,
    mix_beside_peak_kernel,
)
from lepo_kernels.backends.triton.gumbel_softmax.statistics_kernels import (
    KNOWN,
    PARTS,
    STATISTICS,
    fold_statistics_kernel,
)

# Tiles, warps and stages of loads; not measured on a GPU yet.
FOLD = {"num_warps": 8, **UNFUSED}
# Datacenter Blackwell keeps the sums elsewhere, and would allow 128 registers, which spills.
_REGISTERS = {"maxnreg": 248}
_SPLIT_MIX = {
    "IDS": 64, "COLUMNS": 256, "num_warps": 8, "num_stages": 3, **_REGISTERS, **UNFUSED
}  # fmt: skip
_PLAIN_MIX = {"IDS": 32, "COLUMNS": 128, "num_warps": 8, "num_stages": 2, **UNFUSED}
# For a table whose factors are split, for others, and for any on ROCm. There is less shared memory
# there, and on the GPUs that have no family of their own.
MIX = {
    "half": _SPLIT_MIX,
    "other half": {**_SPLIT_MIX, "num_stages": 2},
    "float": {**_PLAIN_MIX, **_REGISTERS},
    "rocm": _PLAIN_MIX,
}


@dataclass
class Scores:
    """Scores of a chunk, and what an online softmax takes of them."""

    scores: Tensor  # [N, chunk]
    parts: Tensor  # [N, 9, tiles]
    peaks: Tensor  # [N, tiles]
    tiles: int  # of this chunk


# Writes the scores of a chunk; the tiles are those of its kernel.
ScoreWriter = Callable[[Chunk, Scores], None]


def forward(
    draws: Draws,
    width: int,
    ids_per_tile: int,
    write_scores: ScoreWriter,
    embedding: Tensor,  # [V, D]
    checked: str | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # [N, D], [N], [N], [N, D], [N, 8]
    """Mixtures, log-probabilities, log-densities, deviations and statistics, see the op.

    Args:
        draws: of the rows.
        width: of a chunk.
        ids_per_tile: of the kernel that writes scores.
        write_scores: launches it.
        embedding: the table.
        checked: what to call the logits where they are wrong; None does not check them.
    """
    rows, vocab, device = len(draws.row_keys), len(embedding), embedding.device
    floats: dict[str, Any] = {"dtype": torch.float32, "device": device}
    doubles: dict[str, Any] = {"dtype": torch.float64, "device": device}
    log_prob = torch.empty(rows, **floats)
    log_density = torch.empty_like(log_prob)
    statistics = torch.empty(rows, STATISTICS.value, **doubles)
    mixed = torch.empty(rows, embedding.shape[1], **floats)
    if rows > 0:
        tiles = triton.cdiv(width, ids_per_tile)
        buffer = torch.empty(rows, width, **floats)
        parts = torch.empty(rows, PARTS.value, tiles, **floats)
        peaks = torch.empty(rows, tiles, dtype=torch.int32, device=device)
        mixer = _Mixer(draws, embedding, width)
        for chunk in chunks_of(vocab, width):
            scores = Scores(buffer, parts, peaks, triton.cdiv(chunk.ids, ids_per_tile))
            write_scores(chunk, scores)
            fold_statistics_kernel[(rows,)](
                parts,
                peaks,
                *draws.tau_arguments(),
                mixer.known,
                mixer.carry,
                mixer.old_peaks,
                log_prob,
                log_density,
                statistics,
                chunk.first,
                vocab,
                scores.tiles,
                TILES=triton.next_power_of_2(tiles),
                **FOLD,
            )
            mixer.add(chunk, buffer)
        if checked is not None:
            check_rows(checked, log_prob)
        deviation = mixer.finish(statistics, mixed)
    else:
        deviation = torch.empty_like(mixed)
    return mixed, log_prob, log_density, deviation, statistics


class _Mixer:
    """The sums of a mixture beside its peak, which grow by a chunk at a time."""

    def __init__(
        self,
        draws: Draws,
        embedding: Tensor,  # [V, D]
        chunk_ids: int,
    ) -> None:
        self.draws, self.embedding = draws, embedding
        self.rows, self.width, device = len(draws.row_keys), embedding.shape[1], embedding.device
        self.options = options(
            MIX, dtype_class_beside_floats(embedding), self.rows, device, COLUMNS=self.width
        )
        self.row_blocks = triton.cdiv(self.rows, self.options["ROWS"])
        self.column_blocks = triton.cdiv(self.width, self.options["COLUMNS"])
        blocks = max(1, self.row_blocks * self.column_blocks)
        self.ids_per_split = ids_per_split(chunk_ids, self.options["IDS"], blocks, device)
        self.splits = triton.cdiv(chunk_ids, self.ids_per_split)
        floats: dict[str, Any] = {"dtype": torch.float32, "device": device}
        self.known = torch.empty(self.rows, KNOWN.value, dtype=torch.float64, device=device)
        self.carry = torch.empty(self.rows, 2, **floats)
        self.old_peaks = torch.empty(self.rows, dtype=torch.int32, device=device)
        self.sums = torch.empty(self.splits, self.rows, self.width, **floats)

    def add(
        self,
        chunk: Chunk,
        scores: Tensor,  # [N, chunk]
    ) -> None:
        if self.sums.numel() == 0:
            return
        mix_beside_peak_kernel[(self.row_blocks * self.column_blocks * self.splits,)](
            scores,
            chunk.width,
            *self.draws.tau_arguments(),
            self.known,
            self.carry,
            self.old_peaks,
            self.embedding,
            self.embedding.stride(0),
            self.sums,
            self.rows,
            chunk.first,
            chunk.past,
            self.width,
            self.row_blocks,
            self.column_blocks,
            self.ids_per_split,
            SPLIT=is_split(self.embedding),
            **self.options,
        )

    def finish(
        self,
        statistics: Tensor,  # [N, 8]
        mixed: Tensor,  # [N, D], written
    ) -> Tensor:  # [N, D]
        """The deviations."""
        deviation = torch.empty_like(mixed)
        if mixed.numel() > 0:
            combine_mixtures_kernel[(self.rows, triton.cdiv(self.width, COMBINE["COLUMNS"]))](
                self.sums,
                statistics,
                self.embedding,
                self.embedding.stride(0),
                mixed,
                deviation,
                self.rows,
                self.width,
                self.splits,
                **COMBINE,
            )
        return deviation
