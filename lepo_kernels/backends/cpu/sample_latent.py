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

# As csrc/cpu/sample_latent.h numbers them.
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
    if logits.stride(1) != 1:
        logits = logits.contiguous()
    if exclude_ids is not None:
        exclude_ids = exclude_ids.contiguous()
    results = torch.ops.lepo_kernels_cpu.sample_latent.default(
        logits,
        tau.contiguous(),
        temperature.contiguous(),
        top_k,
        top_p,
        min_p,
        _NOISES[noise],
        noise_scale,
        clamp_low,
        clamp_high,
        num_draws,
        exclude_ids,
        seed,
        None if row_keys is None else row_keys.contiguous(),
        step.contiguous(),
    )
    fields: _Outputs = results[:-1]
    if not results[-1]:
        check_positive("tau", tau, zero_included=True)
        check_positive("temperature", temperature)
        check_rows("logits", fields[5])
        if exclude_ids is not None:
            check_ids("exclude_ids", exclude_ids, logits.shape[1])
            check_survivors(fields[6])
        check_steps(step)
    return fields
