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
from lepo_kernels.backends.rows import dense_rows
from lepo_kernels.backends.triton.common.launching import device_of
from lepo_kernels.backends.triton.latent.draw import (
    NOISES,
    KernelDraw,
    dropped_flags,
    empty_fields,
)
from lepo_kernels.backends.triton.latent.launching import (
    NARROW_MOST,
    launch_narrow,
    launch_wide,
)
from lepo_kernels.structures import Draw, DrawnFields

# Keys of so many entries at a time: 256 MiB of them.
_CHUNK_ENTRIES = 1 << 25


def sample_latent(
    logits: Tensor,  # [N, V]
    draw: Draw,
) -> DrawnFields:
    """Fields of `lepo_kernels.ops.sample_latent.LatentSample`, in its order."""
    tau, temperature, seed, step = draw.tensors(logits.device)
    check_positive("tau", tau, zero_included=True)
    check_positive("temperature", temperature)
    made = KernelDraw(
        dense_rows(logits),
        tau.contiguous(),
        temperature.contiguous(),
        dropped_flags(draw.exclude_ids, logits.shape[1]),
        seed,
        None if draw.row_keys is None else draw.row_keys.contiguous(),
        step.contiguous(),
        draw.top_k,
        float(draw.top_p),
        math.log(draw.min_p) if draw.min_p > 0 else -math.inf,
        NOISES[draw.noise],
        (draw.noise_scale, draw.clamp_low, draw.clamp_high),
        draw.num_draws,
    )
    fields = empty_fields(made)
    with device_of(logits):
        if made.rows > 0 and made.top_k <= NARROW_MOST:
            launch_narrow(made, fields)
        elif made.rows > 0:
            chunk = max(1, _CHUNK_ENTRIES // made.vocab)
            for first in range(0, made.rows, chunk):
                rows = slice(first, first + chunk)
                part: Any = tuple(x[rows] for x in fields)
                launch_wide(made.part(rows), part)
    check_draw(fields, logits, draw.noise, draw.exclude_ids, step)
    return fields
