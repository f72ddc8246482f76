"""Triton kernels of the latent draw.

Contract: as the reference's, in float32. Up to top_k = 64 logits are read once, by one kernel, and
a second one, a program per row, finds the best entries from what the first one left
(latent/row_scan_kernels.py), filters, perturbs and weighs them. For more entries keys of all logits
are written, the vendor's top-k sorts them, and a program per row works on what it found; rows come
in chunks, which bounds the memory. No tensor of the logits' size is made otherwise, unless their
rows are not dense.

Nothing waits for the device unless values are checked. The noise's words are the reference's
exactly, and so is what is kept, but for an entry whose preceding mass is within rounding of top_p.
Every bit of a row is the same in any batch, layout and precision of the input: maxima and keys have
no order, and sums one that sizes alone give (common/sum_kernels.py).
"""

import math
from typing import Any

from torch import Tensor

from lepo_kernels.backends.checks import check_draw, check_positive
from lepo_kernels.backends.triton.common.launching import device_of
from lepo_kernels.backends.triton.latent.draw import (
    NOISES,
    Draw,
    Outputs,
    dropped_flags,
    empty_fields,
)
from lepo_kernels.backends.triton.latent.launching import (
    NARROW_MOST,
    launch_narrow,
    launch_wide,
)

# Keys of so many entries at a time: 256 MiB of them.
_CHUNK_ENTRIES = 1 << 25


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
) -> Outputs:
    """Fields of `lepo_kernels.ops.sample_latent.LatentSample`, in its order."""
    check_positive("tau", tau, zero_included=True)
    check_positive("temperature", temperature)
    draw = Draw(
        logits if logits.stride(1) == 1 else logits.contiguous(),
        tau.contiguous(),
        temperature.contiguous(),
        dropped_flags(exclude_ids, logits.shape[1]),
        seed,
        None if row_keys is None else row_keys.contiguous(),
        step.contiguous(),
        top_k,
        float(top_p),
        math.log(min_p) if min_p > 0 else -math.inf,
        NOISES[noise],
        (noise_scale, clamp_low, clamp_high),
        num_draws,
    )
    fields = empty_fields(draw)
    with device_of(logits):
        if draw.rows > 0 and top_k <= NARROW_MOST:
            launch_narrow(draw, fields)
        elif draw.rows > 0:
            chunk = max(1, _CHUNK_ENTRIES // draw.vocab)
            for first in range(0, draw.rows, chunk):
                rows = slice(first, first + chunk)
                part: Any = tuple(x[rows] for x in fields)
                launch_wide(draw.part(rows), part)
    check_draw(fields, logits, noise, exclude_ids, step)
    return fields
