"""One update: the loss of a batch, its gradients, clipping, and a step of AdamW.

Ours is `LEPOTrainer`'s own loss. The optimizer's learning rate is 0, so that every call starts from
the same weights; it costs the same.
"""

import importlib.util
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.case import (
    Case,
    Family,
    Implementation,
    dtype_name,
    generator,
)
from benchmarks.end_to_end import models
from benchmarks.end_to_end.errors import ROOM, Errors, assert_as_good, assert_right, errors
from benchmarks.end_to_end.exact import Exact, exact_update
from benchmarks.end_to_end.models import (
    EOS,
    TINY,
    Model,
    lengths_of,
    planned,
    prompt_lengths,
    random_prompts,
)
from benchmarks.plan import Plan

TOP_K = 30
LARGEST_NORM = 1.0


@dataclass
class Inputs:
    model: Any
    optimizer: Any
    experience: Any  # lepo_kernels.trainer.experience.Experience, B samples

    @cached_property
    def trainer(self) -> Any:
        return make_trainer(self.model, len(self.experience))

    @cached_property
    def exact(self) -> Exact:
        """What an update has to give; made at the first check, before anything is timed."""
        return exact_update(self.model, self.experience, LARGEST_NORM)

    @cached_property
    def usual(self) -> Errors:
        """What rounding costs in this model: the errors of the plain implementation."""
        # First what takes the more memory.
        exact = self.exact
        return errors(exact, *named(self.model, plain(self)))


class Update(NamedTuple):
    loss: Tensor  # []
    norm: Tensor  # [], of all gradients, before they were clipped
    layers: tuple[Tensor, ...]  # gradients of all but the table
    table: Tensor  # [V, D], gradient


def ours(x: Inputs) -> Update:
    return update(x, lambda: x.trainer.compute_loss(x.model, x.experience))


def plain(x: Inputs) -> Update:
    from benchmarks.baselines.training import lepo_loss

    samples = as_samples(x.experience.rollout)
    return update(x, lambda: lepo_loss(x.model, samples, x.experience.advantages)[0])


def update(x: Inputs, loss_of: Callable[[], Tensor]) -> Update:
    loss = loss_of()
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(x.model.parameters(), LARGEST_NORM)
    x.optimizer.step()
    table = x.model.get_input_embeddings().weight
    layers = tuple(p.grad for p in x.model.parameters() if p is not table)
    result = Update(loss.detach(), norm, layers, table.grad)
    x.optimizer.zero_grad(set_to_none=True)
    return result


def as_samples(rollout: Any) -> Any:
    """A `LatentRollout` whose latent steps all come first, as the baseline keeps it."""
    from benchmarks.baselines.rollout import Samples

    return Samples(
        torch.cat([rollout.prompt_ids, rollout.completion_ids], dim=1),
        torch.cat([rollout.prompt_mask, rollout.completion_mask], dim=1).long(),
        rollout.latent_ids,
        rollout.latent_weights,
        rollout.prompt_ids.shape[1],
    )


def named(model: Any, result: Update) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Loss, norm, and the gradients by the names of their parameters."""
    table = model.get_input_embeddings().weight
    layers = iter(result.layers)
    gradients = {
        name: result.table if p is table else next(layers) for name, p in model.named_parameters()
    }
    return result.loss, result.norm, gradients


def check_ours(x: Inputs, result: Update) -> None:
    """No further from the exact update than rounding takes the plain implementation."""
    got = errors(x.exact, *named(x.model, result))
    assert_as_good(got, x.usual, ROOM[x.model.dtype])


def check_plain(x: Inputs, result: Update) -> None:
    """As far from the exact update as rounding takes it, and no further."""
    assert_right(errors(x.exact, *named(x.model, result)), ROOM[x.model.dtype])


def completion_lengths(rows: int, latent: int, discrete: int) -> list[int]:
    """From all steps down to those with half of the discrete ones."""
    return lengths_of(rows, latent + discrete, latent + discrete // 2)


def random_experience(
    rows: int, prompt_length: int, latent: int, discrete: int, vocab: int, device: torch.device
) -> Any:
    """Samples [rows, latent + discrete] of no policy, right-padded, all with an advantage."""
    from lepo_kernels.rollout.record import LatentRollout
    from lepo_kernels.trainer.experience import Experience
    from lepo_kernels.trainer.token_weights import token_weights

    rng = generator(device)
    prompt_ids, prompt_mask = random_prompts(rows, prompt_length, vocab, rng)
    T = latent + discrete
    ids = torch.randint(1, vocab, (rows, T), device=device, generator=rng)
    lengths = torch.tensor(completion_lengths(rows, latent, discrete), device=device)
    mask = torch.arange(T, device=device) < lengths[:, None]
    is_latent = (torch.arange(T, device=device) < latent).expand(rows, T)
    scores = torch.randn(rows * latent, vocab, device=device, generator=rng).topk(TOP_K)
    zeros = torch.zeros(rows, T, device=device)
    rollout = LatentRollout(
        prompt_ids=prompt_ids,
        prompt_mask=prompt_mask.bool(),
        completion_ids=ids.masked_fill(~mask, EOS),
        completion_mask=mask,
        latent_mask=is_latent.clone(),
        action_mask=mask.clone(),
        latent_ids=scores.indices.reshape(rows, latent, TOP_K),
        latent_weights=scores.values.mul(4).softmax(-1).reshape(rows, latent, TOP_K),
        latent_count=torch.full((rows, latent), TOP_K, device=device),
        latent_scores=torch.zeros(rows, latent, 0, device=device),
        log_probs=zeros,
        entropy=zeros.clone(),
        row_keys=torch.arange(rows, device=device),
        truncated=lengths == T,
    )
    weights = token_weights(mask[None], "dapo", T)[0]
    # Of both signs, and all so large that a sample left out is seen.
    advantages = 0.5 + torch.rand(rows, device=device, generator=rng)
    advantages[1::2] *= -1
    return Experience(rollout, advantages, weights)


def make_trainer(model: Any, batch_size: int) -> Any:
    """A `LEPOTrainer` of this model; its dataset and rewards are never used."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    from lepo_kernels.trainer.config import LEPOConfig
    from lepo_kernels.trainer.trainer import LEPOTrainer

    words = Tokenizer(WordLevel({"<eos>": EOS}, unk_token="<eos>"))
    with tempfile.TemporaryDirectory() as folder:
        return LEPOTrainer(
            model=model,
            reward_funcs=lambda completions, **_: [0.0] * len(completions),
            args=LEPOConfig(
                output_dir=folder,
                per_device_train_batch_size=batch_size,
                num_generations=batch_size,
                report_to="none",
                use_cpu=model.device.type == "cpu",
                top_k=TOP_K,
                # The rollout is made up: no policy has sampled it.
                sampling_logp_difference_warning=1e9,
                sampling_logp_difference_error=1e9,
            ),
            processing_class=PreTrainedTokenizerFast(
                tokenizer_object=words, eos_token="<eos>", pad_token="<eos>"
            ),
        )


