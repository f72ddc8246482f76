"""Latent-GRPO (arXiv 2604.27998).

    q = log pi + clamp(g, -1.5, 3) + 1.5, g Gumbel: the noise is never negative
    z = softmax(q / tau) over the 10 entries of largest q
    s = mean over them of -d - exp(-d), d = q - log pi, pi over the whole vocabulary
    latent row:  l = -min(rho A, clip(rho) A), rho = exp(s - s_old); where A <= 0 and d < 0, the
                 gradient of s is that of d - exp(d), which is bounded

Published: T .6 for discrete tokens, top-p .95, top-k 30, tau 1, KL .001 by the k3 estimator on s,
groups of 8, learning rate 1e-6, latent steps up to 4k. Their latent steps leave T out; here T is
the policy's on all rows.
"""

from lepo_kernels.formulas.latent_scores import bounded_gumbel_score, register_latent_score
from lepo_kernels.methods.method import Method, register_method

# Of the clamped noise: what makes its least value 0.
SHIFT = 1.5
SCORE = register_latent_score(bounded_gumbel_score("latent_grpo", SHIFT))
METHOD = register_method(
    Method(
        name="latent_grpo",
        title="Latent-GRPO",
        paper="2604.27998",
        latent_score=SCORE.name,
        latent_ratio=True,
        records="vocab",
        defaults={
            "noise_clamp": (-SHIFT, 3.0),
            "tau": 1.0,
            "top_k": 30,
            "top_p": 0.95,
            "mixture_top_k": 10,
            "beta": 1e-3,
            "latent_kl": "score",
        },
        fixed={"noise": ("gumbel",)},
    )
)
