"""What the trainer does to its arguments before any work starts."""

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from lepo_kernels.tasks.hub import reach_model


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
    """The tokenizer, or the model's own; it pads with the end of sequence where it has no pad.

    Raises:
        ValueError: it has neither.
    """
    if tokenizer is None:
        name = model.config._name_or_path
        tokenizer = AutoTokenizer.from_pretrained(name, **reach_model(name))
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is None:
            raise ValueError(
                "processing_class: has neither a pad nor an end-of-sequence token; set its "
                "pad_token"
            )
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
