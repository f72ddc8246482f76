"""One latent step's draw, from logits to a k-sparse soft token.

Design note: filters, noise and weights touch only the K best entries of a row; over the whole
vocabulary there is one selection and one log-sum-exp. Nothing here is differentiable: the weights
are constants to every method this package serves, and the gradient of their scores is
`lepo_kernels.linear_log_probs` with `lepo_kernels.formulas.scores`.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from lepo_kernels import dispatch
from lepo_kernels.dtypes import accumulation_dtype
from lepo_kernels.ops._arguments import (
    as_row_keys,
    per_row_or_number,
    seed_or_number,
    step_or_number,
)
from lepo_kernels.ops._library import torch_op
from lepo_kernels.structures import Draw
from lepo_kernels.validation import (
    FLOAT_DTYPES,
    MAX_DRAWS,
    MAX_IDS,
    check_choice,
    check_integer,
    check_number,
    check_positive_number,
    check_range,
    check_tensor,
)

NOISES = ("none", "gumbel", "gaussian", "dirichlet", "categorical")


class LatentSample(NamedTuple):
    """What `sample_latent` returns. Floating-point fields are float32 (float64 for float64).

    Attributes:
        ids: [N, K] int64, the kept entries by logit descending, then id ascending; padding repeats
            the row's first id. For ``noise="categorical"`` the draws, in the order of drawing.
        weights: [N, K], the soft token ``z``: sums to 1, 0 on padding.
        scores: [N, K], the perturbed logits ``q``; -inf on padding.
        logits: [N, K], ``a = logits / temperature`` at ``ids``; -inf on padding.
        count: [N] int32, how many of the K entries are real.
        lse: [N], log-sum-exp of ``a`` over the whole vocabulary.
        kept_lse: [N], log-sum-exp of ``a`` over the kept entries.
        entropy: [N], of softmax(a) over the whole vocabulary.
        shadow: [N] int64, argmax of ``a`` among the entries that are not excluded.
        token: [N] int64, argmax of ``q``: with Gumbel noise a sample of the filtered softmax,
            without noise the shadow; for ``noise="categorical"`` the first draw.
    """

    ids: Tensor
    weights: Tensor
    scores: Tensor
    logits: Tensor
    count: Tensor  # type: ignore[assignment]  # hides tuple.count, which has no use here
    lse: Tensor
    kept_lse: Tensor
    entropy: Tensor
    shadow: Tensor
    token: Tensor


torch.serialization.add_safe_globals([LatentSample])


def sample_latent(
    logits: Tensor,  # [N, V]
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
) -> LatentSample:
    """Draw a soft token per row: ``z = softmax(q / tau)`` over the kept entries of ``a + noise``.

    Steps 1, 2 and 4 of a LEPO latent step (arXiv 2604.17892). ``a = logits / temperature`` is cut
    to its ``top_k`` largest entries, then to those whose preceding mass (renormalised after top-k)
    is below ``top_p``, then to those with ``a_j - max a >= log min_p``; the first always stays.
    Ties are ordered by id, so ``top_k=1`` is argmax. The kept entries are then perturbed:

    - ``"none"``: ``q = a``.
    - ``"gumbel"``: ``q = a + g``, ``g`` Gumbel(0, 1), clamped to ``noise_clamp`` if given
      (SofT-GRPO, arXiv 2511.06411).
    - ``"gaussian"``: ``q = a + sigma eps``, sigma = ``noise_scale`` times the RMS of the row's
      kept ``a``.
    - ``"dirichlet"``: ``q = log Gamma(noise_scale softmax(a) + 1e-6)`` per entry, so that
      softmax(q) is a Dirichlet draw.
    - ``"categorical"``: ``num_draws`` independent draws from the softmax of the kept ``a``, with
      replacement, each of weight ``1 / num_draws`` (Multiplex Thinking, arXiv 2601.08808);
      duplicates stay, ``scores`` and ``logits`` are ``a`` there, and ``tau`` plays no part.

    The noise of an entry is a function of (seed, row key, step, id) alone; see
    `lepo_kernels.philox_words`. Gumbel and normal numbers are the draw 0 of `gumbel_noise` and
    `normal_noise`; categorical draw d is their draw d.

    Args:
        logits: [N, V] float32, bfloat16, float16, or float64; V <= 2^26. Entries may be -inf.
        tau: >= 0, a number or an [N] tensor; 0 puts all the weight on ``token``.
        temperature: > 0, a number or an [N] tensor.
        top_k: >= 1; None or more than V keeps all.
        top_p: in (0, 1].
        min_p: in [0, 1].
        noise: one of the above.
        noise_scale: > 0, for gaussian and dirichlet.
        noise_clamp: (low, high), either of which may be infinite, for gumbel only.
        num_draws: in [1, 64], for categorical only.
        exclude_ids: [M] int64 ids that are never kept, but count in ``lse`` and ``entropy``.
        seed: any 64-bit integer, or a 0-d int64 tensor.
        row_keys: [N] int64; None numbers the rows.
        step: in [0, 2^32), or a 0-d or [N] integer tensor.
        backend: see `lepo_kernels.backend`.

    Returns:
        A `LatentSample` with K = ``num_draws`` for categorical, else ``min(top_k, V)``.

    Raises:
        TypeError, ValueError: an argument has the wrong dtype, shape, device or range.
        ValueError: a row of logits is all -inf, or holds NaN or +inf, or ``exclude_ids`` leaves
            nothing of it (checked on the CPU, or with ``LEPO_CHECK_VALUES=1``; elsewhere such a
            row, and no other, yields NaN weights).
        IndexError: an excluded id is out of range (checked likewise).
    """
    draw = prepare_draw(
        logits, tau, temperature, top_k, top_p, min_p, noise, noise_scale, noise_clamp, num_draws,
        exclude_ids, seed, row_keys, step,
    )  # fmt: skip
    chosen = dispatch.resolve("sample_latent", logits.device, backend, logits.dtype)
    return _sample_latent(logits.detach(), draw, chosen)


def prepare_draw(
    logits: Tensor,  # [N, V]
    tau: float | Tensor,
    temperature: float | Tensor,
    top_k: int | None,
    top_p: float,
    min_p: float,
    noise: str,
    noise_scale: float,
    noise_clamp: tuple[float, float] | None,
    num_draws: int,
    exclude_ids: Tensor | None,  # [M]
    seed: int | Tensor,
    row_keys: Tensor | None,  # [N]
    step: int | Tensor,
) -> Draw:
    """Check the arguments of a draw.

    Raises:
        TypeError, ValueError: an argument has the wrong dtype, shape, device or range.
    """
    check_tensor("logits", logits, ("N", "V"), FLOAT_DTYPES)
    (rows, vocab), device = logits.shape, logits.device
    check_integer("logits.shape[1]", vocab, 1, MAX_IDS)
    if top_k is not None:
        check_integer("top_k", top_k, 1)
    check_number("top_p", top_p, 0, 1, low_included=False)
    check_number("min_p", min_p, 0, 1)
    check_choice("noise", noise, NOISES)
    check_positive_number("noise_scale", noise_scale)
    check_integer("num_draws", num_draws, 1, MAX_DRAWS)
    if num_draws != 1 and noise != "categorical":
        raise ValueError(f"num_draws: expected 1 unless noise='categorical', got {num_draws}")
    low, high = _clamp_range(noise_clamp, noise)
    if exclude_ids is not None:
        check_tensor("exclude_ids", exclude_ids, ("M",), (torch.int64,), device)
    tau_tensor, tau_number = per_row_or_number("tau", tau, rows, device, zero_included=True)
    temperature_tensor, temperature_number = per_row_or_number(
        "temperature", temperature, rows, device
    )
    seed_tensor, seed_number = seed_or_number(seed, device)
    step_tensor, step_number = step_or_number(step, rows, device)
    return Draw(
        tau_tensor,
        temperature_tensor,
        vocab if top_k is None else min(top_k, vocab),
        float(top_p),
        float(min_p),
        noise,
        float(noise_scale),
        low,
        high,
        num_draws,
        exclude_ids,
        seed_tensor,
        None if row_keys is None else as_row_keys(row_keys, rows, device),
        step_tensor,
        tau_number,
        temperature_number,
        seed_number,
        step_number,
    )


def _clamp_range(noise_clamp: tuple[float, float] | None, noise: str) -> tuple[float, float]:
    if noise_clamp is None:
        return -torch.inf, torch.inf
    if noise != "gumbel":
        raise ValueError(f"noise_clamp: expected None unless noise='gumbel', got {noise_clamp}")
    return check_range("noise_clamp", noise_clamp)


@torch_op("sample_latent")
def _sample_latent(
    logits: Tensor,  # [N, V]
    draw: Draw,
    backend: str,
) -> LatentSample:
    return empty_sample(logits, draw)


def empty_sample(
    logits: Tensor,  # [N, V]
    draw: Draw,
) -> LatentSample:
    """Uninitialised tensors of the shapes and dtypes of a draw."""
    rows = logits.shape[0]
    width = draw.num_draws if draw.noise == "categorical" else draw.top_k
    real = accumulation_dtype(logits.dtype)

    def entries(dtype: torch.dtype) -> Tensor:
        return logits.new_empty(rows, width, dtype=dtype)

    def per_row(dtype: torch.dtype) -> Tensor:
        return logits.new_empty(rows, dtype=dtype)

    return LatentSample(
        entries(torch.int64),
        entries(real),
        entries(real),
        entries(real),
        per_row(torch.int32),
        per_row(real),
        per_row(real),
        per_row(real),
        per_row(torch.int64),
        per_row(torch.int64),
    )
