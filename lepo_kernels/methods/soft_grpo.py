"""SofT-GRPO (arXiv 2511.06411).

    q = log(p + 1e-6) + clamp(g, -1.5, 3), g Gumbel, p the softmax over the k kept entries
    z = softmax(q / tau)
    s = mean over the entries with log p > -3 of -d - exp(-d), d = q - log(p + 1e-6)
    latent row:  l = -min(rho A, clip(rho) A), rho = exp(s - s_old), as on discrete rows

Published: top-k 5, top-p .95, T 1, tau .1, KL .001 by the k3 estimator on s (.002 in the authors'
script for DeepScaleR at 8k), groups of 8, learning rate 1e-6, two updates per rollout; latent steps
for as long as the model thinks, up to 8k. The rollout here leaves out the 1e-6, which moves no
log-probability above -3 by more than 2.1e-5.
"""

from lepo_kernels.formulas.latent_scores import gumbel_score, register_latent_score
from lepo_kernels.methods.method import Method, register_method

SCORE = register_latent_score(
    gumbel_score("soft_grpo", min_log_prob=-3.0, clamp=None, epsilon=1e-6)
)
METHOD = register_method(
    Method(
        name="soft_grpo",
        title="SofT-GRPO",
        paper="2511.06411",
        latent_score=SCORE.name,
        latent_ratio=True,
        records="kept",
        defaults={
            "noise_clamp": (-1.5, 3.0),
            "tau": 0.1,
            "top_k": 5,
            "top_p": 0.95,
            "beta": 1e-3,
            "latent_kl": "score",
        },
        fixed={"noise": ("gumbel",)},
    )
)
