"""Rollouts through dense tensors alone, in float64, for transcriptions of losses.

It shares nothing with the package but the recorded samples: dense mixtures by a matrix product with
the whole table, `inputs_embeds`, full log-softmaxes.
"""

import copy

import torch

from lepo_kernels.ops.philox import normal_noise
from lepo_kernels.rollout.soft_embedding import EMBEDDING_NOISE_DRAW
from tests.tiny import tiny_model


def float64_model():
    # Without a padding id: nn.Embedding gives the row of one no gradient, a matrix product does.
    return tiny_model(dtype=torch.float64, pad_token_id=None)


def letters_reward(completions, **_):
    """Differs between almost any two completions."""
    return [float(sum(map(ord, text)) % 7) for text in completions]


def dense_inputs(model, rollout):
    """Embeddings [B, P + T, D] with every mixture formed as a one-hot-weighted [V] product."""
    table = model.get_input_embeddings().weight
    ids = torch.cat([rollout.prompt_ids, rollout.completion_ids], 1)
    columns = torch.nn.functional.one_hot(ids, table.shape[0]).to(table.dtype)
    prompt = rollout.prompt_ids.shape[1]
    for b in range(len(rollout)):
        for t in range(rollout.latent_ids.shape[1]):
            if rollout.latent_mask[b, t]:
                z = torch.zeros(table.shape[0], dtype=table.dtype)
                z.index_add_(
                    0, rollout.latent_ids[b, t], rollout.latent_weights[b, t].to(table.dtype)
                )
                columns[b, prompt + t] = z
    embedded = columns @ table
    if rollout.embedding_noise == 0:
        return embedded
    # After Soft Tokens: sigma is constant to the gradient.
    dimensions = torch.arange(table.shape[1])
    noisy = torch.zeros_like(embedded)
    for b, t in rollout.latent_mask.nonzero().tolist():
        key = rollout.row_keys[b : b + 1]
        noise = normal_noise(rollout.seed, key, t, dimensions, draw=EMBEDDING_NOISE_DRAW)[0]
        mixed = embedded[b, prompt + t].detach()
        noisy[b, prompt + t] = rollout.embedding_noise * mixed.pow(2).mean().sqrt() * noise
    return embedded + noisy


def dense_log_pi(model, rollout, temperature):
    """log pi of every completion step over the whole vocabulary, [B, T, V]."""
    mask = torch.cat([rollout.prompt_mask, rollout.completion_mask], 1).long()
    logits = model(
        inputs_embeds=dense_inputs(model, rollout),
        attention_mask=mask,
        position_ids=(mask.cumsum(1) - 1).clamp(min=0),
    ).logits
    prompt = rollout.prompt_ids.shape[1]
    steps = rollout.completion_ids.shape[1]
    return torch.log_softmax(logits[:, prompt - 1 : prompt - 1 + steps] / temperature, -1)


def perturbed(model, scale, seed):
    """A copy of the model a little way off."""
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in other.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(scale * noise)
    return other
