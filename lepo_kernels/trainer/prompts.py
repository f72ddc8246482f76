"""From dataset prompts to padded ids, and from completion ids back to text."""

from typing import Any

import torch
from torch import Tensor

from lepo_kernels.rollout.record import LatentRollout


def prompt_fault(prompt: Any) -> TypeError | ValueError | None:
    """What is wrong with a prompt, whatever the tokenizer; None if it is text or chat messages.

    The text of the error follows "the prompt".
    """
    if isinstance(prompt, str):
        return ValueError("is empty") if prompt == "" else _fault_of_text(prompt)
    if not isinstance(prompt, list) or not all(isinstance(m, dict) and "role" in m for m in prompt):
        return TypeError(
            "is neither a str nor a list of chat messages (dicts with role and content) but "
            f"{type(prompt).__name__}: {_shown(prompt)}"
        )
    if not prompt:
        return ValueError("has no messages")
    for index, message in enumerate(prompt):
        fault = _fault_of_message(message)
        if fault is not None:
            return type(fault)(f"is wrong in message {index}: it {fault}")
    return None


def _fault_of_message(message: dict[str, Any]) -> TypeError | ValueError | None:
    if not isinstance(message["role"], str):
        return TypeError(f"has the role {_shown(message['role'])}, which is no str")
    content = message.get("content")
    if content is None:
        # A turn that calls a tool may say nothing besides.
        return None if message.get("tool_calls") else TypeError("has no content")
    if not isinstance(content, str):
        # A template for text would write such a list out as Python code.
        return TypeError(f"has a {type(content).__name__} as content; only text is supported")
    return _fault_of_text(content)


def _shown(value: Any) -> str:
    """The beginning of the value; Python prints no int of thousands of digits."""
    try:
        return repr(value)[:80]
    except ValueError:
        return "..."


def _fault_of_text(text: str) -> ValueError | None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        half = text[error.start]
        return ValueError(f"holds half of a surrogate pair, {half!r}, at {error.start}")
    return None


def prompt_text(tokenizer: Any, prompt: Any) -> str:
    """Render a prompt: text as it is, chat messages through the tokenizer's template.

    Raises:
        TypeError, ValueError: neither text nor a list of messages; see `prompt_fault`.
    """
    fault = prompt_fault(prompt)
    if fault is not None:
        raise type(fault)(f"prompt: {fault}")
    if isinstance(prompt, str):
        return prompt
    rendered = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
    return str(rendered)


def ids_of_texts(tokenizer: Any, texts: list[str], special: list[bool]) -> list[list[int]]:
    """The ids of rendered prompts.

    Args:
        tokenizer: a transformers tokenizer.
        texts: what `prompt_text` made of the prompts.
        special: for each whether the tokenizer is to add its special tokens: a chat template writes
            its own, and they must not come twice.
    """
    ids: list[list[int]] = [[]] * len(texts)
    for kind in (True, False):
        rows = [row for row, is_special in enumerate(special) if is_special is kind]
        if rows:
            some = [texts[row] for row in rows]
            found = tokenizer(some, add_special_tokens=kind, verbose=False)["input_ids"]
            for row, its_ids in zip(rows, found, strict=True):
                ids[row] = its_ids
    return ids


def prompt_ids(tokenizer: Any, prompt: Any) -> list[int]:
    """The ids of a prompt.

    Raises:
        TypeError, ValueError: neither text nor a list of messages, or it has no tokens.
    """
    text = prompt_text(tokenizer, prompt)
    (ids,) = ids_of_texts(tokenizer, [text], [isinstance(prompt, str)])
    if not ids:
        raise ValueError(f"prompt: has no tokens: {prompt!r}")
    return ids


def encode_prompts(
    tokenizer: Any,
    prompts: list[Any],
    max_length: int | None = None,
) -> tuple[Tensor, Tensor]:  # [B, P] int64, [B, P] int64
    """Tokenise prompts and pad them on the left.

    Args:
        tokenizer: a transformers tokenizer with a pad token.
        prompts: each a str or a list of chat messages.
        max_length: longer ones lose their first tokens; None cuts nothing.

    Returns:
        ids [B, P] and attention mask [B, P], padded on the left to the longest prompt.

    Raises:
        TypeError, ValueError: a prompt is neither text nor messages, or has no tokens.
    """
    rows = [cut_prompt(prompt_ids(tokenizer, prompt), max_length) for prompt in prompts]
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), tokenizer.pad_token_id, dtype=torch.int64)
    mask = torch.zeros(len(rows), width, dtype=torch.int64)
    for index, row in enumerate(rows):
        ids[index, width - len(row) :] = torch.tensor(row, dtype=torch.int64)
        mask[index, width - len(row) :] = 1
    return ids, mask


def cut_prompt(ids: list[int], max_length: int | None) -> list[int]:
    """The last ``max_length`` ids of a prompt; None cuts nothing."""
    return ids if max_length is None else ids[-max_length:]


def answer_ids(rollout: LatentRollout) -> list[list[int]]:
    """Per sample, the ids of its discrete steps: what it said after thinking, EOS included."""
    is_answer = rollout.completion_mask & ~rollout.latent_mask
    return [
        ids[keep].tolist()
        for ids, keep in zip(rollout.completion_ids.cpu(), is_answer.cpu(), strict=True)
    ]


def answer_texts(tokenizer: Any, rollout: LatentRollout) -> list[str]:
    """Per sample, the text of its discrete steps, without special tokens."""
    return [
        str(text) for text in tokenizer.batch_decode(answer_ids(rollout), skip_special_tokens=True)
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
