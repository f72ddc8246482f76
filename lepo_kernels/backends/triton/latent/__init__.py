"""Triton kernels of a latent step: the draw of ids and weights, and the mixture of embeddings."""
