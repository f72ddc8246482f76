"""How ranks join Gumbel-softmax mixtures of their parts of a vocabulary.

The formulas are those of the op in `lepo_kernels.ops.gumbel_softmax_embedding`, in float64. Parts
without mass, where all of a row is -inf, are left out.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from lepo_kernels.backends.checks import check_positive, check_rows, check_steps
from lepo_kernels.backends.reference.gumbel_softmax_embedding import log_density_of
from lepo_kernels.backends.reference.numerics import flush_tiny
from lepo_kernels.ops.gumbel_softmax_embedding import MixtureResults, empty_results
from lepo_kernels.parallel.collectives import add_over_ranks, exchange, rank_in
from lepo_kernels.structures import Noise

# A counter of the noise covers this many ids: where a vocabulary may be cut.
NOISE_UNIT = 4
# The column of the statistics.
_PEAK = 4


def check_values(noise: Noise) -> None:
    """Check what all ranks have in common before they wait for each other: it raises on all.

    Raises:
        ValueError: naming the argument.
    """
    check_positive("tau", noise.tau, zero_included=True)
    check_positive("temperature", noise.temperature)
    check_steps(noise.step)


class Whole(NamedTuple):
    """Rows of the whole vocabulary, as every rank knows them."""

    log_prob: Tensor  # [N]
    statistics: Tensor  # [N, 8] float64; the peak is a column of this rank's part, or -1
    share: Tensor  # [N] float64, how much of the mixture is this rank's
    share_of_others: Tensor  # [N] float64
    has_peak: Tensor  # [N] bool: whether it is in this rank's part


def results_of_nothing(
    like: Tensor,  # [N, ...], what the logits are or are made of
    table: Tensor,  # [0, D]
) -> MixtureResults:
    """What a part of the vocabulary without columns contributes: what is left out."""
    results = empty_results(like, table)
    for x in results:
        x.zero_()
    return results


def empty_joined(
    like: Tensor,  # [N, ...], what the logits are or are made of
    table: Tensor,  # [V_r, D]
    need_deviation: bool,
) -> MixtureResults:
    """Uninitialised tensors like those that `join` returns."""
    results = empty_results(like, table)
    return results if need_deviation else results._replace(deviation=results.mixed.new_empty(0))


def join(
    name: str,
    part: MixtureResults,
    tau: Tensor,  # [N] or [1]
    group: str,
    need_deviation: bool,
) -> MixtureResults:
    """What an op returns of the whole vocabulary, from what it returned of this rank's part.

    Deviations are right where the rank has the peak, and 0 elsewhere; [0] if they are not needed.

    Raises:
        ValueError: a row is bad; ``name`` is what it is called.
    """
    mixed, log_prob, _, deviation, statistics = part
    whole = join_rows(statistics, log_prob, tau, group)
    check_rows(name, whole.log_prob)
    mixed, deviation = join_mixtures(mixed, deviation, whole, group, need_deviation)
    log_density = log_density_of(whole.statistics, tau, log_prob.dtype)
    return MixtureResults(mixed, whole.log_prob, log_density, deviation, whole.statistics)


def join_rows(
    statistics: Tensor,  # [N, 8] float64, of this rank's part
    log_prob: Tensor,  # [N]
    tau: Tensor,  # [N] or [1]
    group: str,
) -> Whole:
    """Tell all ranks of each other's parts; NaN in a row that is all -inf, or has a bad part."""
    own = torch.cat((statistics.T, log_prob.double()[None]))
    parts, _ = exchange(own, own[:0], group)
    top_q, scale, top_a, pi_scale, _, support, inv_sum, log_sum, log_probs = parts.unbind(dim=1)
    absent = support == 0
    # NaN in a row without any mass, else 1.
    spoil = torch.where(absent.all(dim=0), torch.nan, 1)
    # As the kernels take it.
    tau = flush_tiny(tau.to(log_prob.dtype)).double()
    is_hard = tau == 0

    top_q = top_q.masked_fill(absent, -torch.inf)
    q_max, owner = top_q.max(dim=0)
    units = ((top_q - q_max) / torch.where(is_hard, 1, tau)).exp() / scale
    units = units.masked_fill(absent, 0)
    total = units.sum(dim=0)
    ranks = torch.arange(len(parts), device=own.device)[:, None]
    shares = spoil * torch.where(is_hard, (ranks == owner).double(), units / total)

    top_a = top_a.masked_fill(absent, -torch.inf)
    a_max = top_a.amax(dim=0)
    mass = ((top_a - a_max).exp() / pi_scale).masked_fill(absent, 0).sum(dim=0)
    terms = shares * (log_probs - pi_scale.log() + top_a - a_max)
    whole_log_prob = terms.masked_fill(shares == 0, 0).sum(dim=0) - mass.log()

    rank = rank_in(group)
    has_peak = owner == rank
    columns = (
        spoil * q_max,
        spoil * torch.where(is_hard, 1, 1 / total),
        spoil * a_max,
        spoil / mass,
        torch.where(has_peak, statistics[:, _PEAK], -1),
        support.sum(dim=0),
        spoil / (1 / inv_sum).masked_fill(absent, 0).sum(dim=0),
        spoil * log_sum.masked_fill(absent, 0).sum(dim=0),
    )
    return Whole(
        (spoil * whole_log_prob).to(log_prob.dtype),
        torch.stack(columns, dim=-1),
        shares[rank],
        (shares * (ranks != rank)).sum(dim=0),
        has_peak,
    )


def join_mixtures(
    mixed: Tensor,  # [N, D], of this rank's part
    deviation: Tensor,  # [N, D]
    whole: Whole,
    group: str,
    need_deviation: bool,
) -> tuple[Tensor, Tensor]:  # [N, D], [N, D] or [0]
    """Mixtures of the whole, and deviations where this rank has the peak, 0 elsewhere."""
    share, share_of_others = (
        x[:, None].to(mixed.dtype) for x in (whole.share, whole.share_of_others)
    )
    # A part without a share may hold anything.
    own = (mixed * share).masked_fill(share == 0, 0)
    if not need_deviation:
        return add_over_ranks(own, group), mixed.new_empty(0)
    has_peak = whole.has_peak[:, None]
    others = add_over_ranks(own.masked_fill(has_peak, 0), group)
    from_peak = share * deviation + others - share_of_others * (mixed - deviation)
    return add_over_ranks(own, group), from_peak.masked_fill_(~has_peak, 0)
