"""The rollout: latent steps, a forced suffix, then discrete steps.

Contract: a row's samples depend on (its prompt, seed, its row key, the settings), not on the batch
it is in, on padding, or on rows that leave the batch, up to floating-point noise of the model.
Noise of completion step t is keyed by (seed, row key, t). Log-probabilities are those of
softmax(logits / temperature) over the whole vocabulary, whatever the filters kept.
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lepo_kernels.rollout._modules import evaluating, output_embeddings, sharding_of, unwrap_model
from lepo_kernels.rollout.config import LatentGenerationConfig
from lepo_kernels.rollout.decoder import Decoder
from lepo_kernels.rollout.decoding_way import decoding_way
from lepo_kernels.rollout.model_cache import cache_argument
from lepo_kernels.rollout.probe import check_served
from lepo_kernels.rollout.prompts import Prompts
from lepo_kernels.rollout.record import LatentRollout
from lepo_kernels.rollout.soft_embedding import SoftEmbedding
from lepo_kernels.rollout.static_decoder import StaticDecoder
from lepo_kernels.validation import INDEX_DTYPES, check_integer, check_tensor


@torch.no_grad()
def latent_generate(
    model: Any,
    input_ids: Tensor,  # [B, P]
    attention_mask: Tensor,  # [B, P]
    config: LatentGenerationConfig,
    *,
    num_return_sequences: int = 1,
    seed: int = 0,
    row_keys: Tensor | None = None,  # [B * num_return_sequences]
    progress: Callable[[int, int], None] | None = None,
    backend: str | None = None,
) -> LatentRollout:
    """Sample completions that start with latent steps (LEPO, arXiv 2604.17892).

    The model runs in eval mode for the duration; the mode of each of its modules comes back, also
    after an exception.

    Args:
        model: a decoder-only transformers model, possibly inside DDP or peft. It is run without
            its DDP or ``torch.compile`` wrapper. Sharded weights (FSDP2, ZeRO-3) must be gathered
            for the whole call: ranks finish after different numbers of steps.
        input_ids: [B, P] int64 or int32, left-padded prompts.
        attention_mask: [B, P] bool or integer, 1 on the prompt's tokens.
        config: see `LatentGenerationConfig`.
        num_return_sequences: samples R per prompt, side by side in the result. They share the pass
            over their prompt.
        seed: any 64-bit integer.
        row_keys: [B R] int64, a key per sample: the same key gives the same noise. Default: 0, 1,
            and so on.
        progress: called after each step with (steps done, steps at most).
        backend: see `lepo_kernels.backend`.

    Returns:
        `LatentRollout` of B R rows, with as many completion steps as the longest row has.

    Raises:
        TypeError: an argument has the wrong type or dtype, or the model is no causal LM.
        ValueError: an argument has the wrong shape or device; a prompt is empty or not
            left-padded; an id of the settings is outside the vocabulary; the settings ask for a
            static cache or compiled steps that the model cannot have; a model whose weights are
            sharded over ranks, whose inputs cannot be mixtures, or that takes no key-value cache,
            or does not use it, or whose cached steps differ from a full forward (see
            `lepo_kernels.rollout.probe`; checked on a few tokens before a model's first rollout).
    """
    base = unwrap_model(model)
    check_integer("num_return_sequences", num_return_sequences, 1)
    _check_arguments(base, input_ids, attention_mask, config, seed, row_keys, num_return_sequences)
    soft = SoftEmbedding(base, backend=backend)
    columns = input_ids.shape[1] + config.max_new_tokens
    padded = not bool(attention_mask.all())
    way = decoding_way(base, config)
    check_served(base, soft, way.cache, columns, padded=padded)
    prompts = Prompts.repeated(input_ids, attention_mask, num_return_sequences, row_keys)
    with evaluating(base):
        if way.cache == "dynamic":
            return Decoder(base, soft, prompts, config, seed, backend).run(progress)
        decoder = StaticDecoder(base, soft, prompts, config, seed, backend, compiled=way.compiled)
        return decoder.run(progress)


def _check_arguments(
    base: Any,
    input_ids: Tensor,
    attention_mask: Tensor,
    config: LatentGenerationConfig,
    seed: int,
    row_keys: Tensor | None,
    num_return_sequences: int,
) -> None:
    if not isinstance(config, LatentGenerationConfig):
        raise TypeError(f"config: expected a LatentGenerationConfig, got {type(config).__name__}")
    output_embeddings(base)
    if "inputs_embeds" not in inspect.signature(base.forward).parameters:
        raise ValueError(f"model: {type(base).__name__}.forward takes no inputs_embeds")
    cache_argument(base)
    sharding = sharding_of(base)
    if sharding is not None:
        raise ValueError(
            f"model: its weights are sharded ({sharding}); gather them for the rollout"
        )
    check_tensor("input_ids", input_ids, ("B", "P"), INDEX_DTYPES)
    B, P = input_ids.shape
    if B == 0 or P == 0:
        raise ValueError(f"input_ids: expected at least one row and one column, got {[B, P]}")
    mask_dtypes = (torch.bool, *INDEX_DTYPES)
    check_tensor("attention_mask", attention_mask, (B, P), mask_dtypes, input_ids.device)
    check_integer("seed", seed, -(2**63), 2**64 - 1)
    if row_keys is not None:
        check_tensor(
            "row_keys", row_keys, (B * num_return_sequences,), (torch.int64,), input_ids.device
        )
    _check_left_padded(attention_mask)
    vocab = base.config.get_text_config().vocab_size
    for name in ("eos_token_ids", "latent_suffix_ids"):
        outside = [i for i in getattr(config, name) if i >= vocab]
        if outside:
            raise ValueError(f"{name}: expected ids in [0, {vocab}), got {outside}")
    if config.pad_token_id >= vocab:
        raise ValueError(f"pad_token_id: expected an id in [0, {vocab}), got {config.pad_token_id}")
    # On every device: a tokenizer can have ids that the model has no rows for.
    low, high = torch.stack(torch.aminmax(input_ids)).tolist()
    if low < 0 or high >= vocab:
        raise ValueError(
            f"input_ids: expected values in [0, {vocab}), got {low if low < 0 else high}"
        )


def _check_left_padded(attention_mask: Tensor) -> None:
    used = attention_mask.bool()
    empty = ~used[:, -1]
    broken = (used[:, :-1] & ~used[:, 1:]).any(dim=1)
    for i, (is_empty, is_broken) in enumerate(torch.stack([empty, broken], dim=1).tolist()):
        if is_broken:
            raise ValueError(
                f"attention_mask: expected left padding (0s, then 1s) in every row, row {i} has a "
                "0 after a 1"
            )
        if is_empty:
            raise ValueError(f"attention_mask: expected a prompt in every row, row {i} has none")
