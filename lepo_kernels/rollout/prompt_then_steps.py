"""Logits as a rollout gets them: a pass over the prompt, then steps on its cache."""

from typing import Any

import torch
from torch import Tensor

from lepo_kernels.rollout.model_cache import (
    cache_argument,
    check_grown,
    fill_static,
    make_cache,
    step_arguments,
)
from lepo_kernels.rollout.soft_embedding import SoftEmbedding


def prompt_then_steps(
    base: Any,
    soft: SoftEmbedding,
    implementation: str,
    ids: Tensor,  # [n, S]
    position_ids: Tensor,  # [n, S]
    attention_mask: Tensor | None,  # [n, S]
    *,
    prompt: int,
) -> Tensor:  # [n, 1 + S - prompt, V]
    """Logits at the end of the prompt and of each step.

    Args:
        base: the unwrapped model.
        soft: its embedding.
        implementation: the kind of cache, "dynamic" or "static".
        ids: the prompts' tokens, then one for each step.
        position_ids: of all of them.
        attention_mask: 0 on padding; None where there is none.
        prompt: columns of the prompts.

    Raises:
        ValueError: the model does not use the cache it is given.
    """
    cache = make_cache(base, "dynamic", 0)

    def forward(first: int, last: int, mask: Tensor | None, **inputs: Any) -> Tensor:
        output = base(
            **{cache_argument(base): cache},
            **step_arguments(base),
            **inputs,
            use_cache=True,
            attention_mask=mask,
            position_ids=position_ids[:, first:last],
        )
        logits: Tensor = output.logits[:, -1]
        return logits

    def seen(columns: int) -> Tensor | None:
        return None if attention_mask is None else attention_mask[:, :columns]

    found = [forward(0, prompt, seen(prompt), input_ids=ids[:, :prompt])]
    if implementation == "static":
        grown, cache = cache, make_cache(base, "static", ids.shape[1])
        fill_static(cache, grown, torch.arange(len(ids), device=ids.device), prompt)
        # All columns, as in a rollout: the model itself leaves out those to come.
        whole = torch.ones_like(ids) if attention_mask is None else attention_mask
    for step in range(prompt, ids.shape[1]):
        mask = whole if implementation == "static" else seen(step + 1)
        fed = embedded(soft, ids[:, step : step + 1])
        found.append(forward(step, step + 1, mask, inputs_embeds=fed))
        check_grown(base, cache, step + 1)
    return torch.stack(found, dim=1)


def embedded(
    soft: SoftEmbedding,
    ids: Tensor,  # [...]
) -> Tensor:  # [..., D]
    """Mixtures of one token each."""
    weights = torch.ones(*ids.shape, 1, dtype=torch.float32, device=ids.device)
    return soft.mix(ids[..., None], weights)
