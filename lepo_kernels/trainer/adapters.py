"""What may be trained of a model: adapters that are loaded, put on, or there already."""

from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM
from transformers.utils import logging

logger = logging.get_logger(__name__)


def is_peft(model: Any) -> bool:
    """Whether the model is a `PeftModel`."""
    return hasattr(model, "peft_config") and hasattr(model, "get_base_model")


def holds_adapter(name: str) -> bool:
    """Whether a folder holds a saved adapter instead of a whole model."""
    return (Path(name) / "adapter_config.json").is_file()


def load_adapter(name: str, settings: dict[str, Any]) -> Any:
    """A saved adapter, to be trained on, on the base model that it names.

    Args:
        name: the folder or hub id of the adapter.
        settings: arguments of ``from_pretrained`` of the base model.

    Raises:
        ImportError: peft is not installed.
        OSError: the base model is not there.
    """
    try:
        from peft import PeftConfig, PeftModel
    except ImportError as error:
        raise ImportError(
            f"model: {name} is an adapter and needs the package peft; "
            "run: pip install 'lepo_kernels[peft]'"
        ) from error
    base = PeftConfig.from_pretrained(name).base_model_name_or_path
    model = AutoModelForCausalLM.from_pretrained(base, **settings)
    return PeftModel.from_pretrained(model, name, is_trainable=True)


def put_on_adapter(model: Any, peft_config: Any) -> Any:
    """The model inside a new peft adapter.

    Raises:
        ValueError: it has an adapter already, which the new one would replace without a word.
    """
    if is_peft(model) or _injected(model):
        raise ValueError(
            "peft_config: the model has an adapter already, "
            f"{', '.join(map(repr, model.peft_config))}; leave peft_config (lora_r) out to train "
            "that one on, or merge it (merge_and_unload), save the result, and start from it"
        )
    from peft import get_peft_model

    return get_peft_model(model, peft_config)


def check_trainable(model: Any) -> None:
    """Check that training the model would change what it computes.

    Raises:
        ValueError: all parameters are frozen; or the model is a `PeftModel` whose active adapter is
            frozen, merged, switched off, or one of several; or transformers itself loaded an
            adapter into it, of which nothing else knows.
    """
    if _injected(model):
        raise ValueError(
            "model: holds an adapter that transformers loaded into it; load it with "
            "peft.PeftModel.from_pretrained(base_model, adapter, is_trainable=True) instead"
        )
    if is_peft(model):
        _check_adapter(model)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError("model: all parameters are frozen (requires_grad=False): nothing to train")


def report_dropout(model: Any) -> None:
    """Say which adapter's dropout will be switched off: it was asked for by name."""
    for adapter, config in getattr(model, "peft_config", {}).items():
        for name, rate in vars(config).items():
            if "dropout" in name and isinstance(rate, float) and rate > 0:
                logger.warning(
                    f"The {name} = {rate} of adapter {adapter!r} is switched off, as all dropout "
                    "is (disable_dropout)"
                )


def _check_adapter(model: Any) -> None:
    if len(model.active_adapters) != 1:
        raise ValueError(
            f"model: expected one active adapter, got {model.active_adapters}; a checkpoint "
            "restores one. Choose it with set_adapter"
        )
    active = model.active_adapters[0]
    status = model.get_model_status()
    if status.enabled is not True:
        raise ValueError(
            f"model: its adapter {active!r} is switched off; call enable_adapter_layers()"
        )
    if status.merged_adapters:
        raise ValueError(
            f"model: its adapter {active!r} is merged into the weights and would not be trained; "
            "call unmerge_adapter()"
        )
    if not any(
        p.requires_grad for name, p in model.named_parameters() if active in name.split(".")
    ):
        raise ValueError(
            f"model: its active adapter {active!r} is frozen: nothing to train; load it with "
            "PeftModel.from_pretrained(base_model, adapter, is_trainable=True)"
        )


def _injected(model: Any) -> bool:
    """Whether transformers' own ``from_pretrained`` or ``load_adapter`` put an adapter into it."""
    return not is_peft(model) and bool(getattr(model, "_hf_peft_config_loaded", False))
