"""Soft Tokens, Hard Truths (arXiv 2509.19170).

    e = mu + sigma eps, eps normal, mu = sum_k p_k E_k, p the policy's softmax over the kept entries
    latent row:  l = -A log N(e; mu, sigma^2)

On the policy that sampled, e - mu is sigma eps, so the density's gradient is that of
``sum_k p_k c_k`` with ``c_k = E_k . eps / sigma``: K numbers of each row, which the rollout
records. It holds for one update per rollout (the paper's RLOO, whose advantages are G / (G - 1)
times the deviation from the group's mean that is taken here), and the table E is constant to it.

Published: T .5, sigma .33 of the table's root mean square (here of the mixture's), no scaling of
rewards, groups of 32. The rollout here keeps top-k and top-p, where the paper mixes the whole
vocabulary.
"""

from lepo_kernels.formulas.latent_scores import expected_score, register_latent_score
from lepo_kernels.methods.method import Method, register_method

SCORE = register_latent_score(expected_score("soft_tokens"))
METHOD = register_method(
    Method(
        name="soft_tokens",
        title="Soft Tokens, Hard Truths",
        paper="2509.19170",
        latent_score=SCORE.name,
        records="embedding_noise",
        off_policy=False,
        defaults={
            "noise": "soft",
            "noise_scale": 0.33,
            "temperature": 0.5,
            "scale_rewards": "none",
            "num_generations": 32,
        },
        fixed={"noise": ("soft",)},
    )
)
