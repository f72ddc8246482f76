"""CPU kernel of the latent draw: csrc/cpu/sample_latent.cpp.

Contract: as the reference's, in float32; logits are read once, and no tensor of their size is made
unless their rows are not dense. The noise's words are the reference's exactly, and so is what is
kept, but for an entry whose preceding mass is within rounding of top_p. Every bit of a row is the
same on any number of threads and in any batch.
"""

import torch
from torch import Tensor

from lepo_kernels.backends.checks import (
    check_ids,
    check_positive,
    check_rows,
    check_steps,
    check_survivors,
)
from lepo_kernels.structures import Draw, DrawnFields

# As csrc/cpu/sample_latent.h numbers them.
_NOISES = {"none": 0, "gumbel": 1, "gaussian": 2, "dirichlet": 3, "categorical": 4}


def sample_latent(
    logits: Tensor,  # [N, V]
    draw: Draw,
) -> DrawnFields:
    """Fields of `lepo_kernels.ops.sample_latent.LatentSample`, in its order."""
    tau, temperature, seed, step = draw.tensors(logits.device)
    exclude_ids, row_keys = draw.exclude_ids, draw.row_keys
    results = torch.ops.lepo_kernels_cpu.sample_latent.default(
        logits if logits.stride(1) == 1 else logits.contiguous(),
        tau.contiguous(),
        temperature.contiguous(),
        draw.top_k,
        draw.top_p,
        draw.min_p,
        _NOISES[draw.noise],
        draw.noise_scale,
        draw.clamp_low,
        draw.clamp_high,
        draw.num_draws,
        None if exclude_ids is None else exclude_ids.contiguous(),
        seed,
        None if row_keys is None else row_keys.contiguous(),
        step.contiguous(),
    )
    fields: DrawnFields = results[:-1]
    if not results[-1]:
        check_positive("tau", tau, zero_included=True)
        check_positive("temperature", temperature)
        check_rows("logits", fields[5])
        if exclude_ids is not None:
            check_ids("exclude_ids", exclude_ids, logits.shape[1])
            check_survivors(fields[6])
        check_steps(step)
    return fields
