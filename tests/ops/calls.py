"""One small call of every public op and score, from which tests change an argument."""

from collections.abc import Callable
from typing import Any

import torch

import lepo_kernels as lk

N, V, D, K = 3, 7, 4, 2

# What each function is differentiable in; the others are sampled or counted, not differentiated.
DIFFERENTIABLE = {
    "mix_embeddings": ("weights", "embedding"),
    "latent_step": ("embedding",),
    "linear_log_probs": ("hidden", "lm_head", "bias"),
    "gather_log_probs": ("logits",),
    "gumbel_softmax_embedding": ("logits", "embedding"),
    "linear_gumbel_softmax_embedding": ("hidden", "lm_head", "bias", "embedding"),
    "lepo_loss": ("hidden", "lm_head", "bias"),
}
SCORES = (
    "lepo_objective",
    "hard_log_prob",
    "soft_log_prob",
    "multiplex_log_probs",
    "gumbel_log_density",
    "latent_grpo_log_density",
    "exp_concrete_log_density",
    "concrete_log_density",
    "gaussian_log_density",
)
SAMPLED = ("sample_latent", "philox_words", "gumbel_noise", "normal_noise")


def arguments_of(name: str, device: str = "cpu") -> dict[str, Any]:
    """Good arguments of the public function ``name``; every number it takes is among them."""

    def real(*shape: int) -> torch.Tensor:
        return torch.linspace(-1, 1, max(1, torch.Size(shape).numel()), device=device).reshape(
            shape
        )

    def ids(*shape: int) -> torch.Tensor:
        return torch.zeros(shape, dtype=torch.int64, device=device)

    noise = {"seed": 3, "row_keys": ids(N), "step": 5}
    draw = {"temperature": 0.7, "tau": 0.4, **noise}
    filters = {"top_k": 3, "top_p": 0.9, "min_p": 0.1, "noise_scale": 2.0, "num_draws": 1}
    clamp = {"noise_clamp": (-1.0, 3.0)}
    head = {"hidden": real(N, D), "lm_head": real(V, D), "bias": real(V), "softcap": 5.0}
    scores = {"logits": real(N, K), "scores": real(N, K) + 1}
    loss = {
        "weights": real(N, K).abs(),
        "latent": ids(N) == 1,
        "advantages": real(N),
        "row_weights": real(N).abs(),
        "ref_log_probs": real(N, K),
        "latent_score": "latent_grpo_log_density",
        "latent_ratio": True,
        "recorded": real(N, K),
        "surrogate": "ppo",
        "kl_times_ratio": True,
        "beta": 0.1,
        "epsilon": 0.2,
        "epsilon_high": 0.3,
        "delta": 4.0,
    }
    return {
        "sample_latent": {"logits": real(N, V), **draw, **filters, **clamp},
        "latent_step": {"logits": real(N, V), "embedding": real(V, D), **draw, **filters, **clamp},
        "mix_embeddings": {
            "ids": ids(N, K),
            "weights": real(N, K),
            "embedding": real(V, D),
        },
        "linear_log_probs": {**head, "ids": ids(N, K), "inv_temperature": 1.5, "chunk_size": 2},
        "gather_log_probs": {"logits": real(N, V), "ids": ids(N, K), "inv_temperature": 1.5},
        "gumbel_softmax_embedding": {
            "logits": real(N, V),
            "embedding": real(V, D),
            **draw,
            "first_id": 4,
        },
        "linear_gumbel_softmax_embedding": {
            **head,
            "embedding": real(V, D),
            **draw,
            "first_id": 4,
            "chunk_size": 2,
        },
        "lepo_loss": {**head, "ids": ids(N, K), **loss, "inv_temperature": 1.5},
        "philox_words": {**noise, "ids": ids(N, K), "draw": 1},
        "gumbel_noise": {**noise, "ids": ids(N, K), "draw": 1},
        "normal_noise": {**noise, "ids": ids(N, K), "draw": 1},
        "lepo_objective": {"logits": real(N, K), "lse": real(N) + 3, **loss, "sequences": ids(N)},
        "hard_log_prob": {"logits": real(N), "lse": real(N) + 3},
        "soft_log_prob": {"logits": real(N, K), "lse": real(N) + 3, "weights": real(N, K)},
        "multiplex_log_probs": {"logits": real(N, K), "lse": real(N) + 3},
        "gumbel_log_density": {
            **scores,
            "min_log_prob": -3.0,
            "epsilon": 1e-6,
            "clamp": (-1.0, 3.0),
        },
        "latent_grpo_log_density": {**scores, "lse": real(N) + 3, "advantages": real(N)},
        "exp_concrete_log_density": {**scores, "tau": 0.4},
        "concrete_log_density": {**scores, "tau": 0.4},
        "gaussian_log_density": {"embedding": real(N, D), "mean": real(N, D) / 2, "sigma": 0.4},
    }[name]


def function(name: str) -> Callable[..., Any]:
    """The public function."""
    found: Callable[..., Any] = getattr(lk, name)
    return found


NAMES = (*DIFFERENTIABLE, *SAMPLED, *SCORES)
