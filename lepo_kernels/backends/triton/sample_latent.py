"""Triton kernels of the latent draw.

Contract: as the reference's, in float32. Up to top_k = 64 logits are read once, by one kernel, and
a second one, a program per row, finds the best entries from what the first one left (row_scan.py),
filters, perturbs and weighs them. For more entries keys of all logits are written, the vendor's
top-k sorts them, and a program per row works on what it found; rows come in chunks, which bounds
the memory. No tensor of the logits' size is made otherwise, unless their rows are not dense.

Nothing waits for the device unless values are checked. The noise's words are the reference's
exactly, and so is what is kept, but for an entry whose preceding mass is within rounding of top_p.
Every bit of a row is the same in any batch, layout and precision of the input: maxima and keys have
no order, and sums one that sizes alone give (sums.py).
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
import triton
from torch import Tensor

from lepo_kernels.backends.draw_checks import check_draw
from lepo_kernels.backends.reference.numerics import check_positive, per_row
from lepo_kernels.backends.triton.latent_row import CATEGORICAL
from lepo_kernels.backends.triton.launching import UNFUSED, device_of, step_of
from lepo_kernels.backends.triton.narrow_latent import narrow_latent_kernel
from lepo_kernels.backends.triton.row_scan import BLOCK, GROUP, UNIT, row_scan_kernel
from lepo_kernels.backends.triton.wide_latent import (
    wide_draws_kernel,
    wide_filter_kernel,
    wide_keys_kernel,
    wide_perturb_kernel,
    wide_weigh_kernel,
)

# Tiles and warps; not measured on a GPU yet. IDS and the size of a small vocabulary are whole
# groups of row_scan.py.
_SCAN = {"ROWS": 1, "IDS": 4096, "num_warps": 8, **UNFUSED}
_KEYS = {"ROWS": 1, "IDS": 2048, "num_warps": 4, **UNFUSED}
_NARROW = {"ROWS": 1, **UNFUSED}
_WIDE = {"ROWS": 1, "ENTRIES": 1024, "num_warps": 4, **UNFUSED}
_PERTURB = {"ROWS": 1, "ENTRIES": 256, "num_warps": 4, **UNFUSED}
# Of a row's statistics, read at once.
_UNITS = 512
_GROUPS = 512
# The most entries that one program selects; fewer than the least are as costly.
_NARROW_MOST, _NARROW_LEAST = 64, 16
# Keys of so many entries at a time: 256 MiB of them.
_CHUNK_ENTRIES = 1 << 25
_NOISES = {"none": 0, "gumbel": 1, "gaussian": 2, "dirichlet": 3, "categorical": 4}

_Outputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def sample_latent(
    logits: Tensor,  # [N, V]
    tau: Tensor,  # [N] or [1]
    temperature: Tensor,  # [N] or [1]
    top_k: int,  # in [1, V]
    top_p: float,
    min_p: float,
    noise: str,
    noise_scale: float,
    clamp_low: float,
    clamp_high: float,
    num_draws: int,
    exclude_ids: Tensor | None,  # [M]
    seed: Tensor,  # []
    row_keys: Tensor | None,  # [N]; None numbers the rows
    step: Tensor,  # [N] or [1]
) -> _Outputs:
    """Fields of `lepo_kernels.ops.sample_latent.LatentSample`, in its order."""
    check_positive("tau", tau, zero_included=True)
    check_positive("temperature", temperature)
    draw = _Draw(
        logits if logits.stride(1) == 1 else logits.contiguous(),
        tau.contiguous(),
        temperature.contiguous(),
        _dropped(exclude_ids, logits.shape[1]),
        seed,
        None if row_keys is None else row_keys.contiguous(),
        step.contiguous(),
        top_k,
        float(top_p),
        math.log(min_p) if min_p > 0 else -math.inf,
        _NOISES[noise],
        (noise_scale, clamp_low, clamp_high),
        num_draws,
    )
    fields = _empty_fields(draw)
    with device_of(logits):
        if draw.rows > 0 and top_k <= _NARROW_MOST:
            _narrow(draw, fields)
        elif draw.rows > 0:
            chunk = max(1, _CHUNK_ENTRIES // draw.vocab)
            for first in range(0, draw.rows, chunk):
                rows = slice(first, first + chunk)
                part: Any = tuple(x[rows] for x in fields)
                _wide(draw.part(rows), part)
    check_draw(fields, logits, noise, exclude_ids, step)
    return fields


@dataclass(frozen=True)
class _Draw:
    """The arguments of a draw, as the kernels take them."""

    logits: Tensor  # [N, V], entries of a row are neighbours
    tau: Tensor  # [N] or [1]
    temperature: Tensor  # [N] or [1]
    dropped: Tensor | None  # [V + 1] int8
    seed: Tensor  # []
    row_keys: Tensor | None  # [N]
    step: Tensor  # [N] or [1]
    top_k: int
    top_p: float
    log_min_p: float
    noise: int
    noise_numbers: tuple[float, float, float]  # scale, and the clamp's ends
    num_draws: int
    first_row: int = 0

    @property
    def rows(self) -> int:
        return self.logits.shape[0]

    @property
    def vocab(self) -> int:
        return self.logits.shape[1]

    @property
    def width(self) -> int:
        """Of the outputs."""
        return self.num_draws if self.noise == CATEGORICAL.value else self.top_k

    def part(self, rows: slice) -> "_Draw":
        """The draw of some of the rows."""
        return replace(
            self,
            logits=self.logits[rows],
            tau=per_row(self.tau, rows),
            temperature=per_row(self.temperature, rows),
            row_keys=None if self.row_keys is None else self.row_keys[rows],
            step=per_row(self.step, rows),
            first_row=self.first_row + rows.start,
        )

    def tempered(self) -> tuple[Any, ...]:
        """Arguments of a kernel, from the logits to the excluded ids."""
        stride = self.logits.stride(0)
        return self.logits, stride, self.temperature, step_of(self.temperature), self.dropped

    def key(self) -> tuple[Any, ...]:
        """Arguments of a kernel that the noise depends on."""
        return self.seed, self.row_keys, self.step, step_of(self.step)

    def filters(self) -> dict[str, bool]:
        return {"NUCLEUS": self.top_p < 1}


def _dropped(
    exclude_ids: Tensor | None,  # [M]
    vocab: int,
) -> Tensor | None:  # [vocab + 1] int8
    """1 for excluded ids; those out of range are all clamped to the last place, which is none."""
    if exclude_ids is None:
        return None
    flags = torch.zeros(vocab + 1, dtype=torch.int8, device=exclude_ids.device)
    return flags.index_fill_(0, exclude_ids.clamp(-1, vocab), 1)


def _empty_fields(draw: _Draw) -> _Outputs:
    rows, device = draw.rows, draw.logits.device

    def entries(dtype: torch.dtype) -> Tensor:
        return torch.empty(rows, draw.width, dtype=dtype, device=device)

    def per_row(dtype: torch.dtype) -> Tensor:
        return torch.empty(rows, dtype=dtype, device=device)

    real = torch.float32
    return (
        entries(torch.int64),
        *(entries(real), entries(real), entries(real)),
        per_row(torch.int32),
        *(per_row(real), per_row(real), per_row(real)),
        *(per_row(torch.int64), per_row(torch.int64)),
    )


def _options(table: dict[str, Any], rows: int, **most: int) -> dict[str, Any]:
    """Tiles of a table; rows, and what ``most`` names, are no more than need be."""
    options = dict(table)
    for name, needed in {"ROWS": rows, **most}.items():
        options[name] = min(options[name], triton.next_power_of_2(needed))
    return options


def _scan(draw: _Draw) -> tuple[Tensor, Tensor, Tensor]:  # [N, 3, units], [N, blocks], [N, groups]
    """What row_scan.py leaves of the rows."""
    rows, vocab = draw.rows, draw.vocab
    options = _options(_SCAN, rows, IDS=max(GROUP.value, vocab))
    tiles = triton.cdiv(vocab, options["IDS"])
    padded = tiles * options["IDS"]
    empty = torch.empty(0, dtype=torch.float32, device=draw.logits.device)
    units = empty.new_empty(rows, 3, padded // UNIT.value)
    blocks = empty.new_empty(rows, padded // BLOCK.value)
    groups = empty.new_empty(rows, padded // GROUP.value)
    row_scan_kernel[(triton.cdiv(rows, options["ROWS"]) * tiles,)](
        *draw.tempered(), units, blocks, groups, rows, vocab, tiles, **options
    )
    return units, blocks, groups


def _narrow(
    draw: _Draw,
    fields: _Outputs,  # written
) -> None:
    rows, (units, blocks, groups) = draw.rows, _scan(draw)
    unit_count, group_count = units.shape[2], groups.shape[1]
    kept = triton.next_power_of_2(max(_NARROW_LEAST, draw.top_k))
    options = _options(_NARROW, rows)
    narrow_latent_kernel[(triton.cdiv(rows, options["ROWS"]),)](
        *draw.tempered(),
        units,
        blocks,
        groups,
        draw.tau,
        step_of(draw.tau),
        *draw.key(),
        *fields,
        rows,
        draw.vocab,
        unit_count,
        group_count,
        draw.top_k,
        draw.width,
        draw.top_p,
        draw.log_min_p,
        *draw.noise_numbers,
        1 / draw.num_draws,
        UNITS=min(_UNITS, triton.next_power_of_2(unit_count)),
        GROUPS=max(kept, min(_GROUPS, triton.next_power_of_2(group_count))),
        KEPT=kept,
        NOISE=draw.noise,
        num_warps=8 if kept == _NARROW_MOST else 4,
        **draw.filters(),
        **options,
    )


def _wide(
    draw: _Draw,
    fields: _Outputs,  # written
) -> None:
    ids, weights, scores, values_at, count, lse, kept_lse, entropy, shadow, token = fields
    rows, top_k, device = draw.rows, draw.top_k, draw.logits.device
    units, _, _ = _scan(draw)
    keys = _sorted_keys(draw)
    options = _options(_WIDE, rows, ENTRIES=top_k)
    grid = (triton.cdiv(rows, options["ROWS"]),)
    kept_count = torch.empty(rows, dtype=torch.int32, device=device)
    numbers = torch.empty(rows, 2, dtype=torch.float32, device=device)
    wide_filter_kernel[grid](
        keys,
        units,
        kept_count,
        numbers,
        lse,
        kept_lse,
        entropy,
        shadow,
        rows,
        units.shape[2],
        top_k,
        draw.top_p,
        draw.log_min_p,
        draw.noise_numbers[0],
        UNITS=min(_UNITS, triton.next_power_of_2(units.shape[2])),
        NOISE=draw.noise,
        **draw.filters(),
        **options,
    )
    if draw.noise == CATEGORICAL.value:
        wide_draws_kernel[(*grid, draw.width)](
            keys,
            kept_count,
            *draw.key(),
            *(ids, weights, scores, values_at, count, token),
            rows,
            draw.first_row,
            top_k,
            draw.width,
            1 / draw.num_draws,
            **options,
        )
        return
    count.copy_(kept_count)
    tiles = _options(_PERTURB, rows, ENTRIES=top_k)
    programs = (triton.cdiv(rows, tiles["ROWS"]), triton.cdiv(top_k, tiles["ENTRIES"]))
    wide_perturb_kernel[programs](
        keys,
        kept_count,
        numbers,
        *draw.key(),
        *(ids, scores, values_at),
        rows,
        draw.first_row,
        top_k,
        *draw.noise_numbers,
        NOISE=draw.noise,
        **tiles,
    )
    wide_weigh_kernel[grid](
        *(ids, scores, kept_count),
        draw.tau,
        step_of(draw.tau),
        *(weights, token),
        rows,
        top_k,
        **options,
    )


def _sorted_keys(draw: _Draw) -> Tensor:  # [N, top_k] int64
    """Keys of the best entries, descending: all keys differ, so that any sort is the same."""
    keys = torch.empty(draw.rows, draw.vocab, dtype=torch.int64, device=draw.logits.device)
    options = _options(_KEYS, draw.rows, IDS=draw.vocab)
    tiles = triton.cdiv(draw.vocab, options["IDS"])
    wide_keys_kernel[(triton.cdiv(draw.rows, options["ROWS"]) * tiles,)](
        *draw.tempered(), keys, draw.rows, draw.vocab, tiles, **options
    )
    return keys.topk(draw.top_k).values
