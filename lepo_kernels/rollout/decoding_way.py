"""Which way a rollout is decoded: the kind of cache, and whether steps are compiled."""

import importlib.util
import logging
import weakref
from typing import Any, NamedTuple

import torch
from torch import nn

from lepo_kernels.rollout.choosing import WIDE
from lepo_kernels.rollout.config import LatentGenerationConfig
from lepo_kernels.rollout.model_cache import why_not_static

_logger = logging.getLogger(__name__)
_told: "weakref.WeakKeyDictionary[nn.Module, set[str]]" = weakref.WeakKeyDictionary()


class DecodingWay(NamedTuple):
    """How steps are made.

    Attributes:
        cache: "dynamic" or "static".
        compiled: whether a step is one compiled graph; on a static cache only.
    """

    cache: str
    compiled: bool


def decoding_way(base: Any, config: LatentGenerationConfig) -> DecodingWay:
    """The way that the settings ask for, or leave open.

    Left open, steps are compiled on a CUDA device where the model can be; where it cannot, the log
    says why, once.

    Args:
        base: the unwrapped model, on its device.
        config: how to sample.

    Raises:
        ValueError: a setting asks for what the model cannot do.
    """
    wanted = config.compile_rollout
    if wanted is None:
        wanted = _device_of(base).type == "cuda" and config.cache_implementation != "dynamic"
    reason = _why_not_compiled(base, config) if wanted else None
    if reason is not None:
        if config.compile_rollout:
            raise ValueError(f"compile_rollout: {reason}")
        _tell(base, reason)
    compiled = wanted and reason is None
    cache = config.cache_implementation
    if cache == "auto":
        cache = "static" if compiled else "dynamic"
    if cache == "static":
        reason = why_not_static(base) or _why_too_wide(config, base)
        if reason is not None:
            raise ValueError(f"cache_implementation: {reason}; take 'dynamic'")
    return DecodingWay(cache, compiled)


def _why_not_compiled(base: Any, config: LatentGenerationConfig) -> str | None:
    name = type(base).__name__
    if not getattr(base, "_can_compile_fullgraph", False):
        return f"{name} cannot be compiled as one graph"
    if getattr(base, "is_quantized", False):
        return f"{name} is quantised"
    if len({p.device for p in base.parameters()}) > 1:
        return f"{name} is spread over several devices"
    if any(m._forward_hooks or m._forward_pre_hooks for m in base.modules()):
        return f"modules of {name} have forward hooks"
    if _device_of(base).type == "cuda" and importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    return why_not_static(base) or _why_too_wide(config, base)


def _why_too_wide(config: LatentGenerationConfig, base: Any) -> str | None:
    """A record of fixed size has room for all entries that a mixture may keep."""
    if config.latent_length == 0 or config.noise == "categorical":
        return None
    width = min(config.top_k or WIDE + 1, base.config.get_text_config().vocab_size)
    if width <= WIDE:
        return None
    return f"top_k {config.top_k} leaves mixtures wider than {WIDE} entries"


def _device_of(base: Any) -> torch.device:
    device: torch.device = next(base.parameters()).device
    return device


def _tell(base: Any, reason: str) -> None:
    told = _told.setdefault(base, set())
    if reason not in told:
        told.add(reason)
        _logger.warning("rollouts are not compiled: %s", reason)
