"""What the trainer does to its arguments before any work starts."""

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from lepo_kernels.tasks.hub import reach_model
from lepo_kernels.trainer.prompts import is_prompt, prompt_ids

# What the trainer itself hands to reward functions.
RESERVED_COLUMNS = ("prompts", "completions", "completion_ids")


def check_dataset(name: str, dataset: Any) -> None:
    """Check that a dataset, or each of a dict of datasets, has a usable prompt in every row.

    Raises:
        TypeError: not a dataset with a length, or a prompt that is neither text nor messages.
        ValueError: it is empty, its rows have no column ``prompt`` or one of another's name.
    """
    if dataset is None:
        return
    if isinstance(dataset, dict):
        for key, part in dataset.items():
            check_dataset(f"{name}[{key!r}]", part)
        return
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise TypeError(f"{name}: expected a dataset with a length, got {type(dataset).__name__}")
    if len(dataset) == 0:
        raise ValueError(f"{name}: has no rows")
    columns = dataset[0].keys() if isinstance(dataset[0], dict) else ()
    if "prompt" not in columns:
        raise ValueError(f"{name}: rows need a column 'prompt'")
    for reserved in RESERVED_COLUMNS:
        if reserved in columns:
            raise ValueError(
                f"{name}: the column {reserved!r} would hide what reward functions are given "
                "under that name; rename it"
            )
    for index in range(len(dataset)):
        row = dataset[index]
        if row.keys() != columns:
            raise ValueError(f"{name}: row {index} has other columns than row 0")
        if not is_prompt(row["prompt"]):
            raise TypeError(
                f"{name}: the prompt of row {index} is neither a str nor a list of chat messages "
                f"but {type(row['prompt']).__name__}: {str(row['prompt'])[:80]}"
            )


def check_prompt_lengths(name: str, dataset: Any, tokenizer: Any, max_length: int) -> None:
    """Check that no prompt is longer than ``max_length`` tokens.

    Raises:
        ValueError: naming the first row that is.
    """
    if isinstance(dataset, dict):
        for key, part in dataset.items():
            check_prompt_lengths(f"{name}[{key!r}]", part, tokenizer, max_length)
        return
    for index in range(0 if dataset is None else len(dataset)):
        length = len(prompt_ids(tokenizer, dataset[index]["prompt"]))
        if length > max_length:
            raise ValueError(
                f"{name}: the prompt of row {index} has {length} tokens, "
                f"max_prompt_length is {max_length}"
            )


def load_model(model: Any, settings: dict[str, Any] | None) -> Any:
    """The model itself, or the one that a name stands for.

    Raises:
        ModelNotFoundError: see `reach_model`.
        ValueError: settings for ``from_pretrained`` with a model that is loaded already.
    """
    if isinstance(model, str):
        # float32 unless told otherwise: in bfloat16, updates at a small learning rate round away.
        chosen = reach_model(model, **{"dtype": torch.float32, **(settings or {})})
        return AutoModelForCausalLM.from_pretrained(model, **chosen)
    if settings is not None:
        raise ValueError("model_init_kwargs: only used when model is a name")
    return model


def load_tokenizer(model: Any, tokenizer: Any) -> Any:
    """The tokenizer, or the model's own; it pads with the end of sequence where it has no pad."""
    if tokenizer is None:
        name = model.config._name_or_path
        tokenizer = AutoTokenizer.from_pretrained(name, **reach_model(name))
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def with_adapter(model: Any, peft_config: Any) -> Any:
    """The model inside a peft adapter."""
    from peft import get_peft_model

    return get_peft_model(model, peft_config)


def is_peft(model: Any) -> bool:
    """Whether the model carries a peft adapter that can be switched off."""
    return hasattr(model, "disable_adapter")


def disable_dropout(model: Any) -> None:
    """Switch every dropout off: a ratio of policies must compare the same function."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0


def frozen_copy(model: Any) -> Any:
    """A copy that stays as the model is now."""
    return copy.deepcopy(model).eval().requires_grad_(False)


@contextlib.contextmanager
def adapter_disabled(model: Any) -> Iterator[Any]:
    """The model as it was before its adapter, for as long as the context lasts."""
    with model.disable_adapter():
        yield model
