"""What is logged of a micro-batch's loss."""

import torch
from torch import Tensor

from lepo_kernels.rollout.policy_loss import PolicyLoss
from lepo_kernels.trainer.metrics import MetricMeans


def add_loss_metrics(
    means: MetricMeans,
    result: PolicyLoss,
    discrete: Tensor,  # [M] bool
    has_kl: bool,
    latent_ratio: bool = False,
) -> None:
    """Add the metrics of the steps that a loss is of.

    Args:
        means: where they are added.
        result: the loss of M steps.
        discrete: which of them are sampled tokens, not latent steps.
        has_kl: whether the loss has a KL term.
        latent_ratio: whether latent steps have importance ratios.
    """
    means.add(
        {
            "forward/tokens_saved": result.tokens_saved,
            "forward/shared": float(result.layout == "shared"),
            "forward/packed": float(result.layout == "packed"),
        }
    )
    if result.router_loss is not None:
        means.add({"aux_loss": float(result.router_loss)})
    means.add_masked("clip_ratio/low_mean", result.clipped == -1, discrete)
    means.add_masked("clip_ratio/high_mean", result.clipped == 1, discrete)
    means.add_masked("clip_ratio/region_mean", result.clipped != 0, discrete)
    means.add_masked("ratio", result.ratio, discrete)
    if latent_ratio:
        means.add_masked("latent/ratio", result.ratio, ~discrete)
        means.add_masked("latent/clip_ratio", result.clipped != 0, ~discrete)
    if has_kl:
        means.add_masked("kl", result.kl, torch.ones_like(discrete))
