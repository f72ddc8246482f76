"""Fused kernels and a thin trainer for reinforcement learning on latent (soft-token) reasoning."""

from lepo_kernels.dispatch import BackendUnavailableError, backend
from lepo_kernels.ops.gumbel_softmax_embedding import (
    GumbelSoftmaxEmbedding,
    gumbel_softmax_embedding,
)
from lepo_kernels.ops.linear_log_probs import LinearLogProbs, gather_log_probs, linear_log_probs
from lepo_kernels.ops.mix_embeddings import mix_embeddings
from lepo_kernels.ops.philox import gumbel_noise, normal_noise, philox_words
from lepo_kernels.ops.sample_latent import LatentSample, sample_latent
from lepo_kernels.ops.scores import (
    concrete_log_density,
    exp_concrete_log_density,
    gaussian_log_density,
    gumbel_log_density,
    hard_log_prob,
    latent_grpo_log_density,
    multiplex_log_probs,
    soft_log_prob,
)

__version__ = "0.1.0"

__all__ = [
    "BackendUnavailableError",
    "GumbelSoftmaxEmbedding",
    "LatentSample",
    "LinearLogProbs",
    "backend",
    "concrete_log_density",
    "exp_concrete_log_density",
    "gather_log_probs",
    "gaussian_log_density",
    "gumbel_log_density",
    "gumbel_noise",
    "gumbel_softmax_embedding",
    "hard_log_prob",
    "latent_grpo_log_density",
    "linear_log_probs",
    "mix_embeddings",
    "multiplex_log_probs",
    "normal_noise",
    "philox_words",
    "sample_latent",
    "soft_log_prob",
]
