"""What the trainer does to its arguments before any work starts."""

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer


def check_dataset(name: str, dataset: Any) -> None:
    """Check that a dataset, or each of a dict of datasets, has rows with a prompt.

    Raises:
        TypeError: not a dataset with a length.
        ValueError: it is empty, or its rows have no column ``prompt``.
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
    if not isinstance(dataset[0], dict) or "prompt" not in dataset[0]:
        raise ValueError(f"{name}: rows need a column 'prompt'")


def load_model(model: Any, settings: dict[str, Any] | None) -> Any:
    """The model itself, or the one that a name stands for.

    Raises:
        ValueError: settings for ``from_pretrained`` with a model that is loaded already.
    """
    if isinstance(model, str):
        return AutoModelForCausalLM.from_pretrained(model, **(settings or {}))
    if settings is not None:
        raise ValueError("model_init_kwargs: only used when model is a name")
    return model


def load_tokenizer(model: Any, tokenizer: Any) -> Any:
    """The tokenizer, or the model's own; it pads with the end of sequence where it has no pad."""
    if tokenizer is None:
        tokenizer = AutoTokenizer.from_pretrained(model.config._name_or_path)
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


def frozen_copy(model: Any) -> Any:
    """A copy that stays as the model is now."""
    return copy.deepcopy(model).eval().requires_grad_(False)


@contextlib.contextmanager
def adapter_disabled(model: Any) -> Iterator[Any]:
    """The model as it was before its adapter, for as long as the context lasts."""
    with model.disable_adapter():
        yield model
