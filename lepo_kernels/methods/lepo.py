"""LEPO (arXiv 2604.17892).

    z = softmax((a + g) / tau), g Gumbel, over the top-k, top-p entries of a = logits / T
    latent row:    l = -A sum_k z_k log pi_k
    discrete row:  l = -min(rho A, clip(rho, 1 - epsilon, 1 + epsilon) A)

Published: T 1, top-k 30, top-p .95, tau .5 (.3 to .6 work), L 32 or 64, groups of 8.
"""

from lepo_kernels.methods.method import Method, register_method

METHOD = register_method(Method(name="lepo", title="LEPO", paper="2604.17892"))
