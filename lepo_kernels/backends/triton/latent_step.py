"""Triton kernels of a decoding step: the draw, then the mixture.

Contract: the bits of the backend's ``sample_latent`` and of its ``mix_embeddings`` after it.
"""

from typing import Any

from torch import Tensor

from lepo_kernels.backends.triton.mix_embeddings import mix_embeddings
from lepo_kernels.backends.triton.sample_latent import sample_latent


def latent_step(
    logits: Tensor,  # [N, V]
    embedding: Tensor,  # [V or more, D]
    *draw: Any,  # the other arguments of sample_latent
) -> tuple[Tensor, ...]:
    """Fields of `lepo_kernels.ops.sample_latent.LatentSample`, in its order, and the mixture."""
    fields = sample_latent(logits, *draw)
    ids, weights = fields[:2]
    return *fields, mix_embeddings(ids, weights, embedding)
