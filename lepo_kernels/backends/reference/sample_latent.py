"""Reference kernel of the latent draw: truncate, perturb, weigh; plain torch.

Contract: computes in float32 (float64 for float64). Kept ids, weights, scores, shadow and token of
a row do not depend on its neighbours: noise is keyed by row key and id, and only the K kept entries
of a row are ever perturbed. A row that is all -inf, or holds NaN or +inf, or keeps no entry, raises
where values are checked, and otherwise yields NaN in that row only.
"""

import math

import torch
from torch import Tensor

from lepo_kernels.backends.checks import check_ids, check_positive, check_rows, check_survivors
from lepo_kernels.backends.reference.numerics import (
    flush_tiny,
    row_statistics,
    running_sums,
    top_ids,
)
from lepo_kernels.backends.reference.philox import (
    exponential_from_words,
    gumbel_noise,
    normal_noise,
    philox_words,
)
from lepo_kernels.dtypes import accumulation_dtype
from lepo_kernels.structures import Draw, DrawnFields

# A round of Marsaglia-Tsang accepts with probability above 0.95: 8 rounds fail once in 10^10.
_GAMMA_ROUNDS = 8
_DIRICHLET_FLOOR = 1e-6


def sample_latent(
    logits: Tensor,  # [N, V]
    draw: Draw,
) -> DrawnFields:
    """Fields of `lepo_kernels.ops.sample_latent.LatentSample`, in its order."""
    tau, temperature, seed, step = draw.tensors(logits.device)
    exclude_ids, noise = draw.exclude_ids, draw.noise
    dtype = accumulation_dtype(logits.dtype)
    check_positive("tau", tau, zero_included=True)
    check_positive("temperature", temperature)
    a = (logits.to(dtype) * temperature.to(dtype).reciprocal()[:, None]).contiguous()
    lse, entropy = row_statistics(a)
    check_rows("logits", lse)
    if exclude_ids is not None:
        check_ids("exclude_ids", exclude_ids, logits.shape[1])
        a.index_fill_(1, exclude_ids, -torch.inf)
    ids = top_ids(a, draw.top_k)
    kept = a.gather(1, ids)
    mask = _filter(kept, draw.top_p, draw.min_p)
    kept = kept.masked_fill(~mask, -torch.inf)
    ids = torch.where(mask, ids, ids[:, :1])
    kept_lse = kept.logsumexp(dim=-1)
    if exclude_ids is not None:
        check_survivors(kept_lse)
    shadow = ids[:, 0].clone()
    row_keys = draw.row_keys
    if row_keys is None:
        row_keys = torch.arange(len(logits), device=logits.device)
    key = (seed, row_keys, step)
    if noise == "categorical":
        ids, weights, scores, kept, count = _draw_ids(kept, ids, draw.num_draws, key)
        token = ids[:, 0].clone()
    else:
        clamp = (draw.clamp_low, draw.clamp_high)
        scores = _perturb(kept, ids, noise, draw.noise_scale, clamp, key)
        scores.masked_fill_(~mask, -torch.inf)
        token = _argmax_id(scores, ids)
        weights = _weigh(scores, ids, token, flush_tiny(tau.to(dtype)))
        count = mask.sum(dim=-1, dtype=torch.int32)
    # kept_lse tells of a row that exclude_ids empties.
    bad = (lse.isfinite() & kept_lse.isfinite()).logical_not_()
    kept_lse = kept_lse.masked_fill(bad, torch.nan)
    weights, scores, kept = (
        x.masked_fill(bad[:, None], torch.nan) for x in (weights, scores, kept)
    )
    return ids, weights, scores, kept, count, lse, kept_lse, entropy, shadow, token


def _filter(
    kept: Tensor,  # [N, K], descending
    top_p: float,
    min_p: float,
) -> Tensor:  # [N, K] bool
    """Which of the top k stay: a prefix, which no filter can empty."""
    mask = kept > -torch.inf
    if top_p < 1:
        mass = kept.softmax(dim=-1)
        nucleus = running_sums(mass) - mass < top_p
        # Also where top_p is 0 in float32.
        nucleus[:, 0] = True
        mask &= nucleus
    if min_p > 0:
        mask &= kept - kept[:, :1] >= math.log(min_p)
    return mask


