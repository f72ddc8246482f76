"""Finding the parts of a wrapped model, and replacing their ``forward`` for a time."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

_WRAPPERS = (
    "DistributedDataParallel",
    "FullyShardedDataParallel",
    "DeepSpeedEngine",
    "OptimizedModule",
)


def unwrap_model(model: Any) -> Any:
    """Reach the transformers model inside DDP, FSDP, DeepSpeed, compile and peft wrappers.

    Raises:
        ValueError: peft prompt learning, whose virtual tokens a rollout would lose.
        TypeError: not a decoder-only transformers model.
    """
    while True:
        if type(model).__name__ in _WRAPPERS:
            model = model._orig_mod if hasattr(model, "_orig_mod") else model.module
        elif hasattr(model, "get_base_model") and hasattr(model, "peft_config"):
            if model.active_peft_config.is_prompt_learning:
                raise ValueError(
                    "model: peft prompt learning is not supported (its virtual tokens are not part "
                    f"of the model), got {model.active_peft_config.peft_type}"
                )
            model = model.get_base_model()
        else:
            break
    if not isinstance(model, nn.Module) or not hasattr(model, "get_input_embeddings"):
        raise TypeError(f"model: expected a transformers causal LM, got {type(model).__name__}")
    base: Any = model
    if base.config.is_encoder_decoder:
        raise ValueError(f"model: expected a decoder-only model, got {type(model).__name__}")
    return base


def sharding_of(model: nn.Module) -> str | None:
    """What spreads the model's weights over ranks at this moment; None if they are whole.

    Weights that are gathered for the moment (``GatheredParameters``, ``summon_full_params``) are.
    """
    for name, parameter in model.named_parameters():
        if type(parameter).__name__ == "DTensor":
            return f"{name} is a DTensor, as of FSDP2 or tensor parallelism"
        if hasattr(parameter, "ds_id") and parameter.numel() == 0:
            return f"{name} is partitioned by DeepSpeed ZeRO-3"
    return None


def output_embeddings(base: Any) -> nn.Module:
    """The output projection of an unwrapped model.

    Raises:
        ValueError: it has none.
    """
    head = base.get_output_embeddings()
    if not isinstance(head, nn.Module):
        raise ValueError(f"model: expected a language-model head, {type(base).__name__} has none")
    return head


@contextmanager
def swapped_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Let ``forward`` serve calls of ``module``; module hooks (FSDP, ZeRO-3) stay around it.

    On leaving, also by an exception, the module is as it was: a ``forward`` that another library
    had put on the instance comes back, else the attribute goes away.
    """
    before = module.__dict__.get("forward")
    module.__dict__["forward"] = forward
    try:
        yield
    finally:
        if before is None:
            del module.__dict__["forward"]
        else:
            module.__dict__["forward"] = before


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put every module in eval mode, and each one's own mode back on leaving.

    In train mode with gradient checkpointing, transformers models drop the cache silently.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def runs_plain_forward(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether ``module`` computes what ``kind`` computes, on a floating-point weight.

    False for subclasses with a forward of their own (quantised layers), for adapters, and where
    another library put a ``forward`` on the instance (offloading).
    """
    if not isinstance(module, kind) or "forward" in module.__dict__:
        return False
    weight = module.weight
    plain = type(module).forward is kind.forward
    return plain and isinstance(weight, torch.Tensor) and weight.is_floating_point()
