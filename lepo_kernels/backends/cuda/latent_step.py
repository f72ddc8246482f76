"""CUDA kernels of a decoding step: csrc/cuda/bindings/latent_step.cpp.

Contract: the bits of `sample_latent` and of `mix_embeddings` after it. One call launches both, so
that nothing but the device is between them.
"""

import torch
from torch import Tensor

from lepo_kernels.backends.checks import check_draw
from lepo_kernels.backends.cuda.sample_latent import op_arguments
from lepo_kernels.backends.rows import dense_rows
from lepo_kernels.structures import Draw


def latent_step(
    logits: Tensor,  # [N, V]
    embedding: Tensor,  # [V or more, D]
    draw: Draw,
) -> tuple[Tensor, ...]:
    """Fields of `lepo_kernels.ops.sample_latent.LatentSample`, in its order, and the mixture."""
    dense, *arguments = op_arguments(logits, draw)
    results: tuple[Tensor, ...] = torch.ops.lepo_kernels_cuda.latent_step.default(
        dense, dense_rows(embedding), *arguments
    )
    check_draw(results, logits, draw.noise, draw.exclude_ids, draw.step)
    return results
