"""Reference kernels of the dense Gumbel-softmax mixture: a loop over chunks of rows, plain torch.

Contract: computes in float32 (float64 for float64), the table included; noise and probabilities
exist for one chunk of rows at a time, and the backward pass draws the same noise again from its
counter. The sums of the log-density are formed in float64. Rows whose upstream gradients are all
zero are dropped from the backward pass. Mixtures are summed beside the peak first, so that those
of peaked rows, and their gradients, keep their digits. Deterministic.
"""

import torch
from torch import Tensor

from lepo_kernels.backends.checks import check_positive, check_rows
from lepo_kernels.backends.reference.numerics import drop_specks, flush_tiny, rows_per_chunk
from lepo_kernels.backends.reference.philox import dense_philox_words, exponential_from_words
from lepo_kernels.dtypes import accumulation_dtype
from lepo_kernels.structures import Mixtures, MixtureUpstream, Noise


def gumbel_softmax_embedding(
    logits: Tensor,  # [N, V]
    embedding: Tensor,  # [V, D]
    noise: Noise,
    shard: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # [N, D], [N], [N], [N, D], [N, 8]
    """Mixtures ``z @ embedding``, ``sum z log pi``, log-densities, and what backward takes over.

    The latter are the deviations ``e - E_peak`` and the statistics of the rows, see the op.
    """
    check_positive("tau", noise.tau, zero_included=True)
    check_positive("temperature", noise.temperature)
    acc = accumulation_dtype(embedding.dtype)
    table = embedding.to(acc)
    mixed = torch.empty(len(logits), embedding.shape[1], dtype=acc, device=logits.device)
    deviation = torch.empty_like(mixed)
    log_prob = mixed.new_empty(len(logits), dtype=accumulation_dtype(logits.dtype))
    statistics = mixed.new_empty(len(logits), 8, dtype=torch.float64)
    for rows in torch.arange(len(logits), device=logits.device).split(rows_per_chunk(len(table))):
        a, x, tau = _drawn(logits, noise, rows)
        gumbel = x.log().neg_()
        q = a + gumbel
        statistics[rows], mass = _statistics(a, q, x, gumbel, tau)
        z = _weights(q, tau, statistics[rows])
        mixed[rows], deviation[rows] = _mixtures(z.to(acc), table, statistics[rows])
        # Not by log_softmax: where z is 0, a may be -inf.
        below = (a - a.amax(dim=-1, keepdim=True)).masked_fill_(z == 0, 0)
        log_prob[rows] = (z * below).sum(dim=-1) - mass.log()
    if not shard:
        check_rows("logits", log_prob)
    log_density = log_density_of(statistics, noise.tau, log_prob.dtype)
    return mixed, log_prob, log_density, deviation, statistics


def _mixtures(
    z: Tensor,  # [C, V]
    table: Tensor,  # [V, D]
    statistics: Tensor,  # [C, 8]
) -> tuple[Tensor, Tensor]:  # [C, D], [C, D]
    """``e = z @ table`` and ``e - E_peak``, both from the sum over the ids beside the peak.

    In a peaked row the peak's term is much larger than the others. A sum over the vocabulary that
    starts with it rounds every other term to its last digit, and ``e - E_peak`` would keep but the
    last digits of ``e``: the gradient of the logits is made of that difference.
    """
    peak = statistics[:, 4:5].long()
    at_peak = z.gather(1, peak)
    beside = z.scatter(1, peak, 0)
    mixed, row_of_peak = beside @ table, table[peak[:, 0]]
    deviation = mixed - beside.sum(dim=-1, keepdim=True) * row_of_peak
    return mixed + at_peak * row_of_peak, deviation


def log_density_of(
    statistics: Tensor,  # [N, 8] float64
    tau: Tensor,  # [N] or [1] float64
    dtype: torch.dtype,
) -> Tensor:  # [N]
    """ExpConcrete log-densities, in ``dtype``, which the rows were computed in.

    ``log Gamma(m) + (m - 1) log tau + sum log X - m log sum X``.
    """
    support, inv_sum, log_sum = statistics[:, 5:].unbind(dim=-1)
    tau = tau.masked_fill(flush_tiny(tau.to(dtype)) == 0, 0)
    constant = support.lgamma() + torch.xlogy(support - 1, tau)
    density = constant + log_sum + support * inv_sum.log()
    # Exactly 0 of a single entry, whatever rounding makes of it; NaN in a row that holds NaN.
    return torch.where(support == 1, inv_sum - inv_sum, density).to(dtype)


def has_density(
    statistics: Tensor,  # [N, 8]
    tau: Tensor,  # [N] or [1]
    dtype: torch.dtype,
) -> Tensor:  # [N] bool
    """Whether the log-densities of rows computed in ``dtype`` have a gradient."""
    return (statistics[:, 5] > 1) & (flush_tiny(tau.to(dtype)) > 0)


def gumbel_softmax_embedding_backward(
    upstream: MixtureUpstream,
    logits: Tensor,  # [N, V]
    embedding: Tensor,  # [V, D]
    noise: Noise,
    mixtures: Mixtures,
    need_dlogits: bool,
    need_dembedding: bool,
) -> tuple[Tensor, Tensor]:  # [N, V] or [0], [V, D] or [0]
    """da and dE as the op's file has them."""
    mixed, deviation, statistics = mixtures
    acc = accumulation_dtype(embedding.dtype)
    table = embedding.to(acc)
    # Not zeros_like: gradients are contiguous, whatever the layout of the inputs.
    dlogits = logits.new_zeros(logits.shape if need_dlogits else (0,))
    shape = embedding.shape if need_dembedding else (0,)
    dembedding = torch.zeros(shape, dtype=acc, device=embedding.device)
    upstream = with_density(upstream, statistics, noise.tau, accumulation_dtype(logits.dtype))
    grad_embedding, grad_log_prob, grad_log_density = upstream
    active = has_upstream(upstream).nonzero().squeeze(-1)
    for rows in active.split(rows_per_chunk(len(table))):
        a, x, tau = _drawn(logits, noise, rows)
        q = a + x.log().neg_()
        z = _weights(q, tau, statistics[rows])
        grad = grad_embedding[rows].to(acc)
        if need_dlogits:
            # At tau = 0 the mixture is piecewise constant in the logits.
            inv_tau = torch.where(tau == 0, 0, 1 / tau)
            pull = grad @ table.T - _dots(mixed[rows], grad)
            pull = _put_at_peak(pull, -_dots(deviation[rows], grad), statistics[rows])
            da = z * pull.to(z.dtype) * inv_tau
            _, _, a_max, pi_scale, _, support, inv_sum, _ = (
                statistics[rows, :, None].to(a.dtype).unbind(dim=1)
            )
            pi = drop_specks((a - a_max).clamp_max_(0).exp_() * pi_scale)
            da += grad_log_prob[rows, None] * (z - pi)
            share = (1 - support * inv_sum * x).masked_fill_(a == -torch.inf, 0)
            da += grad_log_density[rows, None] * share
            dlogits[rows] = (da / _column(noise.temperature, rows, len(logits), da)).to(
                logits.dtype
            )
        if need_dembedding:
            dembedding.addmm_(z.to(acc).T, grad)
    return dlogits, dembedding.to(embedding.dtype)


def with_density(
    upstream: MixtureUpstream,
    statistics: Tensor,  # [N, 8]
    tau: Tensor,  # [N] or [1]
    dtype: torch.dtype,
) -> MixtureUpstream:
    """Without gradients of log-densities that have none; rows are computed in ``dtype``."""
    grad = upstream.grad_log_density.where(has_density(statistics, tau, dtype), 0)
    return upstream._replace(grad_log_density=grad)


def has_upstream(upstream: MixtureUpstream) -> Tensor:  # [N] bool
    """Whether a row has an upstream gradient that is not zero."""
    grad_embedding, grad_log_prob, grad_log_density = upstream
    return (grad_embedding != 0).any(dim=-1) | (grad_log_prob != 0) | (grad_log_density != 0)


def _drawn(
    logits: Tensor,  # [N, V]
    noise: Noise,
    rows: Tensor,  # [C]
) -> tuple[Tensor, Tensor, Tensor]:  # [C, V], [C, V], [C, 1]
    """Tempered logits ``a``, exponential numbers ``X``, and the ``tau`` of the chosen rows."""
    tau, temperature, seed, row_keys, step, first_id = noise
    total, vocab = logits.shape
    dtype = accumulation_dtype(logits.dtype)
    a = logits[rows].to(dtype)
    a = a * _column(temperature, rows, total, a).reciprocal()
    words = dense_philox_words(seed, row_keys[rows], step.expand(total)[rows], vocab, first_id)
    return a, exponential_from_words(words, dtype), flush_tiny(_column(tau, rows, total, a))


def _statistics(
    a: Tensor,  # [C, V]
    q: Tensor,  # [C, V]
    x: Tensor,  # [C, V]
    noise: Tensor,  # [C, V], changed in place
    tau: Tensor,  # [C, 1]
) -> tuple[Tensor, Tensor]:  # [C, 8], [C]
    """The statistics of rows, and their sums of ``exp(a - largest a)``."""
    q_max, a_max = q.amax(dim=-1), a.amax(dim=-1)
    weight = _soft(q, q_max[:, None], tau).sum(dim=-1).masked_fill(tau[:, 0] == 0, 1)
    mass = (a - a_max[:, None]).exp().sum(dim=-1)
    # NaN in a row that is all -inf, or holds NaN or +inf.
    spoil = mass - mass
    gone = a == -torch.inf
    columns = (
        q_max + spoil,
        1 / weight + spoil,
        a_max + spoil,
        1 / mass,
        q.argmax(dim=-1),
        gone.logical_not().sum(dim=-1),
        1 / x.masked_fill(gone, 0).sum(dim=-1, dtype=torch.float64) + spoil,
        spoil - noise.masked_fill_(gone, 0).sum(dim=-1, dtype=torch.float64),
    )
    return torch.stack([column.double() for column in columns], dim=-1), mass


def _weights(
    q: Tensor,  # [C, V]
    tau: Tensor,  # [C, 1]
    statistics: Tensor,  # [C, 8]
) -> Tensor:  # [C, V]
    q_max, scale = statistics[:, :2, None].to(q.dtype).unbind(dim=1)
    beside = torch.where(tau == 0, 0, drop_specks(_soft(q, q_max, tau) * scale))
    # Logits that are formed anew may come out a little smaller than the largest was: the peak keeps
    # its weight.
    return _put_at_peak(beside, scale, statistics)


def _put_at_peak(
    x: Tensor,  # [C, V]
    value: Tensor,  # [C, 1]
    statistics: Tensor,  # [C, 8]
) -> Tensor:  # [C, V]
    """``x`` with a value of its own at the peak, if that is among the columns."""
    peak = statistics[:, 4:5].long()
    at_peak = torch.where(peak < 0, x[:, :1], value)
    return x.scatter(1, peak.clamp_min(0), at_peak)


def _soft(q: Tensor, q_max: Tensor, tau: Tensor) -> Tensor:  # [C, V]
    """Weights relative to the largest."""
    # Logits that are formed anew may come out a little larger than the largest was.
    return ((q - q_max) / torch.where(tau == 0, 1, tau)).clamp_max_(0).exp_()


def _column(per_row: Tensor, rows: Tensor, total: int, like: Tensor) -> Tensor:  # [C, 1]
    return per_row.expand(total)[rows, None].to(like.dtype)


def _dots(x: Tensor, y: Tensor) -> Tensor:  # [C, 1]
    return (x * y).sum(dim=-1, keepdim=True)
