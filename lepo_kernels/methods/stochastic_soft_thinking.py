"""Stochastic Soft Thinking (arXiv 2508.03440), which samples and does not train.

    z = softmax((log p + g) / tau), g Gumbel, p the probabilities of the 15 likeliest entries; or z
    is drawn from a Dirichlet distribution around p

Published: T .6, top-k 30, top-p .95, tau .5 or .6, 10 to 15 entries; Dirichlet concentration 4.
"""

from lepo_kernels.methods.method import Method, register_method

METHOD = register_method(
    Method(
        name="stochastic_soft_thinking",
        title="Stochastic Soft Thinking",
        paper="2508.03440",
        trains=False,
        defaults={"temperature": 0.6, "top_k": 15, "top_p": 0.95, "tau": 0.5},
        fixed={"noise": ("gumbel", "dirichlet")},
    )
)
