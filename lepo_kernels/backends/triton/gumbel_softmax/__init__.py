"""Triton kernels of the dense Gumbel-softmax mixture, from logits or from hidden states."""
