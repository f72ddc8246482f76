"""Fused kernels and a thin trainer for reinforcement learning on latent (soft-token) reasoning."""

from lepo_kernels.dispatch import BackendUnavailableError, backend
from lepo_kernels.ops.mix_embeddings import mix_embeddings

__version__ = "0.1.0"

__all__ = ["BackendUnavailableError", "backend", "mix_embeddings"]
