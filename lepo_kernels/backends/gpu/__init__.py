"""What the backends for GPUs, cuda and triton, share: products with a head, in blocks."""
