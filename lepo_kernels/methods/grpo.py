"""GRPO (arXiv 2402.03300): discrete tokens alone.

    l = -min(rho A, clip(rho, 1 - epsilon, 1 + epsilon) A)

It is LEPO without latent steps.
"""

from lepo_kernels.methods.method import Method, register_method

METHOD = register_method(
    Method(
        name="grpo",
        title="GRPO",
        paper="2402.03300",
        defaults={"latent_length": 0},
        fixed={"latent_length": (0,)},
    )
)
