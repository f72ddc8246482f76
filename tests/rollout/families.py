"""A tiny random model of every family that transformers lists as a causal language model."""

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tests.rollout.models import EOS, PAD, VOCAB

# More parameters than this are a vision tower or another part that has no tiny settings here.
LARGEST = 30_000_000

# Every name that some config uses for a size; one that a config does not know does nothing.
_SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "embedding_size"), 32),
    "intermediate_size": 48,
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads"), 4),
    "num_key_value_heads": 2,
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len"), 128),
    "bos_token_id": 1,
    "eos_token_id": EOS,
    "pad_token_id": PAD,
    "initializer_range": 0.2,
    "head_dim": 8,
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "is_decoder": True,
}

# Heads of multi-head latent attention, which have widths of their own.
_LATENT_ATTENTION: dict[str, Any] = {
    "head_dim": None,
    "num_key_value_heads": 4,
    **dict.fromkeys(("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"), 8),
    "qk_head_dim": 16,
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank"), 16),
}
_MAMBA = {
    **dict.fromkeys(("mamba_n_heads", "mamba_d_head", "mamba_d_state"), 8),
    "mamba_n_groups": 1,
    "mamba_d_ssm": 64,
}
# A recurrent layer and one of attention.
_LINEAR = {"layer_types": ["linear_attention", "full_attention"]}

# What the sizes above leave inconsistent or untried: family -> changes; None leaves a size out.
_CHANGES: dict[str, dict[str, Any]] = {
    **dict.fromkeys(
        ("axk1", "axk2", "deepseek_v2", "deepseek_v3", "deepseek_v32", "sarvam_mla", "youtu"),
        _LATENT_ATTENTION,
    ),
    **dict.fromkeys(
        ("glm4_moe_lite", "glm_moe_dsa", "longcat_flash", "minicpm3"), _LATENT_ATTENTION
    ),
    **dict.fromkeys(
        ("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text", "qwen4_exp_text", "minimax"), _LINEAR
    ),
    "bailing_hybrid": {**_LINEAR, "layer_group_size": 2},
    "bamba": {**_MAMBA, "attn_layer_indices": [1]},
    "codegen": {"rotary_dim": 4},
    "cohere_compass_text": {"layer_types": ["full_attention"] * 2},
    "dots1": {"n_shared_experts": 1, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1},
    "dots3_note_text": {"num_key_value_heads": 4},
    "falcon": {"head_dim": None},
    # Multipliers as the published models have them: on the input_ids path only.
    "falcon_h1": {**_MAMBA, "embedding_multiplier": 5.6, "lm_head_multiplier": 0.5},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "gptj": {"rotary_dim": 4},
    "granitemoehybrid": {**_MAMBA, "layer_types": ["mamba", "attention"]},
    "jamba": {"attn_layer_offset": 1, "attn_layer_period": 2, "use_mamba_kernels": False},
    "kimi_linear": {**_LATENT_ATTENTION, **_LINEAR},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 1, "state_size": 8},
    # Two recurrent layers, then one of attention.
    "recurrent_gemma": {"num_hidden_layers": 3, "attention_window_size": 64},
    "xmod": {"default_language": "en_XX"},
    "zamba2": {"layers_block_type": ["mamba", "hybrid"], "num_hidden_layers": 2},
    "zaya": {"num_experts_per_tok": 1},
    # A head of more rows than the table has.
    "inkling2_text": {"unpadded_vocab_size": VOCAB + 5},
    "inkling2_loop_text": {"unpadded_vocab_size": VOCAB},
}


def families() -> tuple[str, ...]:
    """The model types."""
    return tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


class CannotBuildError(Exception):
    """A family that no tiny model can be made of here."""


def tiny_causal_lm(family: str, **overrides: Any) -> Any:
    """A random model of ``family`` in eval mode.

    Raises:
        CannotBuildError: the message says why.
    """
    changes = {**_SIZES, **_CHANGES.get(family, {}), **overrides}
    sizes = {name: value for name, value in changes.items() if value is not None}
    try:
        config = type(AutoConfig.for_model(family))(**sizes)
        with torch.device("meta"):
            count = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
    except Exception as error:  # whatever a config or a constructor raises
        raise CannotBuildError(f"{type(error).__name__}: {error}") from error
    if getattr(config, "is_encoder_decoder", False):
        raise CannotBuildError("an encoder-decoder")
    if count > LARGEST:
        raise CannotBuildError(f"{count} parameters")
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()
