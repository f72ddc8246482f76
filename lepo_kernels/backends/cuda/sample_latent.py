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

# As csrc/cuda/sample_latent.h numbers them.
_NOISES = {"none": 0, "gumbel": 1, "gaussian": 2, "dirichlet": 3, "categorical": 4}

_Outputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def sample_latent(
    logits: Tensor,  # [N, V]
    tau: Tensor | None,  # [N] or [1]; None: tau_number, and so for those below
    temperature: Tensor | None,  # [N] or [1]
    top_k: int,  # in [1, V]
    top_p: float,
    min_p: float,
    noise: str,
    noise_scale: float,
    clamp_low: float,
    clamp_high: float,
    num_draws: int,
    exclude_ids: Tensor | None,  # [M]
    seed: Tensor | None,  # []
    row_keys: Tensor | None,  # [N]; None numbers the rows
    step: Tensor | None,  # [N] or [1]
    tau_number: float = 1.0,
    temperature_number: float = 1.0,
    seed_number: int = 0,
    step_number: int = 0,
) -> _Outputs:
    """Fields of `lepo_kernels.ops.sample_latent.LatentSample`, in its order."""
    arguments = op_arguments(
        logits,
        tau,
        temperature,
        top_k,
        top_p,
        min_p,
        noise,
        noise_scale,
        clamp_low,
        clamp_high,
        num_draws,
        exclude_ids,
        seed,
        row_keys,
        step,
        tau_number,
        temperature_number,
        seed_number,
        step_number,
    )
    fields: _Outputs = torch.ops.lepo_kernels_cuda.sample_latent.default(*arguments)
    check_draw(fields, logits, noise, exclude_ids, step)
    return fields


def op_arguments(
    logits: Tensor,  # [N, V]
    tau: Tensor | None,  # [N] or [1]; None: tau_number, and so for those below
    temperature: Tensor | None,  # [N] or [1]
    top_k: int,
    top_p: float,
    min_p: float,
    noise: str,
    noise_scale: float,
    clamp_low: float,
    clamp_high: float,
    num_draws: int,
    exclude_ids: Tensor | None,  # [M]
    seed: Tensor | None,  # []
    row_keys: Tensor | None,  # [N]
    step: Tensor | None,  # [N] or [1]
    tau_number: float = 1.0,
    temperature_number: float = 1.0,
    seed_number: int = 0,
    step_number: int = 0,
) -> tuple[Any, ...]:
    """What the binding takes for these; checks those that the kernel divides by."""
    if tau is not None:
        check_positive("tau", tau, zero_included=True)
    if temperature is not None:
        check_positive("temperature", temperature)
    return (
        logits if logits.stride(1) == 1 else logits.contiguous(),
        _dense(tau),
        _dense(temperature),
        top_k,
        top_p,
        min_p,
        _NOISES[noise],
        noise_scale,
        clamp_low,
        clamp_high,
        num_draws,
        _dense(exclude_ids),
        seed,
        _dense(row_keys),
        _dense(step),
        tau_number,
        temperature_number,
        seed_number,
        step_number,
    )


def _dense(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()
