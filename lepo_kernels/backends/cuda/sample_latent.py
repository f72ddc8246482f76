"""CUDA kernel of the latent draw: csrc/cuda/sample_latent.cuh.

Contract: as the reference's, in float32. Up to top_k = 64 logits are read once, in one launch; no
tensor of their size is made unless their rows are not dense. Tau, temperature, seed and step are
passed by value if they are numbers, and read on the device, as row keys and excluded ids are, if
they are tensors: nothing waits for it, and a CUDA graph can hold the call, unless values are
checked. The noise's words are the reference's exactly, and so is what is kept, but for an entry
whose preceding mass is within rounding of top_p. Every bit of a row is the same in any batch,
layout and precision of the input.
"""

from typing import Any

import torch
from torch import Tensor

from lepo_kernels.backends.checks import check_draw, check_positive
from lepo_kernels.structures import Draw, DrawnFields

# As csrc/cuda/sample_latent.h numbers them.
_NOISES = {"none": 0, "gumbel": 1, "gaussian": 2, "dirichlet": 3, "categorical": 4}


def sample_latent(
    logits: Tensor,  # [N, V]
    draw: Draw,
) -> DrawnFields:
    """Fields of `lepo_kernels.ops.sample_latent.LatentSample`, in its order."""
    arguments = op_arguments(logits, draw)
    fields: DrawnFields = torch.ops.lepo_kernels_cuda.sample_latent.default(*arguments)
    check_draw(fields, logits, draw.noise, draw.exclude_ids, draw.step)
    return fields


def op_arguments(
    logits: Tensor,  # [N, V]
    draw: Draw,
) -> tuple[Any, ...]:
    """What the binding takes for these; checks those that the kernel divides by."""
    if draw.tau is not None:
        check_positive("tau", draw.tau, zero_included=True)
    if draw.temperature is not None:
        check_positive("temperature", draw.temperature)
    return (
        logits if logits.stride(1) == 1 else logits.contiguous(),
        _dense(draw.tau),
        _dense(draw.temperature),
        draw.top_k,
        draw.top_p,
        draw.min_p,
        _NOISES[draw.noise],
        draw.noise_scale,
        draw.clamp_low,
        draw.clamp_high,
        draw.num_draws,
        _dense(draw.exclude_ids),
        draw.seed,
        _dense(draw.row_keys),
        _dense(draw.step),
        draw.tau_number,
        draw.temperature_number,
        draw.seed_number,
        draw.step_number,
    )


def _dense(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()
