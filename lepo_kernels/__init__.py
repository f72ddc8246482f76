"""Fused kernels and a thin trainer for reinforcement learning on latent (soft-token) reasoning."""

import importlib
from typing import TYPE_CHECKING, Any

from lepo_kernels import extras
from lepo_kernels.dispatch import BackendUnavailableError, backend
from lepo_kernels.environment import info
from lepo_kernels.formulas.lepo_objective import LepoLoss, lepo_objective
from lepo_kernels.formulas.scores import (
    concrete_log_density,
    exp_concrete_log_density,
    gaussian_log_density,
    gumbel_log_density,
    hard_log_prob,
    latent_grpo_log_density,
    multiplex_log_probs,
    soft_log_prob,
)
from lepo_kernels.ops.gumbel_softmax_embedding import (
    GumbelSoftmaxEmbedding,
    gumbel_softmax_embedding,
)
from lepo_kernels.ops.latent_step import LatentStep, latent_step
from lepo_kernels.ops.lepo_loss import lepo_loss
from lepo_kernels.ops.linear_gumbel_softmax_embedding import linear_gumbel_softmax_embedding
from lepo_kernels.ops.linear_log_probs import LinearLogProbs, gather_log_probs, linear_log_probs
from lepo_kernels.ops.mix_embeddings import mix_embeddings
from lepo_kernels.ops.philox import gumbel_noise, normal_noise, philox_words
from lepo_kernels.ops.sample_latent import LatentSample, sample_latent
from lepo_kernels.parallel.gumbel_softmax_embedding import vocab_parallel_gumbel_softmax_embedding
from lepo_kernels.parallel.lepo_loss import vocab_parallel_lepo_loss
from lepo_kernels.parallel.linear_gumbel_softmax_embedding import (
    vocab_parallel_linear_gumbel_softmax_embedding,
)
from lepo_kernels.parallel.linear_log_probs import vocab_parallel_linear_log_probs
from lepo_kernels.version import __version__ as __version__

if TYPE_CHECKING:
    from lepo_kernels.rollout.config import LatentGenerationConfig
    from lepo_kernels.rollout.latent_generate import latent_generate
    from lepo_kernels.rollout.policy_log_probs import policy_log_probs
    from lepo_kernels.rollout.record import LatentRollout
    from lepo_kernels.trainer.config import LEPOConfig
    from lepo_kernels.trainer.evaluation import evaluate_policy
    from lepo_kernels.trainer.trainer import LEPOTrainer

# Names whose module needs transformers; imported when first used.
_LAZY = {
    "LEPOConfig": "lepo_kernels.trainer.config",
    "LEPOTrainer": "lepo_kernels.trainer.trainer",
    "LatentGenerationConfig": "lepo_kernels.rollout.config",
    "LatentRollout": "lepo_kernels.rollout.record",
    "evaluate_policy": "lepo_kernels.trainer.evaluation",
    "latent_generate": "lepo_kernels.rollout.latent_generate",
    "policy_log_probs": "lepo_kernels.rollout.policy_log_probs",
}

__all__ = [
    "BackendUnavailableError",
    "GumbelSoftmaxEmbedding",
    "LEPOConfig",
    "LEPOTrainer",
    "LatentGenerationConfig",
    "LatentRollout",
    "LatentSample",
    "LatentStep",
    "LepoLoss",
    "LinearLogProbs",
    "backend",
    "concrete_log_density",
    "evaluate_policy",
    "exp_concrete_log_density",
    "gather_log_probs",
    "gaussian_log_density",
    "gumbel_log_density",
    "gumbel_noise",
    "gumbel_softmax_embedding",
    "hard_log_prob",
    "info",
    "latent_generate",
    "latent_grpo_log_density",
    "latent_step",
    "lepo_loss",
    "lepo_objective",
    "linear_gumbel_softmax_embedding",
    "linear_log_probs",
    "mix_embeddings",
    "multiplex_log_probs",
    "normal_noise",
    "philox_words",
    "policy_log_probs",
    "sample_latent",
    "soft_log_prob",
    "vocab_parallel_gumbel_softmax_embedding",
    "vocab_parallel_lepo_loss",
    "vocab_parallel_linear_gumbel_softmax_embedding",
    "vocab_parallel_linear_log_probs",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with extras.explained():
        value = getattr(importlib.import_module(_LAZY[name]), name)
    globals()[name] = value
    return value
