"""Decoding by the same engine: latent steps beside discrete ones, eager and as compiled graphs.

A short prompt for each row, so that the steps are nearly all of the time. That latent steps cost
what discrete ones cost is a goal of its own, whatever others take for either, so the discrete
steps are what a row is compared with.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.case import Case, Family, Implementation, dtype_name, generator
from benchmarks.end_to_end import rollout
from benchmarks.end_to_end.models import (
    EOS,
    TINY,
    Model,
    planned,
    prompt_lengths,
    random_prompts,
    why_not,
)
from benchmarks.end_to_end.rollout import SAMPLES, Sampled
from benchmarks.gpu_run import left_out
from benchmarks.plan import Plan

# Sampled by a person, by a group, and by a server.
BATCHES = (1, 32, 256)
# On a CPU, as many layers as leave the head and the draw a share that a large model leaves them.
LAYERS = 4
PROMPT, STEPS = 8, 32


@dataclass
class Inputs:
    model: Any
    prompt_ids: Tensor  # [N, P]
    prompt_mask: Tensor  # [N, P]
    steps: int


def decode(x: Inputs, latent: bool, compiled: bool) -> Sampled:
    from lepo_kernels.rollout.config import LatentGenerationConfig
    from lepo_kernels.rollout.latent_generate import latent_generate

    config = LatentGenerationConfig(
        eos_token_ids=(EOS,),
        pad_token_id=EOS,
        latent_length=x.steps if latent else 0,
        max_new_tokens=x.steps,
        tau=rollout.TAU,
        top_k=rollout.TOP_K,
        top_p=rollout.TOP_P,
        compile_rollout=compiled,
    )
    made = latent_generate(x.model, x.prompt_ids, x.prompt_mask, config)
    return Sampled(made.latent_ids, made.latent_weights, made.completion_ids)


def check(x: Inputs, result: Sampled) -> None:
    """As a rollout's, on the first rows."""
    assert len(result.ids) == len(x.prompt_ids), "rows are missing"
    some = min(len(x.prompt_ids), SAMPLES)
    latent = result.soft_ids.shape[1]
    inputs = rollout.Inputs(x.model, x.prompt_ids[:some], x.prompt_mask[:some], latent, x.steps, 1)
    rollout.check(inputs, Sampled(*(field[:some] for field in result)))


def why_not_compiled(device: torch.device) -> str | None:
    """Say why steps cannot be compiled there; None if they can."""
    if device.type == "cuda" and left_out.lacks("triton"):
        return "triton is not installed"
    return why_not(device)


def case(model: Model, rows: int, steps: int, dtype: torch.dtype) -> Case:
    def make(device: torch.device) -> Inputs:
        ids, mask = random_prompts(rows, PROMPT, model.vocab, generator(device))
        return Inputs(model.build(device, dtype), ids, mask, steps)

    def implementation(phase: str, compiled: bool) -> Implementation:
        return Implementation(
            f"{phase} steps, compiled" if compiled else f"{phase} steps",
            "ours" if phase == "latent" else "other",
            partial(decode, latent=phase == "latent", compiled=compiled),
            check,
            why_not_compiled if compiled else why_not,
            compiles=compiled,
        )

    prompt = sum(prompt_lengths(rows, PROMPT))
    return Case(
        op="decoding, latent beside discrete",
        shape=f"{model.name}: {dtype_name(dtype)}, {rows} rows, {steps} steps after {PROMPT}",
        make=make,
        implementations=tuple(
            implementation(phase, compiled)
            for compiled in (False, True)
            for phase in ("latent", "discrete")
        ),
        bytes=model.bytes(dtype) * steps,
        flops=model.flops(prompt, rows) + model.flops(rows * (steps - 1), rows * (steps - 1)),
        dtype=dtype,
        tokens=rows * steps,
        another=lambda x, _: x,
    )


def timed(plan: Plan) -> Iterable[Case]:
    for model, dtype in planned(plan):
        if plan.device.type == "cpu":
            name = f"{model.name}, {LAYERS} layers"
            model = replace(model, name=name, layers=LAYERS)
        for rows in (plan.rows,) if plan.rows else BATCHES:
            logits = min(rows, SAMPLES) * STEPS * model.vocab * dtype.itemsize
            if model.bytes(dtype) + 2 * logits <= 2 * plan.memory:
                yield case(model, rows, STEPS, dtype)


FAMILY = Family(
    timed, tiny=tuple(case(TINY, 3, 4, dtype) for dtype in (torch.float32, torch.bfloat16))
)
