"""What the trainer does to its arguments before any work starts."""

import copy
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lepo_kernels.rollout._modules import unwrap_model
from lepo_kernels.tasks.hub import reach_model
from lepo_kernels.trainer.adapters import (
    check_trainable,
    holds_adapter,
    load_adapter,
    put_on_adapter,
)
from lepo_kernels.trainer.distribution import check_model


def load_model(model: Any, settings: dict[str, Any] | None) -> Any:
    """The model itself, or the one that a name stands for; an adapter's folder is trained on.

    Raises:
        ModelNotFoundError: see `reach_model`.
        ValueError: settings for ``from_pretrained`` with a model that is loaded already.
    """
    if isinstance(model, str):
        # float32 unless set otherwise: in bfloat16, updates at a small learning rate round away.
        chosen = reach_model(model, **{"dtype": torch.float32, **(settings or {})})
        if holds_adapter(model):
            return load_adapter(model, chosen)
        return AutoModelForCausalLM.from_pretrained(model, **chosen)
    if settings is not None:
        raise ValueError("model_init_kwargs: only used when model is a name")
    return model


def load_tokenizer(model: Any, tokenizer: Any, name: str | None = None) -> Any:
    """The tokenizer, or the model's own; it pads with the end of sequence where it has no pad.

    Args:
        model: the loaded model.
        tokenizer: None loads the model's.
        name: what the model was loaded from. An adapter's folder may hold another tokenizer than
            its base model's.

    Raises:
        ValueError: it has neither a pad nor an end-of-sequence token.
    """
    if tokenizer is None:
        own = name is not None and (Path(name) / "tokenizer_config.json").is_file()
        source = str(name) if own else model.config._name_or_path
        tokenizer = AutoTokenizer.from_pretrained(source, **reach_model(source))
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is None:
            raise ValueError(
                "processing_class: has neither a pad nor an end-of-sequence token; set its "
                "pad_token"
            )
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def trainable_policy(model: Any, peft_config: Any) -> Any:
    """The model, in a new adapter where one is asked for, checked to be one that can be trained.

    Args:
        model: the loaded model.
        peft_config: the configuration of a new adapter; None for none.

    Raises:
        TypeError, ValueError: it is sharded, is no decoder-only model, or trains nothing.
    """
    if peft_config is not None:
        model = put_on_adapter(model, peft_config)
    check_model(model)
    unwrap_model(model)  # refuses what is no decoder-only model, or learns prompts
    check_trainable(model)
    # Batches here are lists of dataset rows: transformers cannot count tokens in them.
    model.warnings_issued = {"estimate_tokens": True}
    return model


def frozen_copy(model: Any) -> Any:
    """A copy that stays as the model is now."""
    return copy.deepcopy(model).eval().requires_grad_(False)
