"""A decoding step of a backend that has no kernel of its own for it: the draw, then the mixture.

Contract: the bits of the backend's ``sample_latent`` and of its ``mix_embeddings`` after it.
"""

from collections.abc import Callable

from torch import Tensor

from lepo_kernels.structures import Draw


def chained_step(
    sample_latent: Callable[..., tuple[Tensor, ...]],
    mix_embeddings: Callable[..., Tensor],
) -> Callable[..., tuple[Tensor, ...]]:
    """A backend's ``latent_step``, from its other two kernels."""

    def latent_step(
        logits: Tensor,  # [N, V]
        embedding: Tensor,  # [V or more, D]
        draw: Draw,
    ) -> tuple[Tensor, ...]:
        """Fields of `lepo_kernels.ops.sample_latent.LatentSample`, and the mixture."""
        fields = sample_latent(logits, draw)
        ids, weights = fields[:2]
        return *fields, mix_embeddings(ids, weights, embedding)

    return latent_step
