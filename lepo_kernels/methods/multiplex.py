"""Multiplex Thinking (arXiv 2601.08808).

    k_1 .. k_K drawn from pi, independently, with replacement
    the mixture weighs a draw by its probability, w_i = pi(k_i) / sum_j pi(k_j); or all alike
    s_i = log pi(k_i); duplicates stay slots of their own
    latent row:  l = -sum_i min(rho_i A, clip(rho_i) A), rho_i = exp(s_i - s_i,old), and for A < 0
                 no rho_i counts for more than 3 (dual clip)

Published: K 3, T 1, no top-k or top-p, no KL, groups of 8, learning rate 1e-6, one update per
rollout, latent steps for as long as the model thinks, up to 4k or 8k.
"""

from lepo_kernels.methods.method import Method, register_method

METHOD = register_method(
    Method(
        name="multiplex",
        title="Multiplex Thinking",
        paper="2601.08808",
        latent_score="multiplex_log_probs",
        latent_ratio=True,
        defaults={
            "noise": "categorical",
            "num_draws": 3,
            "draw_weights": "probability",
            "top_k": None,
            "top_p": 1.0,
            "delta": 3.0,
        },
        fixed={"noise": ("categorical",)},
    )
)
