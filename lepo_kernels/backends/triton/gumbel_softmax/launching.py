"""What the launches of both forms of the dense Gumbel-softmax mixture share.

Scores, and weights in the backward pass, are held in float32 for a chunk of the vocabulary at a
time. Beside logits in memory these are 64 MiB, or 2048 ids where rows are many: up to 110 rows of
151936 ids are a single chunk. From hidden states they are as many as the caller asks for, or 128
ids where rows are many, and the backward pass holds the gradient of as many logits beside them, in
the dtype of the states. By default that is 256 MiB on CUDA, and 384 MiB for a backward pass in half
precision.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from lepo_kernels.backends.checks import check_positive, check_steps
from lepo_kernels.backends.triton.common import launching
from lepo_kernels.backends.triton.common.launching import UNFUSED, programs_wanted, stride_of
from lepo_kernels.structures import Noise
from lepo_kernels.validation import check_tensor

CHUNK = {"ENTRIES": 1 << 24, "LEAST_IDS": 2048}
_THINNEST = 128  # ids of a chunk whose size the caller bounds
# A program folds all tiles of a row's chunk: 8192 of the smallest ones.
_WIDEST = 1 << 18
# Not measured on a GPU yet, as all tiles.
COMBINE = {"COLUMNS": 1024, "num_warps": 4, **UNFUSED}
# 64 rows fill a tensor core of Hopper; for fewer there is a smaller tile.
_ROWS = (16, 64)
_SMALLEST_TILE = 16  # of a product on tensor cores


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
        """Arguments of a kernel, ``tau`` and its step."""
        return self.tau, stride_of(self.tau)

    def temperature_arguments(self) -> tuple[Any, ...]:
        """Arguments of a kernel, ``temperature`` and its step."""
        return self.temperature, stride_of(self.temperature)

    def noise_arguments(self) -> tuple[Any, ...]:
        """Arguments of a kernel, from the seed to the first id."""
        return self.seed, self.row_keys, self.step, stride_of(self.step), self.first_id

    def arguments(self) -> tuple[Any, ...]:
        """All of them, in this order."""
        return (*self.tau_arguments(), *self.temperature_arguments(), *self.noise_arguments())


def draws_of(
    rows: int,
    noise: Noise,
) -> Draws:
    """Checked; all tensors are on one device."""
    device = noise.row_keys.device
    for name, x, dtype in (
        ("tau", noise.tau, torch.float64),
        ("temperature", noise.temperature, torch.float64),
        ("step", noise.step, torch.int64),
    ):
        check_tensor(name, x, (1 if x.shape == (1,) else rows,), (dtype,), device)
    check_tensor("seed", noise.seed, (), (torch.int64,), device)
    check_tensor("row_keys", noise.row_keys, (rows,), (torch.int64,), device)
    return Draws(*noise.contiguous())


def check_values(draws: Draws) -> None:
    """Where values are checked, wait for the device and raise if one is out of range."""
    check_positive("tau", draws.tau, zero_included=True)
    check_positive("temperature", draws.temperature)
    check_steps(draws.step)


def options(
    table: dict[str, dict[str, int]], size: str, rows: int, device: torch.device, **least: int
) -> Any:
    """Tiles for this size of the factors; those that ``least`` names are no wider than need be.

    A device's family may have a row of its own, for all sizes or for one.
    """
    family = launching.device_family(device)
    names = (f"{family} {size}", family, size)
    chosen: dict[str, Any] = dict(next(table[name] for name in names if name in table))
    for name, needed in least.items():
        chosen[name] = min(chosen[name], max(_SMALLEST_TILE, triton.next_power_of_2(needed)))
    chosen["ROWS"] = _ROWS[0] if rows <= _ROWS[0] else chosen.get("ROWS", _ROWS[1])
    chosen["PRECISION"] = "ieee" if family == "rocm" else "tf32x3"
    return chosen


def is_split(table: Tensor) -> bool:
    """Whether float32 factors of a table are taken apart into two bfloat16 numbers."""
    return table.dtype == torch.bfloat16


def dtype_class_beside_floats(table: Tensor) -> str:
    """Of the factors, in a table of tiles, where those beside rows of ``table`` are float32."""
    return "half" if is_split(table) else "float"


@dataclass
class Chunk:
    """Ids whose scores or weights are held at a time."""

    first: int
    past: int
    width: int  # of the buffer

    @property
    def ids(self) -> int:
        """How many."""
        return self.past - self.first


def chunk_width(rows: int, vocab: int, entries: int | None = None) -> int:
    """How many ids' scores are held: no more than ``entries``, unless a chunk were too thin."""
    least = CHUNK["LEAST_IDS"] if entries is None else _THINNEST
    most = CHUNK["ENTRIES"] if entries is None else entries
    width = max(least, most // max(1, rows) // least * least)
    # So that 16 divides a row's bytes.
    return min(width, (vocab + 15) // 16 * 16, _WIDEST)


def chunks_of(vocab: int, width: int) -> Iterator[Chunk]:
    """In the order of their ids; all but the last one are full."""
    for first in range(0, vocab, width):
        yield Chunk(first, min(first + width, vocab), width)


def ids_per_split(ids: int, tile: int, programs: int, device: torch.device) -> int:
    """So many ids, whole tiles, that all splits of ``programs`` blocks keep the device busy."""
    splits = max(1, programs_wanted(device) // programs)
    tiles: int = triton.cdiv(triton.cdiv(ids, tile), splits)
    return tiles * tile
