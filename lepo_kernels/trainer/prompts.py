"""From dataset prompts to padded ids, and from completion ids back to text."""

from typing import Any

import torch
from torch import Tensor

from lepo_kernels.rollout.record import LatentRollout


def is_prompt(prompt: Any) -> bool:
    """Whether ``prompt`` is text or a list of chat messages."""
    if isinstance(prompt, str):
        return True
    return isinstance(prompt, list) and all(isinstance(m, dict) and "role" in m for m in prompt)


def prompt_text(tokenizer: Any, prompt: Any) -> str:
    """Render a prompt: text as it is, chat messages through the tokenizer's template.

    Raises:
        TypeError: neither text nor a list of messages.
    """
    if isinstance(prompt, str):
        return prompt
    if not is_prompt(prompt):
        raise TypeError(
            "prompt: expected a str or a list of chat messages, "
            f"got {type(prompt).__name__}: {str(prompt)[:80]}"
        )
    rendered = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
    return str(rendered)


def prompt_ids(tokenizer: Any, prompt: Any) -> list[int]:
    """The ids of a prompt.

    Raises:
        TypeError: neither text nor a list of messages.
        ValueError: it has no tokens.
    """
    # A chat template writes its own special tokens; the tokenizer must not add them again.
    text = prompt_text(tokenizer, prompt)
    ids: list[int] = tokenizer(text, add_special_tokens=isinstance(prompt, str))["input_ids"]
    if not ids:
        raise ValueError(f"prompt: has no tokens: {prompt!r}")
    return ids


def encode_prompts(
    tokenizer: Any,
    prompts: list[Any],
) -> tuple[Tensor, Tensor]:  # [B, P] int64, [B, P] int64
    """Tokenise prompts and pad them on the left.

    Args:
        tokenizer: a transformers tokenizer with a pad token.
        prompts: each a str or a list of chat messages.

    Returns:
        ids [B, P] and attention mask [B, P], padded on the left to the longest prompt.

    Raises:
        TypeError: a prompt is neither text nor messages.
        ValueError: a prompt has no tokens.
    """
    rows = [prompt_ids(tokenizer, prompt) for prompt in prompts]
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), tokenizer.pad_token_id, dtype=torch.int64)
    mask = torch.zeros(len(rows), width, dtype=torch.int64)
    for index, row in enumerate(rows):
        ids[index, width - len(row) :] = torch.tensor(row, dtype=torch.int64)
        mask[index, width - len(row) :] = 1
    return ids, mask


def spoken_ids(rollout: LatentRollout) -> list[list[int]]:
    """Per sample, the ids of its discrete steps: what it said after thinking, EOS included."""
    spoken = rollout.completion_mask & ~rollout.latent_mask
    return [
        ids[keep].tolist()
        for ids, keep in zip(rollout.completion_ids.cpu(), spoken.cpu(), strict=True)
    ]


def spoken_texts(tokenizer: Any, rollout: LatentRollout) -> list[str]:
    """Per sample, the text of its discrete steps, without special tokens."""
    return [
        str(text) for text in tokenizer.batch_decode(spoken_ids(rollout), skip_special_tokens=True)
    ]


def as_completion(prompt: Any, text: str) -> Any:
    """Give a completion the form of its prompt: text, or one assistant message (as TRL does)."""
    return text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]


def latent_steps(
    tokenizer: Any,
    rollout: LatentRollout,
    sample: int,
    top: int = 3,
) -> list[list[dict[str, Any]]]:
    """The latent steps of one sample, each as its heaviest tokens with their weights."""
    steps = []
    for step in range(rollout.latent_ids.shape[1]):
        if not bool(rollout.latent_mask[sample, step]):
            continue
        weights, order = rollout.latent_weights[sample, step].sort(descending=True, stable=True)
        ids = rollout.latent_ids[sample, step][order[:top]].tolist()
        steps.append(
            [
                {"token": tokenizer.decode([token]), "weight": round(weight, 4)}
                for token, weight in zip(ids, weights[:top].tolist(), strict=True)
                if weight > 0
            ]
        )
    return steps
