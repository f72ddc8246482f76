"""P1 and P2 in one call: a decoding step, from logits to the mixture that is the next input.

Design note: what `lepo_kernels.sample_latent` followed by `lepo_kernels.mix_embeddings` computes,
to the bit, at the price of one call: nothing between the two kernels waits for Python. The draw is
a constant; the gradient of the table is that of the mixture, with the ids and weights of the draw.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from lepo_kernels import dispatch
from lepo_kernels.ops._library import torch_op
from lepo_kernels.ops.sample_latent import (
    LatentSample,
    draw_arguments,
    fake_fields,
    kernel_arguments,
)
from lepo_kernels.validation import FLOAT_DTYPES, check_tensor


class LatentStep(NamedTuple):
    """What `latent_step` returns.

    Attributes:
        sample: the draw; nothing in it is differentiable.
        embedding: [N, D], the mixture of the rows of the table, in the table's dtype.
    """

    sample: LatentSample
    embedding: Tensor


torch.serialization.add_safe_globals([LatentStep])


def latent_step(
    logits: Tensor,  # [N, V]
    embedding: Tensor,  # [V or more, D]
    *,
    tau: float | Tensor = 1.0,
    temperature: float | Tensor = 1.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    min_p: float = 0.0,
    noise: str = "gumbel",
    noise_scale: float = 1.0,
    noise_clamp: tuple[float, float] | None = None,
    num_draws: int = 1,
    exclude_ids: Tensor | None = None,  # [M]
    seed: int | Tensor = 0,
    row_keys: Tensor | None = None,  # [N]
    step: int | Tensor = 0,
    backend: str | None = None,
) -> LatentStep:
    """Draw a soft token per row and embed it: ``e = sum_k z_k embedding[ids_k]``.

    Steps 1 to 4 of a LEPO latent step (arXiv 2604.17892): `lepo_kernels.sample_latent`, whose
    keywords these are, and `lepo_kernels.mix_embeddings` of its ids and weights, with the same
    results to the bit. A model that scales its embeddings (as Gemma does) scales the result.

    Args:
        logits: [N, V] float32, bfloat16, float16, or float64; V <= 2^26. Entries may be -inf.
        embedding: the table, [V or more, D], of any of these dtypes.
        tau, temperature, top_k, top_p, min_p, noise, noise_scale, noise_clamp, num_draws,
            exclude_ids, seed, row_keys, step: see `lepo_kernels.sample_latent`.
        backend: see `lepo_kernels.backend`.

    Returns:
        A `LatentStep`. Its ``embedding`` is differentiable in the table, whose gradient is dense
        and deterministic; the draw is a constant.

    Raises:
        TypeError, ValueError: an argument has the wrong dtype, shape, device or range.
        ValueError, IndexError: as `lepo_kernels.sample_latent`, where values are checked; elsewhere
            a row without a draw, and no other, yields NaN weights and a NaN mixture.
        RuntimeError: a second or forward-mode derivative is asked for.
    """
    arguments, numbers = draw_arguments(
        logits,
        tau,
        temperature,
        top_k,
        top_p,
        min_p,
        noise,
        noise_scale,
        noise_clamp,
        num_draws,
        exclude_ids,
        seed,
        row_keys,
        step,
    )
    check_tensor("embedding", embedding, ("V", "D"), FLOAT_DTYPES, logits.device)
    if embedding.shape[0] < logits.shape[1]:
        raise ValueError(
            f"embedding: expected a row for each of the {logits.shape[1]} columns of logits, "
            f"got {embedding.shape[0]}"
        )
    chosen = dispatch.resolve("latent_step", logits.device, backend, logits.dtype, embedding.dtype)
    *fields, mixed = torch.ops.lepo_kernels.latent_step.default(
        logits.detach(), embedding, *arguments, chosen, *numbers
    )
    return LatentStep(LatentSample(*fields), mixed)


_Results = tuple[
    Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor
]


@torch_op("latent_step")
def _latent_step(
    logits: Tensor,  # [N, V]
    embedding: Tensor,  # [V or more, D]
    tau: Tensor | None,  # [N] or [1]
    temperature: Tensor | None,  # [N] or [1]
    top_k: int,
    top_p: float,
    min_p: float,
    noise: str,
    noise_scale: float,
    clamp_low: float,
    clamp_high: float,
    num_draws: int,
    exclude_ids: Tensor | None,  # [M]
    seed: Tensor | None,  # []
    row_keys: Tensor | None,  # [N]; None numbers the rows
    step: Tensor | None,  # [N] or [1]
    backend: str,
    tau_number: float = 1.0,
    temperature_number: float = 1.0,
    seed_number: int = 0,
    step_number: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The fields of `LatentSample`, in its order, and the mixture."""
    arguments = (
        tau,
        temperature,
        top_k,
        top_p,
        min_p,
        noise,
        noise_scale,
        clamp_low,
        clamp_high,
        num_draws,
        exclude_ids,
        seed,
        row_keys,
        step,
    )
    numbers = (tau_number, temperature_number, seed_number, step_number)
    behind = kernel_arguments(backend, logits.device, arguments, numbers)
    results: _Results = dispatch.load("latent_step", backend)(logits, embedding, *behind)
    return results


@_latent_step.register_fake
def _(
    logits: Tensor,
    embedding: Tensor,
    tau: Tensor | None,
    temperature: Tensor | None,
    top_k: int,
    top_p: float,
    min_p: float,
    noise: str,
    noise_scale: float,
    clamp_low: float,
    clamp_high: float,
    num_draws: int,
    exclude_ids: Tensor | None,
    seed: Tensor | None,
    row_keys: Tensor | None,
    step: Tensor | None,
    backend: str,
    tau_number: float = 1.0,
    temperature_number: float = 1.0,
    seed_number: int = 0,
    step_number: int = 0,
) -> _Results:
    mixed = embedding.new_empty(logits.shape[0], embedding.shape[1])
    return *fake_fields(logits, top_k, noise, num_draws), mixed


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *fields, _ = output
    ids, weights = fields[:2]
    # The numbers come behind the backend.
    ctx.inputs, ctx.backend = len(inputs), inputs[-5]
    ctx.mark_non_differentiable(*fields)
    ctx.save_for_backward(ids, weights, inputs[1])


def _backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    ids, weights, embedding = ctx.saved_tensors
    _, dembedding = torch.ops.lepo_kernels.mix_embeddings_backward.default(
        grads[-1], ids, weights, embedding, False, True, ctx.backend
    )
    return None, dembedding, *(None,) * (ctx.inputs - 2)


_latent_step.register_autograd(_backward, setup_context=_setup_context)
