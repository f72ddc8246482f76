"""Launches that both forms of the dense Gumbel-softmax mixture share: from logits, and from states.

Scores, and weights in the backward pass, are held for a chunk of the vocabulary at a time: 64 MiB of
float32, or 2048 ids where rows are many. So up to 110 rows of 151936 ids are a single chunk. Chunks
that stay in the second-level cache would save nothing but reading the scores back, which are a
fraction of the table, and would multiply the launches.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from lepo_kernels.backends.reference.gumbel_softmax_embedding import log_density_of
from lepo_kernels.backends.reference.numerics import check_positive, check_rows, check_steps
from lepo_kernels.backends.triton.gumbel_softmax_gradients import (
    UPSTREAM,
    dense_table_gradient_kernel,
    upstream_kernel,
)
from lepo_kernels.backends.triton.gumbel_softmax_mixtures import (
    combine_mixtures_kernel,
    mix_beside_peak_kernel,
)
from lepo_kernels.backends.triton.gumbel_softmax_statistics import (
    KNOWN,
    PARTS,
    STATISTICS,
    fold_statistics_kernel,
)
from lepo_kernels.backends.triton.launching import programs_wanted
from lepo_kernels.validation import FLOAT_DTYPES, check_tensor

# The sum of a product is not fused: every kernel must find the same bits of q.
UNFUSED = {"enable_fp_fusion": False}
CHUNK = {"ENTRIES": 1 << 24, "LEAST_IDS": 2048}
_THINNEST = 128  # ids of a chunk whose size the caller bounds
# Tiles, warps and stages of loads; not measured on a GPU yet. IDS are multiples of 4.
FOLD = {"num_warps": 8, **UNFUSED}
COMBINE = {"COLUMNS": 1024, "num_warps": 4, **UNFUSED}
# 64 rows fill a tensor core of Hopper; for fewer there is a smaller tile.
_ROWS = (16, 64)
_SMALLEST_TILE = 16  # of a product on tensor cores
# For a bfloat16 table, for others, and for any on ROCm, where there is less shared memory.
MIX = {
    # Blackwell keeps the sums elsewhere, and would allow a thread 128 registers, which spills.
    "bfloat16": {
        "IDS": 64,
        "COLUMNS": 256,
        "num_warps": 8,
        "num_stages": 3,
        "maxnreg": 248,
        **UNFUSED,
    },
    "float": {"IDS": 32, "COLUMNS": 128, "num_warps": 8, "num_stages": 2, **UNFUSED},
    "rocm": {"IDS": 32, "COLUMNS": 128, "num_warps": 8, "num_stages": 2, **UNFUSED},
}
TABLE_GRADIENT = {
    "bfloat16": {
        "ROWS": 32,
        "IDS": 128,
        "COLUMNS": 128,
        "num_warps": 8,
        "num_stages": 1,
        **UNFUSED,
    },
    "float": {
        "ROWS": 32,
        "IDS": 64,
        "COLUMNS": 128,
        "num_warps": 8,
        "num_stages": 1,
        **UNFUSED,
    },
    "rocm": {"ROWS": 32, "IDS": 64, "COLUMNS": 64, "num_warps": 8, "num_stages": 1, **UNFUSED},
}


@dataclass
class Draws:
    """What the noise and the weights of rows depend on beside their logits."""

    tau: Tensor  # [N] or [1]
    temperature: Tensor  # [N] or [1]
    seed: Tensor  # []
    row_keys: Tensor  # [N]
    step: Tensor  # [N] or [1]
    first_id: int

    def tau_arguments(self) -> tuple[Any, ...]:
        return self.tau, _stride_of(self.tau)

    def arguments(self) -> tuple[Any, ...]:
        """Arguments of a kernel, from the temperature to the first id."""
        return (
            *self.tau_arguments(),
            self.temperature,
            _stride_of(self.temperature),
            self.seed,
            self.row_keys,
            self.step,
            _stride_of(self.step),
            self.first_id,
        )


def draws_of(
    rows: int,
    tau: Tensor,  # [N] or [1]
    temperature: Tensor,  # [N] or [1]
    seed: Tensor,  # []
    row_keys: Tensor,  # [N]
    step: Tensor,  # [N] or [1]
    first_id: int,
) -> Draws:
    """Checked; all tensors are on one device."""
    device = row_keys.device
    for name, x, dtype in (
        ("tau", tau, torch.float64),
        ("temperature", temperature, torch.float64),
        ("step", step, torch.int64),
    ):
        check_tensor(name, x, (1 if x.shape == (1,) else rows,), (dtype,), device)
    check_tensor("seed", seed, (), (torch.int64,), device)
    check_tensor("row_keys", row_keys, (rows,), (torch.int64,), device)
    dense = (x.contiguous() for x in (tau, temperature, seed, row_keys, step))
    return Draws(*dense, first_id)


def check_values(draws: Draws) -> None:
    check_positive("tau", draws.tau, zero_included=True)
    check_positive("temperature", draws.temperature)
    check_steps(draws.step)


def dense_rows(x: Tensor) -> Tensor:  # [rows, columns]
    """Rows may lie apart, and be the same one; their entries are neighbours."""
    return x if x.stride(1) == 1 else x.contiguous()


def _stride_of(per_row: Tensor) -> int:
    return 0 if per_row.numel() == 1 else 1


def options(table: dict[str, dict[str, int]], rows: int, like: Tensor, **least: int) -> Any:
    """Tiles for a table of this dtype; those that ``least`` names are no wider than need be."""
    size = (
        "rocm" if torch.version.hip else ("bfloat16" if like.dtype == torch.bfloat16 else "float")
    )
    chosen: dict[str, Any] = dict(table[size])
    for name, needed in least.items():
        chosen[name] = min(chosen[name], max(_SMALLEST_TILE, triton.next_power_of_2(needed)))
    chosen["ROWS"] = _ROWS[0] if rows <= _ROWS[0] else chosen.get("ROWS", _ROWS[1])
    chosen["PRECISION"] = "ieee" if torch.version.hip else "tf32x3"
    return chosen


def is_split(table: Tensor) -> bool:
    """Whether float32 factors of a table are taken apart into two bfloat16 numbers."""
    return table.dtype == torch.bfloat16


@dataclass
class Chunk:
    """Ids whose scores or weights are held at a time."""

    first: int
    past: int
    width: int  # of the buffer

    @property
    def ids(self) -> int:
        return self.past - self.first


def chunk_width(rows: int, vocab: int, entries: int | None = None) -> int:
    """How many ids' scores are held: no more than ``entries``, unless a chunk were too thin."""
    least = CHUNK["LEAST_IDS"] if entries is None else _THINNEST
    most = CHUNK["ENTRIES"] if entries is None else min(entries, CHUNK["ENTRIES"])
    width = max(least, most // max(1, rows) // least * least)
    # So that 16 divides a row's bytes.
    return min(width, triton.cdiv(vocab, 16) * 16)


def chunks_of(vocab: int, width: int) -> Iterator[Chunk]:
    for first in range(0, vocab, width):
        yield Chunk(first, min(first + width, vocab), width)


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
    return mixed, log_prob, log_density_of(statistics, draws.tau, torch.float32), deviation, statistics


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
        self.options = options(MIX, self.rows, embedding, COLUMNS=self.width)
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


def ids_per_split(ids: int, tile: int, programs: int, device: torch.device) -> int:
    """So many ids, whole tiles, that all splits of ``programs`` blocks keep the device busy."""
    splits = max(1, programs_wanted(device) // programs)
    tiles: int = triton.cdiv(triton.cdiv(ids, tile), splits)
    return tiles * tile


@dataclass
class Upstream:
    """What the gradient kernels take of the upstream gradients and the forward pass."""

    high: Tensor  # [N, D]
    low: Tensor  # [N, D]
    upstream: Tensor  # [N, 4]
    statistics: Tensor  # [N, 8]
    order: Tensor  # [N], rows with gradients first
    count: Tensor  # [], how many they are


def upstream_of(
    draws: Draws,
    grad_embedding: Tensor,  # [N, D]
    grad_log_prob: Tensor,  # [N]
    grad_log_density: Tensor,  # [N]
    mixed: Tensor,  # [N, D]
    deviation: Tensor,  # [N, D]
    statistics: Tensor,  # [N, 8]
    embedding: Tensor,  # [V, D]
) -> Upstream:
    """At least one row."""
    rows, width, device = len(draws.row_keys), embedding.shape[1], embedding.device
    check_tensor("grad_embedding", grad_embedding, (rows, width), FLOAT_DTYPES, device)
    check_tensor("grad_log_prob", grad_log_prob, (rows,), FLOAT_DTYPES, device)
    check_tensor("grad_log_density", grad_log_density, (rows,), FLOAT_DTYPES, device)
    check_tensor("mixed", mixed, (rows, width), FLOAT_DTYPES, device)
    check_tensor("deviation", deviation, (rows, width), FLOAT_DTYPES, device)
    check_tensor("statistics", statistics, (rows, STATISTICS.value), (torch.float64,), device)
    split = is_split(embedding)
    high = torch.empty(
        rows, width, dtype=torch.bfloat16 if split else torch.float32, device=device
    )
    low = torch.empty_like(high) if split else high
    upstream = torch.empty(rows, UPSTREAM.value, dtype=torch.float32, device=device)
    idle = torch.empty(rows, dtype=torch.int8, device=device)
    statistics = statistics.contiguous()
    upstream_kernel[(rows,)](
        grad_embedding.contiguous(),
        grad_log_prob.contiguous(),
        grad_log_density.contiguous(),
        *draws.tau_arguments(),
        mixed.contiguous(),
        deviation.contiguous(),
        statistics,
        upstream,
        idle,
        high,
        low,
        width,
        SPLIT=split,
        **COMBINE,
    )
    # Stable: a row's place depends on nothing but which rows have gradients.
    order, count = idle.argsort(stable=True), rows - idle.sum()
    return Upstream(high, low, upstream, statistics, order, count)


def table_gradient(
    chunk: Chunk,
    weights: Tensor,  # [N, chunk]
    upstream: Upstream,
    dembedding: Tensor,  # [V, D], written
) -> None:
    width = dembedding.shape[1]
    tiles = options(TABLE_GRADIENT, len(weights), dembedding, COLUMNS=width)
    column_blocks = triton.cdiv(width, tiles["COLUMNS"])
    dense_table_gradient_kernel[(column_blocks * triton.cdiv(chunk.ids, tiles["IDS"]),)](
        weights,
        chunk.width,
        upstream.high,
        upstream.low,
        upstream.order,
        upstream.count,
        dembedding,
        chunk.first,
        chunk.past,
        width,
        column_blocks,
        SPLIT=is_split(dembedding),
        **tiles,
    )