def why_not(device: torch.device) -> str | None:
    """Say why no trainer can be built; None if it can."""
    missing = importlib.util.find_spec("accelerate") is None
    return models.why_not(device) or ("accelerate is not installed" if missing else None)


def case(
    model: Model, rows: int, prompt_length: int, latent: int, discrete: int, dtype: torch.dtype
) -> Case:
    def make(device: torch.device) -> Inputs:
        policy = model.build(device, dtype).train()
        optimizer = torch.optim.AdamW(policy.parameters(), lr=0.0)
        # A first step makes the optimizer's state.
        for parameter in policy.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        shape = (rows, prompt_length, latent, discrete, model.vocab)
        return Inputs(policy, optimizer, random_experience(*shape, device))

    columns = prompt_length + latent + discrete
    lengths = f"{prompt_length} + {latent} + {discrete}"
    prompts = sum(prompt_lengths(rows, prompt_length))
    steps = sum(completion_lengths(rows, latent, discrete))
    shape = f"{model.name}: {dtype_name(dtype)}, {rows} rows of {lengths} steps"
    return Case(
        op="training step",
        shape=shape,
        make=make,
        implementations=(
            Implementation("ours", "ours", ours, check_ours, why_not),
            Implementation("plain transformers", "other", plain, check_plain, why_not),
        ),
        # AdamW reads weight, gradient and two moments, and writes three of them; forward and
        # backward read the weights, backward writes the gradient.
        bytes=10 * model.bytes(dtype),
        # Forward, and twice as much backward, without padding; logits at the steps of completions,
        # the last of which is never fed.
        flops=3 * model.flops(prompts + steps - rows, steps),
        dtype=dtype,
        tokens=rows * columns,
        another=lambda x, _: x,
    )


def timed(plan: Plan) -> Iterable[Case]:
    lengths = (128, 64, 448) if plan.device.type == "cuda" else (32, 16, 64)
    for model, dtype in planned(plan):
        rows = 8 if plan.device.type == "cuda" else 4
        while rows and peak(model, rows, sum(lengths), dtype) > 2 * plan.memory:
            rows //= 2
        if rows:
            yield case(model, rows, *lengths, dtype)


def peak(model: Model, rows: int, columns: int, dtype: torch.dtype) -> int:
    """Bytes that a case needs at most, at its first check, which holds one result more."""
    weights, single = model.bytes(dtype), torch.float32
    # The plain loss and its backward pass hold some seven times all its logits in float32.
    logits = 28 * columns * model.vocab
    # Weights, two moments, gradients, a result, and the exact gradients.
    plain = 6 * weights + rows * (logits + columns * model.activations(dtype))
    # Weights, two moments and a result; the exact update's own weights and gradients, two more
    # gradients of the table, and one row.
    exact = 4 * weights + 2 * model.bytes(single) + 2 * single.itemsize * model.head
    exact += logits + columns * model.activations(single)
    return max(plain, exact)


FAMILY = Family(
    timed,
    tiny=(
        case(TINY, 4, 6, 3, 5, torch.float32),
        case(TINY, 4, 6, 3, 5, torch.bfloat16),
    ),
)
