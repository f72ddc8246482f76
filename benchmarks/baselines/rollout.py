"""The rollout: latent steps, then discrete ones, in a loop over the model's forward.

As it is usually written, filters and noise see the whole vocabulary. With ``topk_first`` they see
the kept entries alone, as a careful user has it.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import DynamicCache
from transformers.generation.logits_process import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from lepo_kernels.rollout.model_cache import cache_argument


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How the policy samples.

    Attributes:
        noise: "gumbel", or "none" for the plain softmax over the kept entries.
        topk_first: whether the K largest entries are taken before anything else is done.
    """

    latent_length: int
    max_new_tokens: int
    eos_token_id: int
    pad_token_id: int
    num_generations: int = 1
    noise: str = "gumbel"
    tau: float = 0.5
    temperature: float = 1.0
    top_k: int = 30
    top_p: float = 0.95
    topk_first: bool = False


@dataclass(frozen=True)
class Samples:
    """What the loss needs of a rollout: P prompt columns, T steps, of which the first L latent."""

    ids: Tensor  # [B, P + T]; on latent steps the likeliest id
    mask: Tensor  # [B, P + T]; 0 on padding
    soft_ids: Tensor  # [B, L, K]
    soft_weights: Tensor  # [B, L, K]
    prompt_length: int

    @property
    def latent_length(self) -> int:
        return self.soft_ids.shape[1]


@torch.no_grad()
def generate(
    model: Any,
    prompt_ids: Tensor,  # [N, P], left-padded
    prompt_mask: Tensor,  # [N, P]
    settings: Settings,
) -> Samples:
    """Sample ``num_generations`` completions per prompt, side by side."""
    ids = prompt_ids.repeat_interleave(settings.num_generations, dim=0)
    mask = prompt_mask.repeat_interleave(settings.num_generations, dim=0)
    embedding = model.get_input_embeddings()
    warpers = _warpers(settings)
    soft_ids = ids.new_zeros(len(ids), 0, settings.top_k)
    soft_weights = torch.zeros(soft_ids.shape, device=ids.device)
    finished = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
    cache = DynamicCache(config=model.config)
    inputs = embedding(ids)
    for step in range(settings.max_new_tokens):
        output = model(
            inputs_embeds=inputs,
            attention_mask=mask,
            position_ids=(mask.cumsum(dim=1) - 1).clamp(min=0)[:, -inputs.shape[1] :],
            **{cache_argument(model): cache},
            use_cache=True,
            # As transformers' own generate has it: no logits of the prompt.
            logits_to_keep=1,
        )
        logits = output.logits[:, -1].float()
        if step < settings.latent_length:
            logits[:, settings.eos_token_id] = -torch.inf
            token = logits.argmax(dim=-1)
            if settings.topk_first:
                scores, top_ids = _largest(logits, settings)
                top_weights = _soft_token(scores, settings)  # [B, K]
                per_row = top_weights.to(embedding.weight.dtype)
                bag = {"per_sample_weights": per_row, "mode": "sum"}
                inputs = F.embedding_bag(top_ids, embedding.weight, **bag)[:, None]
            else:
                z = _soft_token(warpers(ids, logits), settings)  # [B, V]
                inputs = (z.to(embedding.weight.dtype) @ embedding.weight)[:, None]
                top_weights, top_ids = z.topk(settings.top_k, dim=-1)
            soft_ids = torch.cat([soft_ids, top_ids[:, None]], dim=1)
            soft_weights = torch.cat([soft_weights, top_weights[:, None]], dim=1)
        else:
            if settings.topk_first:
                scores, top_ids = _largest(logits, settings)
                token = top_ids.gather(1, torch.multinomial(scores.softmax(dim=-1), 1))[:, 0]
            else:
                probabilities = warpers(ids, logits).softmax(dim=-1)
                token = torch.multinomial(probabilities, 1)[:, 0]
            token = token.masked_fill(finished, settings.pad_token_id)
            inputs = embedding(token)[:, None]
        ids = torch.cat([ids, token[:, None]], dim=1)
        mask = torch.cat([mask, (~finished).to(mask.dtype)[:, None]], dim=1)
        finished = finished | (token == settings.eos_token_id)
        if finished.all():
            break
    return Samples(ids, mask, soft_ids, soft_weights, prompt_ids.shape[1])


def _warpers(settings: Settings) -> LogitsProcessorList:
    return LogitsProcessorList(
        [
            TemperatureLogitsWarper(settings.temperature),
            TopKLogitsWarper(settings.top_k),
            TopPLogitsWarper(settings.top_p),
        ]
    )


def _largest(
    logits: Tensor,  # [B, V]
    settings: Settings,
) -> tuple[Tensor, Tensor]:  # [B, K]; -inf where top-p dropped an entry, [B, K]
    scores, ids = (logits / settings.temperature).topk(settings.top_k, dim=-1)
    mass = scores.softmax(dim=-1)
    return scores.masked_fill(mass.cumsum(dim=-1) - mass >= settings.top_p, -torch.inf), ids


def _soft_token(
    scores: Tensor,  # [B, V] or [B, K]; -inf where the filters dropped an entry
    settings: Settings,
) -> Tensor:  # as scores
    if settings.noise == "none":
        return scores.softmax(dim=-1)
    return F.gumbel_softmax(scores, tau=settings.tau, dim=-1)
