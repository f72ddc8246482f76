"""Launches of the latent draw: a scan of the rows, then the narrow or the wide kernels."""

from typing import Any

import torch
import triton
from torch import Tensor

from lepo_kernels.backends.triton.common.launching import UNFUSED, stride_of
from lepo_kernels.backends.triton.latent.draw import KernelDraw
from lepo_kernels.backends.triton.latent.narrow_kernels import narrow_latent_kernel
from lepo_kernels.backends.triton.latent.row_kernels import CATEGORICAL
from lepo_kernels.backends.triton.latent.row_scan_kernels import (
    BLOCK,
    GROUP,
    UNIT,
    row_scan_kernel,
)
from lepo_kernels.backends.triton.latent.wide_kernels import (
    wide_draws_kernel,
    wide_filter_kernel,
    wide_keys_kernel,
    wide_perturb_kernel,
    wide_weigh_kernel,
)
from lepo_kernels.structures import DrawnFields

# Tiles and warps; not measured on a GPU yet. IDS and the size of a small vocabulary are whole
# groups of row_scan_kernels.py.
_SCAN = {"ROWS": 1, "IDS": 4096, "num_warps": 8, **UNFUSED}
_KEYS = {"ROWS": 1, "IDS": 2048, "num_warps": 4, **UNFUSED}
_NARROW = {"ROWS": 1, **UNFUSED}
_WIDE = {"ROWS": 1, "ENTRIES": 1024, "num_warps": 4, **UNFUSED}
_PERTURB = {"ROWS": 1, "ENTRIES": 256, "num_warps": 4, **UNFUSED}
# Of a row's statistics, read at once.
_UNITS = 512
_GROUPS = 512
# The most entries that one program selects; fewer than the least are as costly.
NARROW_MOST, _NARROW_LEAST = 64, 16


def _options(table: dict[str, Any], rows: int, **most: int) -> dict[str, Any]:
    """Tiles of a table; rows, and what ``most`` names, are no more than need be."""
    options = dict(table)
    for name, needed in {"ROWS": rows, **most}.items():
        options[name] = min(options[name], triton.next_power_of_2(needed))
    return options


def _scan(
    draw: KernelDraw,
) -> tuple[Tensor, Tensor, Tensor]:  # [N, 3, units], [N, blocks], [N, groups]
    """What row_scan_kernels.py leaves of the rows."""
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


def launch_narrow(
    draw: KernelDraw,
    fields: DrawnFields,  # written
) -> None:
    """Draw up to ``NARROW_MOST`` entries of each row."""
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
        stride_of(draw.tau),
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
        num_warps=8 if kept == NARROW_MOST else 4,
        **draw.filters(),
        **options,
    )


def launch_wide(
    draw: KernelDraw,
    fields: DrawnFields,  # written
) -> None:
    """Draw any number of entries of each row."""
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
        stride_of(draw.tau),
        *(weights, token),
        rows,
        top_k,
        **options,
    )


def _sorted_keys(draw: KernelDraw) -> Tensor:  # [N, top_k] int64
    """Keys of the best entries, descending: all keys differ, so that any sort is the same."""
    keys = torch.empty(draw.rows, draw.vocab, dtype=torch.int64, device=draw.logits.device)
    options = _options(_KEYS, draw.rows, IDS=draw.vocab)
    tiles = triton.cdiv(draw.vocab, options["IDS"])
    wide_keys_kernel[(triton.cdiv(draw.rows, options["ROWS"]) * tiles,)](
        *draw.tempered(), keys, draw.rows, draw.vocab, tiles, **options
    )
    return keys.topk(draw.top_k).values
