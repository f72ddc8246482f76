"""Rollouts, one case per phase: all steps latent, or all discrete; with the pass over the prompts.

No row ends early, so that all implementations decode the same number of tokens.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.case import (
    Case,
    Family,
    Implementation,
    assert_close,
    dtype_name,
    generator,
    tolerance_of,
)
from benchmarks.end_to_end.models import (
    EOS,
    TINY,
    Model,
    planned,
    prompt_lengths,
    random_prompts,
    why_not,
)
from benchmarks.plan import Plan

TOP_K, TOP_P, TAU = 30, 0.95, 0.5
SAMPLES = 8


@dataclass
class Inputs:
    model: Any
    prompt_ids: Tensor  # [N, P]
    prompt_mask: Tensor  # [N, P]
    latent_length: int
    max_new_tokens: int
    samples: int = SAMPLES


class Sampled(NamedTuple):
    """B rows of T steps, the first L latent with K entries each."""

    soft_ids: Tensor  # [B, L, K]
    soft_weights: Tensor  # [B, L, K]
    ids: Tensor  # [B, T]


def ours(x: Inputs) -> Sampled:
    from lepo_kernels.rollout.config import LatentGenerationConfig
    from lepo_kernels.rollout.latent_generate import latent_generate

    config = LatentGenerationConfig(
        eos_token_ids=(EOS,),
        pad_token_id=EOS,
        latent_length=x.latent_length,
        max_new_tokens=x.max_new_tokens,
        tau=TAU,
        top_k=TOP_K,
        top_p=TOP_P,
    )
    made = latent_generate(
        x.model, x.prompt_ids, x.prompt_mask, config, num_return_sequences=SAMPLES
    )
    return Sampled(made.latent_ids, made.latent_weights, made.completion_ids)


def plain(x: Inputs, topk_first: bool = False) -> Sampled:
    from benchmarks.baselines.rollout import Settings, generate

    settings = Settings(
        latent_length=x.latent_length,
        max_new_tokens=x.max_new_tokens,
        eos_token_id=EOS,
        pad_token_id=EOS,
        num_generations=SAMPLES,
        tau=TAU,
        top_k=TOP_K,
        top_p=TOP_P,
        topk_first=topk_first,
    )
    made = generate(x.model, x.prompt_ids, x.prompt_mask, settings)
    return Sampled(made.soft_ids, made.soft_weights, made.ids[:, x.prompt_ids.shape[1] :])


@torch.no_grad()
def check(x: Inputs, result: Sampled) -> None:
    """Against one forward without a cache over what was fed: each step's ids are among its best."""
    latent = x.latent_length
    rows = len(x.prompt_ids) * x.samples
    assert result.ids.shape == (rows, x.max_new_tokens), "a row ended early"
    assert (result.ids > EOS).all(), "a row ended early"
    if latent:
        sums = result.soft_weights.sum(dim=-1)
        assert_close("sums of the weights", sums, torch.ones_like(sums), 1e-4)
        assert (result.soft_weights >= 0).all(), "a negative weight"
    prompt_ids, mask = (t.repeat_interleave(x.samples, 0) for t in (x.prompt_ids, x.prompt_mask))
    table = x.model.get_input_embeddings().weight
    mixed = torch.einsum("blk,blkd->bld", result.soft_weights, table[result.soft_ids].float()).to(
        table.dtype
    )
    fed = torch.cat([table[prompt_ids], mixed, table[result.ids[:, latent:]]], dim=1)[:, :-1]
    mask = torch.cat([mask, torch.ones_like(result.ids)], dim=1)[:, :-1]
    logits = x.model(
        inputs_embeds=fed,
        attention_mask=mask,
        position_ids=(mask.cumsum(dim=1) - 1).clamp(min=0),
        use_cache=False,
        logits_to_keep=x.max_new_tokens,
    ).logits  # [B, T, V]
    least = logits.topk(TOP_K, dim=-1).values[..., -1:]
    room = tolerance_of(logits.dtype) * float(logits.abs().max())
    used = logits[:, :latent].gather(-1, result.soft_ids)
    low = (used < least[:, :latent] - room) & (result.soft_weights > 0)
    assert not low.any(), "an entry that top-k drops"
    used = logits.gather(-1, result.ids[..., None])
    assert not (used < least - room).any(), "an id that top-k drops"


def case(
    model: Model, prompts: int, prompt_length: int, latent: int, discrete: int, dtype: torch.dtype
) -> Case:
    def make(device: torch.device) -> Inputs:
        ids, mask = random_prompts(prompts, prompt_length, model.vocab, generator(device))
        return Inputs(model.build(device, dtype), ids, mask, latent, latent + discrete)

    rows, steps = prompts * SAMPLES, latent + discrete
    phase = "latent" if not discrete else "discrete"
    shape = f"{model.name}: {dtype_name(dtype)}, {rows} rows, {steps} steps after {prompt_length}"
    return Case(
        op=f"rollout, {phase}",
        shape=shape,
        make=make,
        implementations=(
            Implementation("ours", "ours", ours, check, why_not),
            Implementation("plain transformers", "other", plain, check, why_not),
            Implementation(
                "plain transformers, topk first",
                "other",
                partial(plain, topk_first=True),
                check,
                why_not,
            ),
        ),
        # The weights are read once per step, and once for the prompts.
        bytes=model.bytes(dtype) * steps,
        # One pass over each prompt, without padding, serves its samples, and needs logits at its
        # end; the last step is never fed.
        flops=model.flops(sum(prompt_lengths(prompts, prompt_length)), prompts)
        + model.flops(rows * (steps - 1), rows * (steps - 1)),
        dtype=dtype,
        tokens=rows * steps,
        another=lambda x, _: x,
    )


def timed(plan: Plan) -> Iterable[Case]:
    # Short prompts: in long completions the pass over them, which ours makes once for all samples
    # of a prompt, is a small part.
    prompts, prompt, steps = (4, 128, 32) if plan.device.type == "cuda" else (2, 8, 16)
    for model, dtype in planned(plan):
        # Beside the weights, the check of a result holds all logits of its steps.
        logits = prompts * SAMPLES * steps * model.vocab * dtype.itemsize
        if model.bytes(dtype) + 2 * logits <= 2 * plan.memory:
            yield case(model, prompts, prompt, steps, 0, dtype)
            yield case(model, prompts, prompt, 0, steps, dtype)


FAMILY = Family(
    timed,
    tiny=(
        case(TINY, 2, 5, 4, 0, torch.float32),
        case(TINY, 2, 5, 0, 4, torch.float32),
        case(TINY, 2, 5, 4, 0, torch.bfloat16),
        case(TINY, 2, 5, 0, 4, torch.bfloat16),
    ),
)
