"""What the Triton kernels of several rooms share: launches, noise, sums, logits in registers."""
