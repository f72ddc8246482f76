"""Soft Thinking (arXiv 2505.15778), which samples and does not train.

    z = p, the policy's probabilities of the kept entries, renormalised

Published: T .6, top-k 30, top-p .95, min-p .001, of which the 10 likeliest are mixed; the latent
phase ends once the entropy has been below .01 for 256 steps.
"""

from lepo_kernels.methods.method import Method, register_method

METHOD = register_method(
    Method(
        name="soft_thinking",
        title="Soft Thinking",
        paper="2505.15778",
        trains=False,
        defaults={
            "noise": "none",
            "temperature": 0.6,
            "top_k": 30,
            "top_p": 0.95,
            "min_p": 1e-3,
            "mixture_top_k": 10,
            "cold_stop_entropy": 0.01,
            "cold_stop_steps": 256,
        },
        fixed={"noise": ("none",)},
    )
)
