"""Triton kernels of a decoding step, one after the other."""

from lepo_kernels.backends.chained_step import chained_step
from lepo_kernels.backends.triton.mix_embeddings import mix_embeddings
from lepo_kernels.backends.triton.sample_latent import sample_latent

latent_step = chained_step(sample_latent, mix_embeddings)
