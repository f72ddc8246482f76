"""Triton kernels of the loss head: rows of logits, tiles of products, and which of them to take."""
