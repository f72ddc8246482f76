"""The loss: one forward with labels, all logits in float32, a log-softmax for each term."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.baselines.rollout import Samples


def lepo_loss(
    model: Any,
    samples: Samples,
    advantages: Tensor,  # [B]
    *,
    temperature: float = 1.0,
    epsilon: float = 0.2,
    old_log_probs: Tensor | None = None,  # [B, T]
) -> tuple[Tensor, Tensor]:  # [], []
    """LEPO's loss, averaged over all steps of the batch.

    Args:
        model: the policy.
        samples: what it sampled.
        advantages: one per sample.
        temperature: divides the logits.
        epsilon: clipping range of the ratio on discrete steps.
        old_log_probs: of the sampled ids, when the policy has moved since; None means that it has
            not.

    Returns:
        The loss, and the model's own cross entropy on the sampled ids, for the log.
    """
    embedding = model.get_input_embeddings()
    prompt, latent = samples.prompt_length, samples.latent_length
    # The mixtures as they were fed, formed anew, with gradient for the table.
    shape = (len(samples.ids), latent, embedding.weight.shape[0])
    soft = torch.zeros(shape, device=samples.ids.device)  # [B, L, V]
    soft = soft.scatter_add(-1, samples.soft_ids, samples.soft_weights)
    embedded = embedding(samples.ids)
    mixed = soft.to(embedding.weight.dtype) @ embedding.weight
    embedded = torch.cat(
        [embedded[:, :prompt], mixed, embedded[:, prompt + latent :]], dim=1
    )  # [B, P + T, D]
    labels = samples.ids.masked_fill(samples.mask == 0, -100)
    labels[:, :prompt] = -100
    output = model(
        inputs_embeds=embedded,
        attention_mask=samples.mask,
        position_ids=(samples.mask.cumsum(dim=1) - 1).clamp(min=0),
        labels=labels,
        use_cache=False,
    )

    logits = output.logits[:, prompt - 1 : -1].float() / temperature  # [B, T, V]
    completion = samples.ids[:, prompt:]
    log_probs = F.log_softmax(logits, dim=-1).gather(-1, completion[..., None])[..., 0]
    old = log_probs.detach() if old_log_probs is None else old_log_probs
    ratio = torch.exp(log_probs - old)
    clipped = ratio.clamp(1 - epsilon, 1 + epsilon)
    advantages = advantages[:, None]
    discrete_loss = -torch.minimum(ratio * advantages, clipped * advantages)

    soft_log_probs = (soft * F.log_softmax(logits[:, :latent], dim=-1)).sum(dim=-1)
    latent_loss = -advantages * soft_log_probs

    steps = torch.cat([latent_loss, discrete_loss[:, latent:]], dim=1)
    mask = samples.mask[:, prompt:]
    return (steps * mask).sum() / mask.sum(), output.loss.detach()
