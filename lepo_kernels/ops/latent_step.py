"""A draw and its mixture in one call: a decoding step, from logits to the next input.

Design note: what `lepo_kernels.sample_latent` followed by `lepo_kernels.mix_embeddings` computes,
to the bit, at the price of one call: nothing between the two kernels waits for Python. The draw is
a constant; the gradient of the table is that of the mixture, with the ids and weights of the draw.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from lepo_kernels import dispatch
from lepo_kernels.ops._library import save, saved, torch_op
from lepo_kernels.ops.mix_embeddings import mix_embeddings_backward
from lepo_kernels.ops.sample_latent import LatentSample, empty_sample, prepare_draw
from lepo_kernels.structures import Draw
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
    draw = prepare_draw(
        logits, tau, temperature, top_k, top_p, min_p, noise, noise_scale, noise_clamp, num_draws,
        exclude_ids, seed, row_keys, step,
    )  # fmt: skip
    check_tensor("embedding", embedding, ("V", "D"), FLOAT_DTYPES, logits.device)
    if embedding.shape[0] < logits.shape[1]:
        raise ValueError(
            f"embedding: expected a row for each of the {logits.shape[1]} columns of logits, "
            f"got {embedding.shape[0]}"
        )
    chosen = dispatch.resolve("latent_step", logits.device, backend, logits.dtype, embedding.dtype)
    return _latent_step(logits.detach(), embedding, draw, chosen)


@torch_op("latent_step")
def _latent_step(
    logits: Tensor,  # [N, V]
    embedding: Tensor,  # [V or more, D]
    draw: Draw,
    backend: str,
) -> LatentStep:
    mixed = embedding.new_empty(logits.shape[0], embedding.shape[1])
    return LatentStep(empty_sample(logits, draw), mixed)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: LatentStep) -> None:
    _, embedding, _, backend = inputs
    ctx.mark_non_differentiable(*output.sample)
    save(ctx, output.sample.ids, output.sample.weights, embedding, backend)


def _backward(ctx: Any, *grads: Tensor) -> dict[str, Tensor]:
    ids, weights, embedding, backend = saved(ctx)
    _, dembedding = mix_embeddings_backward(
        grads[-1], ids, weights, embedding, False, True, backend
    )
    return {"embedding": dembedding}


_latent_step.register_autograd(_backward, _setup_context)
