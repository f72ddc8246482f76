"""What methods make of the draw of a latent step, and what they record of it."""

import torch
from torch import Tensor

from lepo_kernels.ops.sample_latent import LatentSample
from lepo_kernels.rollout.config import LatentGenerationConfig
from lepo_kernels.rollout.soft_embedding import SoftEmbedding, embedding_noise


def changes_draw(config: LatentGenerationConfig) -> bool:
    """Whether `changed_draw` does anything, so that the mixture cannot be embedded as drawn."""
    return config.mixture_top_k is not None or config.draw_weights != "uniform"


def changed_draw(sample: LatentSample, config: LatentGenerationConfig, tau: float) -> LatentSample:
    """The draw with the mixture that the settings ask for.

    Args:
        sample: as `sample_latent` gives it.
        config: the rollout's settings.
        tau: the temperature of the draw's weights.
    """
    if config.draw_weights == "probability":
        # The draws are of the kept entries, whose normaliser all share.
        sample = sample._replace(weights=sample.logits.softmax(dim=-1))
    if config.mixture_top_k is None or config.mixture_top_k >= sample.ids.shape[1]:
        return sample
    return _largest(sample, config.mixture_top_k, tau)


def _largest(sample: LatentSample, k: int, tau: float) -> LatentSample:
    """The k entries of largest perturbed logits, in the order of the draw."""
    # A stable sort breaks ties by the draw's order: logit descending, then id.
    best = sample.scores.sort(dim=-1, descending=True, stable=True).indices[:, :k]
    best = best.sort(dim=-1).values
    scores = sample.scores.gather(1, best)
    if tau > 0:
        weights = (scores / tau).softmax(dim=-1)
    else:
        place = scores.argmax(dim=-1, keepdim=True)
        weights = torch.zeros_like(scores).scatter_(1, place, 1.0)
    return sample._replace(
        ids=sample.ids.gather(1, best),
        weights=weights,
        scores=scores,
        logits=sample.logits.gather(1, best),
        count=sample.count.clamp(max=k),
    )


def recorded_scores(
    sample: LatentSample,
    mixed: Tensor,  # [N, D]
    config: LatentGenerationConfig,
    soft: SoftEmbedding,
    *,
    seed: int | Tensor,
    row_keys: Tensor,  # [N]
    step: int | Tensor,
    backend: str | None = None,
) -> Tensor | None:  # [N, K]
    """What ``config.record_scores`` asks for, -inf at entries that were not kept; None for nothing.

    Args:
        sample: the draw of N rows.
        mixed: its embeddings, without noise.
        config: the rollout's settings.
        soft: embeds.
        seed, row_keys, step: the noise's.
        backend: see `lepo_kernels.backend`.
    """
    if config.record_scores is None:
        return None
    if config.record_scores == "kept":
        return (sample.scores - sample.kept_lse[:, None]).float()
    if config.record_scores == "vocab":
        return (sample.scores - sample.lse[:, None]).float()
    sigma, noise = embedding_noise(
        mixed, config.noise_scale, seed=seed, row_keys=row_keys, step=step, backend=backend
    )
    along = torch.einsum("nkd,nd->nk", soft.embedded(sample.ids).float(), noise) / sigma
    return along.masked_fill(sample.scores == -torch.inf, -torch.inf)
