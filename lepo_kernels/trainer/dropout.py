"""Switching off what is random in a model's training mode.

Rollouts, old and reference log-probabilities are computed in evaluation mode. If the training
forward drops activations, its log-probabilities are another function's: the KL of a policy that has
not moved is not 0, and neither is the logarithm of its ratio.
"""

import re
import warnings
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from lepo_kernels.rollout._modules import unwrap_model

# Dropout rates, layerdrop, stochastic depth, router and input jitter: GPT-2 says resid_pdrop,
# Mixtral jitter_noise, peft's LoHa rank_dropout.
_RANDOM = re.compile("drop|jitter")
# Enough attention weights for a small dropout rate to show among them.
_PROBE_LENGTH = 32
# By how many units in the last place the logits may differ: the kernels are the same in both modes,
# but on a GPU atomics may sum in another order, some units per layer, which add up like a random
# walk. In a dtype of few bits the second bound is smaller; a dropout rate of 0.01 moves the logits
# by about 0.1 of their spread.
_ROUNDINGS = 1024
_MOST = 0.05


def switch_off_dropout(model: nn.Module) -> None:
    """Make the training mode of a model compute what its evaluation mode computes.

    Sets every dropout, layerdrop and jitter of the model's modules to 0, an adapter's included,
    for good; its configuration, which is saved with it, keeps its values unless the model reads
    them in its forward. Then compares the two modes on a probe prompt. The state of the random
    generators is left as it was.

    Args:
        model: the policy, on its device.

    Raises:
        ValueError: the model's logits are NaN; or the modes still differ by more than rounding, or
            setting the rates to 0 has changed the model in evaluation mode.
    """
    base = unwrap_model(model)
    wanted = _probe(model, base, training=False)
    if not bool(wanted.isfinite().any()) or bool(wanted.isnan().any()):
        raise ValueError("model: its logits for a probe prompt are not finite; check its weights")
    for module in model.modules():
        _zero_rates(module)
    if _differ(_probe(model, base, training=True), wanted, base.dtype):
        for config in _configs(model):
            _zero_rates(config)
    for mode, training in (("evaluation", False), ("training", True)):
        got = _probe(model, base, training)
        if _differ(got, wanted, base.dtype):
            raise ValueError(
                f"model: {type(base).__name__} with every dropout and jitter off differs in {mode} "
                f"mode from what it was in evaluation mode, by {_gap(got, wanted):.2g} of the "
                "spread of its logits; ratios and KL would compare two functions. "
                "disable_dropout=False trains it as it is, with beta=0 and one update per rollout"
            )


def _zero_rates(owner: Any) -> None:
    """Set the rates among an object's attributes to 0."""
    is_dropout = isinstance(owner, nn.Module) and "dropout" in type(owner).__name__.lower()
    for name, value in vars(owner).items():
        if _RANDOM.search(name) or (is_dropout and name == "p"):
            if _is_rate(value):
                setattr(owner, name, 0.0)
            elif isinstance(value, dict):  # a rate per adapter
                value.update({key: 0.0 for key, rate in value.items() if _is_rate(rate)})


def _is_rate(value: object) -> bool:
    return isinstance(value, float) and 0 < value <= 1


def _configs(model: nn.Module) -> list[Any]:
    """The configurations that the model's modules hold, and those inside them."""
    held = [m.config for m in model.modules() if _is_config(getattr(m, "config", None))]
    inside = [part for config in held for part in vars(config).values() if _is_config(part)]
    return held + inside


def _is_config(value: object) -> bool:
    return isinstance(value, PretrainedConfig)


@torch.no_grad()
def _probe(model: nn.Module, base: Any, training: bool) -> Tensor:  # [1, P, V]
    """The model's logits of a few arbitrary tokens; modes and random generators stay."""
    table = base.get_input_embeddings().weight
    config = base.config.get_text_config()
    length = min(_PROBE_LENGTH, getattr(config, "max_position_embeddings", None) or _PROBE_LENGTH)
    ids = torch.arange(length, device=table.device)[None] % config.vocab_size
    modes = [(module, module.training) for module in model.modules()]
    model.train(training)
    try:
        with _same_random_state(table.device), warnings.catch_warnings():
            # Activation checkpointing objects to a forward without gradient.
            warnings.simplefilter("ignore")
            logits: Tensor = model(input_ids=ids, use_cache=False).logits
    finally:
        for module, mode in modes:
            module.training = mode
    return logits.float()


def _same_random_state(device: torch.device) -> AbstractContextManager[None]:
    if device.type == "cpu":
        return torch.random.fork_rng(devices=[])
    return torch.random.fork_rng(devices=[device], device_type=device.type)


def _differ(
    got: Tensor,  # [1, P, V]
    wanted: Tensor,  # [1, P, V]
    dtype: torch.dtype,
) -> bool:
    """Whether two forwards differ by more than rounding."""
    return not _gap(got, wanted) <= min(_ROUNDINGS * torch.finfo(dtype).eps, _MOST)


def _gap(got: Tensor, wanted: Tensor) -> float:
    """Root mean square of the difference, relative to the spread of the logits.

    Ids that the model itself forbids (-inf) must be the same, and take no part.
    """
    allowed = wanted.isfinite()
    if not torch.equal(allowed, got.isfinite()):
        return float("inf")
    got, wanted = got[allowed], wanted[allowed]
    spread = wanted.std().clamp(min=torch.finfo(torch.float32).tiny)
    return float((got - wanted).square().mean().sqrt() / spread)
