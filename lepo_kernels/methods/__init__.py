"""The methods of the family, one file each; adding one needs no change elsewhere.

A third party registers its own by importing `register_method`, and is then called by its name.
"""

from lepo_kernels.methods import (
    grpo,
    latent_grpo,
    lepo,
    multiplex,
    soft_grpo,
    soft_thinking,
    soft_tokens,
    stochastic_soft_thinking,
)
from lepo_kernels.methods.method import (
    Method,
    method_named,
    methods,
    register_method,
)

__all__ = [
    "Method",
    "grpo",
    "latent_grpo",
    "lepo",
    "method_named",
    "methods",
    "multiplex",
    "register_method",
    "soft_grpo",
    "soft_thinking",
    "soft_tokens",
    "stochastic_soft_thinking",
]