def _perturb(
    kept: Tensor,  # [N, K], -inf where dropped
    ids: Tensor,  # [N, K]
    noise: str,
    scale: float,
    clamp: tuple[float, float],
    key: tuple[Tensor, Tensor, Tensor],
) -> Tensor:  # [N, K]
    if noise == "gumbel":
        return kept + gumbel_noise(*key, ids, 0, kept.dtype).clamp_(*clamp)
    if noise == "gaussian":
        # Clamped twice: no inf * 0 in the product, no inf - inf between the scores.
        largest = torch.finfo(kept.dtype).max
        sigma = (scale * _rms(kept)).clamp_max_(largest)
        noise_of_ids = sigma[:, None] * normal_noise(*key, ids, 0, kept.dtype)
        return (kept + noise_of_ids).clamp_(-largest, largest)
    if noise == "dirichlet":
        return _log_gamma_draws(scale * kept.softmax(dim=-1) + _DIRICHLET_FLOOR, ids, key)
    return kept.clone()


def _rms(
    kept: Tensor,  # [N, K], -inf where dropped
) -> Tensor:  # [N]
    """Root mean square of the kept entries, scaled so that no square overflows."""
    present = kept > -torch.inf
    size = kept.masked_fill(~present, 0).abs()
    top = size.amax(dim=-1)
    shares = size / torch.where(top == 0, 1, top)[:, None]
    return top * (shares.square().sum(dim=-1) / present.sum(dim=-1)).sqrt()


def _log_gamma_draws(
    alpha: Tensor,  # [N, K], positive
    ids: Tensor,  # [N, K]
    key: tuple[Tensor, Tensor, Tensor],
) -> Tensor:  # [N, K]
    """Logarithms of Gamma(alpha, 1) numbers.

    Marsaglia and Tsang, "A simple method for generating gamma variables" (2000), in a fixed number
    of rounds. Below 1, log Gamma(alpha) = log Gamma(alpha + 1) - Exponential / alpha: in logarithms
    it neither underflows nor divides by 0, even for alpha = 1e-6.
    """
    dtype = alpha.dtype
    boost = alpha < 1
    d = torch.where(boost, alpha + 1, alpha) - 1 / 3
    c = (9 * d).rsqrt()
    log_v = torch.zeros_like(d)
    undecided = torch.ones_like(boost)
    for i in range(_GAMMA_ROUNDS):
        x = normal_noise(*key, ids, 1 + 2 * i, dtype)
        exponential = exponential_from_words(philox_words(*key, ids, 2 + 2 * i), dtype)
        root = 1 + c * x
        proposal = 3 * root.clamp_min(1e-30).log()
        bound = 0.5 * x.square() + d * (1 - proposal.exp() + proposal)
        accepted = undecided & (root > 0) & (-exponential < bound)
        log_v = torch.where(accepted, proposal, log_v)
        undecided &= ~accepted
    extra = exponential_from_words(philox_words(*key, ids, 0), dtype) / alpha
    return d.log() + log_v - torch.where(boost, extra, 0)


def _draw_ids(
    kept: Tensor,  # [N, K], -inf where dropped
    ids: Tensor,  # [N, K]
    num_draws: int,
    key: tuple[Tensor, Tensor, Tensor],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Independent draws, with replacement, from the softmax of the kept entries (Gumbel-max)."""
    picks = [
        (kept + gumbel_noise(*key, ids, draw, kept.dtype)).argmax(dim=-1)
        for draw in range(num_draws)
    ]
    drawn = torch.stack(picks, dim=-1)
    logits = kept.gather(1, drawn)
    weights = torch.full_like(logits, 1 / num_draws)
    count = torch.full((len(ids),), num_draws, dtype=torch.int32, device=ids.device)
    return ids.gather(1, drawn), weights, logits.clone(), logits, count


def _argmax_id(scores: Tensor, ids: Tensor) -> Tensor:  # [N]
    """Id of each row's largest score; of tied ones, the smallest id."""
    behind = scores < scores.amax(dim=-1, keepdim=True)
    return ids.masked_fill(behind, torch.iinfo(torch.int64).max).amin(dim=-1)


def _weigh(
    scores: Tensor,  # [N, K], -inf where dropped
    ids: Tensor,  # [N, K]
    token: Tensor,  # [N]
    tau: Tensor,  # [N] or [1]
) -> Tensor:  # [N, K]
    """softmax(scores / tau); at tau = 0 all the weight is on ``token``."""
    tau = tau[:, None]
    gaps = scores - scores.amax(dim=-1, keepdim=True)
    soft = (gaps / torch.where(tau == 0, 1, tau)).softmax(dim=-1)
    hard = (ids == token[:, None]) & (scores > -torch.inf)
    return torch.where(tau == 0, hard.to(soft.dtype), soft)
