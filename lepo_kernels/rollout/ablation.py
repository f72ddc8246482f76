"""Ablated latent phases: what a model is given instead of the latent inputs that it had.

Contract: a `LatentPhase` holds, row by row, the inputs of a finished rollout's latent steps as the
model was fed them, noise on the embeddings included. An ablation makes another phase of it:

    shuffle    another sample's whole phase, as long as that one is
    blank      at each step the embedding of one token that says nothing
    argmax     at each step the embedding of the mixture's heaviest token
    last_only  the last input alone; those before it are removed, and what follows moves up

`answer_after` decodes the discrete phase on top of such a phase.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from lepo_kernels.rollout._modules import unwrap_model
from lepo_kernels.rollout.record import LatentRollout
from lepo_kernels.rollout.soft_embedding import SoftEmbedding
from lepo_kernels.validation import check_choice

ABLATIONS = ("shuffle", "blank", "argmax", "last_only")


class LatentPhase(NamedTuple):
    """The latent inputs of B rows, the first n of L steps in a row of n; 0 beyond.

    ``ids`` and ``weights`` say which mixtures they are of; noise is in ``inputs`` alone.
    """

    ids: Tensor  # [B, L, K] int64
    weights: Tensor  # [B, L, K] float32
    mask: Tensor  # [B, L] bool
    inputs: Tensor  # [B, L, D]


@torch.no_grad()
def latent_phase(model: Any, rollout: LatentRollout, *, backend: str | None = None) -> LatentPhase:
    """The latent inputs of a rollout, formed again from its record.

    Args:
        model: the model that it is of.
        rollout: B rows of at most L latent steps.
        backend: see `lepo_kernels.backend`.

    Raises:
        TypeError, ValueError: see ``SoftEmbedding``; or there are no latent steps.
    """
    if 0 in rollout.latent_ids.shape:
        raise ValueError("rollout: expected latent steps, got none")
    soft = SoftEmbedding(unwrap_model(model), backend=backend)
    L = rollout.latent_ids.shape[1]
    mask = rollout.latent_mask[:, :L]
    row, step = mask.nonzero(as_tuple=True)
    mixed = soft.mix_recorded(rollout, row, step)
    inputs = mixed.new_zeros(*mask.shape, mixed.shape[-1]).index_put((row, step), mixed)
    return LatentPhase(rollout.latent_ids, rollout.latent_weights, mask, inputs)


@torch.no_grad()
def ablated(
    model: Any,
    kind: str,
    phase: LatentPhase,
    *,
    donors: LatentPhase | None = None,
    blank_id: int | None = None,
    backend: str | None = None,
) -> LatentPhase:
    """The phase that an ablation makes of another.

    Args:
        model: embeds the tokens that take the place of mixtures.
        kind: one of `ABLATIONS`.
        phase: what is ablated, of B rows.
        donors: for "shuffle", B rows whose phases the rows are given.
        blank_id: for "blank", the token.
        backend: see `lepo_kernels.backend`.

    Raises:
        ValueError: an unknown kind; or its donors (of as many rows) or its blank token are missing.
    """
    check_choice("kind", kind, ABLATIONS)
    if kind == "shuffle":
        if donors is None or donors.mask.shape[0] != phase.mask.shape[0]:
            raise ValueError("donors: expected a phase of as many rows, to shuffle with")
        return donors
    if kind == "last_only":
        return _last_of(phase)
    if kind == "blank":
        if blank_id is None:
            raise ValueError("blank_id: expected the id of a token, got None")
        ids = torch.full_like(phase.ids[..., :1], blank_id)
    else:
        heaviest = phase.weights.argmax(dim=-1, keepdim=True)
        ids = phase.ids.gather(-1, heaviest)
    soft = SoftEmbedding(unwrap_model(model), backend=backend)
    weights = phase.mask[..., None].float()
    inputs = soft.mix(ids, torch.ones_like(weights)) * phase.mask[..., None]
    return LatentPhase(ids * phase.mask[..., None], weights, phase.mask, inputs)


def _last_of(phase: LatentPhase) -> LatentPhase:
    """The last step of each row, moved to the front."""
    steps = phase.mask.sum(dim=1)
    row = torch.arange(len(steps), device=steps.device)
    last = (steps - 1).clamp(min=0)
    ids, weights, inputs = (x[row, last][:, None] for x in (phase.ids, phase.weights, phase.inputs))
    return LatentPhase(ids, weights, (steps > 0)[:, None], inputs)
