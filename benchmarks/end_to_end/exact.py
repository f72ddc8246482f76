"""What an update has to give, from the formulas: float32 throughout, one sample after the other.

The weights are float32 copies of the model's own. A sample is fed alone and without its padding:
neither masks nor positions are shared with what is checked against it, and there are one sample's
activations and logits at a time. The copies and their float32 gradients go before the function
returns; of a model of 3 B they are 25 GB, and its pass over 2560 tokens is 5e13 flops, a second on
an H100.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F


class Exact(NamedTuple):
    """Of the whole batch, in float32; gradients rounded to the model's dtype.

    Attributes:
        loss: the mean over all steps.
        size: the mean of the absolute values of which the loss is the mean.
        norm: of all gradients together, before they are clipped.
        gradients: by the names of the model's parameters, clipped.
    """

    loss: float
    size: float
    norm: float
    gradients: dict[str, Tensor]


def exact_update(model: Any, experience: Any, largest_norm: float) -> Exact:
    """Of the policy's loss on its own fresh samples, whose latent steps all come first."""
    weights = {
        name: p.detach().to(torch.float32, copy=True).requires_grad_()
        for name, p in model.named_parameters()
    }
    steps = int(experience.rollout.completion_mask.sum())
    loss = size = 0.0
    for row in range(len(experience)):
        terms = _terms(model, weights, experience, row) / steps
        terms.sum().backward()
        loss += float(terms.detach().double().sum())
        size += float(terms.detach().double().abs().sum())
        # Its graph holds all that the sample needed, and must be gone when the next one starts.
        del terms
    norm = float(torch.stack([w.grad.double().norm() for w in weights.values()]).norm())
    clip = min(1.0, largest_norm / norm)
    gradients = {}
    for name, weight in weights.items():
        gradients[name] = weight.grad.mul_(clip).to(model.dtype)
        weight.grad = None
    return Exact(loss, size, norm, gradients)


def _terms(
    model: Any, weights: dict[str, Tensor], experience: Any, row: int
) -> Tensor:  # [T], T steps of this sample
    """What each step adds: minus the advantage times a ratio of 1, or an expected log-prob."""
    rollout = experience.rollout
    prompt = rollout.prompt_ids[row][rollout.prompt_mask[row].bool()]
    ids = rollout.completion_ids[row][rollout.completion_mask[row].bool()]
    soft_ids, soft_weights = rollout.latent_ids[row], rollout.latent_weights[row]  # [L, K]
    latent = len(soft_ids)
    embedding = model.get_input_embeddings().weight
    table = next(weights[name] for name, p in model.named_parameters() if p is embedding)
    # One lookup: the gradient of each is as large as the table.
    looked_up = F.embedding(torch.cat([prompt, soft_ids.flatten(), ids[latent:]]), table)
    before, soft, after = looked_up.split([len(prompt), soft_ids.numel(), len(ids) - latent])
    mixed = torch.einsum("lk,lkd->ld", soft_weights, soft.unflatten(0, soft_ids.shape))
    fed = torch.cat([before, mixed, after])[:-1]
    logits = functional_call(
        model,
        weights,
        kwargs={"inputs_embeds": fed[None], "use_cache": False, "logits_to_keep": len(ids)},
    ).logits[0]
    log_probs = logits.log_softmax(dim=-1)  # [T, V]
    expected = (soft_weights * log_probs[:latent].gather(-1, soft_ids)).sum(dim=-1)
    sampled = log_probs[latent:].gather(-1, ids[latent:, None])[:, 0]
    ratio = torch.exp(sampled - sampled.detach())
    return -experience.advantages[row] * torch.cat([expected, ratio])
