"""Fused kernels and a thin trainer for reinforcement learning on latent (soft-token) reasoning."""

from lepo_kernels.dispatch import BackendUnavailableError, backend
from lepo_kernels.ops.linear_log_probs import LinearLogProbs, gather_log_probs, linear_log_probs
from lepo_kernels.ops.mix_embeddings import mix_embeddings
from lepo_kernels.ops.philox import gumbel_noise, normal_noise, philox_words
from lepo_kernels.ops.sample_latent import LatentSample, sample_latent

__version__ = "0.1.0"

__all__ = [
    "BackendUnavailableError",
    "LatentSample",
    "LinearLogProbs",
    "backend",
    "gather_log_probs",
    "gumbel_noise",
    "linear_log_probs",
    "mix_embeddings",
    "normal_noise",
    "philox_words",
    "sample_latent",
]
