"""Tiny models with random weights, one per family, and what the rollout tests share."""

import copy
import functools
from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch.overrides import TorchFunctionMode

from lepo_kernels.rollout._modules import unwrap_model
from lepo_kernels.rollout.config import LatentGenerationConfig
from tests.seeds import seeded

# Not divisible by 8, so that a padded or chunked vocabulary would show.
VOCAB = 131
EOS, PAD = 2, 0

SHAPE = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    # Two layers: the second one sees what the first one cached.
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": EOS,
    "pad_token_id": PAD,
    # Wide enough that random logits are far from flat, so that greedy tokens are no coin toss.
    "initializer_range": 0.2,
}

# The head dimension is independent of the hidden size in these families.
_HEAD_DIM = {"head_dim": 8}

_FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", _HEAD_DIM),
    # A window shorter than prompt + completion, so that it slides.
    "mistral": ("Mistral", {"sliding_window": 9}),
    "gemma2": (
        "Gemma2",
        # A cap that random logits reach, or the softcap would not be seen.
        {"sliding_window": 9, "final_logit_softcapping": 5.0, "query_pre_attn_scalar": 8}
        | _HEAD_DIM,
    ),
    "phi3": ("Phi3", {}),
    "gemma3": ("Gemma3Text", {"sliding_window": 9, "query_pre_attn_scalar": 8} | _HEAD_DIM),
    "cohere": ("Cohere", {"logit_scale": 0.3}),
    # Learned absolute positions: the one family here that a shift of the positions changes.
    "gpt2": ("GPT2", {"num_key_value_heads": 4}),
    "granite": ("Granite", {"logits_scaling": 2.5, "embedding_multiplier": 3.0}),
}

GENERATING = ("llama", "qwen2", "qwen3", "mistral", "gemma2", "phi3", "gpt2")
FAMILIES = tuple(_FAMILIES)
CACHES = ("dynamic", "static")


def tiny_model(family: str, **overrides: Any) -> Any:
    name, extra = _FAMILIES[family]
    config_class = getattr(transformers, f"{name}Config")
    head = "LMHeadModel" if name == "GPT2" else "ForCausalLM"
    model_class = getattr(transformers, f"{name.removesuffix('Text')}{head}")
    torch.manual_seed(seeded(0))
    model = model_class(config_class(**(SHAPE | extra | overrides)))
    return model.eval()


class _Widened(TorchFunctionMode):
    """Within it, float64 takes the place of float32 in every call of torch."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.float:
            func = torch.Tensor.double
        return func(*map(_wide, args), **{x: _wide(y) for x, y in (kwargs or {}).items()})


def _wide(argument: Any) -> Any:
    return torch.float64 if argument is torch.float32 else argument


def _widened(forward: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(forward)
    def wide_forward(*args: Any, **kwargs: Any) -> Any:
        with _Widened():
            return forward(*args, **kwargs)

    return wide_forward


def in_float64(model: Any) -> Any:
    """A copy that computes in float64, what transformers forms in float32 included: an oracle.

    That is norms, rotations and some softmaxes, whatever the dtype of the model.
    """
    wide = copy.deepcopy(model).double()
    decoder = unwrap_model(wide).base_model
    for module in decoder.modules():
        if module is not decoder and module is not wide.get_input_embeddings():
            module.forward = _widened(module.forward)
    return wide


def train_with_checkpointing(model: Any) -> None:
    """Train mode with every layer recomputed in backward, by whatever name transformers has."""
    name = "activation_checkpointing_enable"
    enable = getattr(model, name, None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    model.train()


def prompts() -> tuple[torch.Tensor, torch.Tensor]:
    """Three left-padded prompts [3, 6]: full, padded, and a single token."""
    generator = torch.Generator().manual_seed(seeded(1))
    ids = torch.randint(3, VOCAB, (3, 6), generator=generator)
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1], [0, 0, 0, 0, 0, 1]])
    return ids.masked_fill(mask == 0, PAD), mask


def settings(**overrides: Any) -> LatentGenerationConfig:
    """Latent, suffix and discrete steps; 14 columns slide the windows of 9."""
    defaults: dict[str, Any] = {
        "eos_token_ids": (EOS,),
        "pad_token_id": PAD,
        "latent_length": 4,
        "max_new_tokens": 14,
        "latent_suffix_ids": (7, 8),
        "top_k": 12,
    }
    return LatentGenerationConfig(**(defaults | overrides))
