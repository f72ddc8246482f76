"""The Gumbel-softmax mixture over the whole vocabulary, ``e = softmax((a + g) / tau) @ E``.

Design note: neither the noise nor the weights are stored; the backward pass draws the same noise
again from its counter, and makes the weights of it with a few statistics of the row. With ``z`` the
weights, ``pi = softmax(a)``, ``X = exp(-g)`` the exponential numbers that the noise is made of, and
``m`` the number of entries that are not -inf:

    da_j = z_j (E_j . de - e . de) / tau                of the mixture
         + dlogp (z_j - pi_j)                           of the log-probability
         + dlogq (1 - m X_j / sum X)                    of the log-density, where a_j is not -inf
    dE_j = z_j de

At a low tau a row's weight is nearly all at its peak, the largest ``q = a + g``, and
``E_peak . de`` nearly equals ``e . de``. So that the difference is not lost, the forward pass also
leaves the deviation ``e - E_peak``, which it forms without that cancellation.

All of it works on a part of the vocabulary, too: see `_gumbel_softmax_embedding`.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from lepo_kernels import dispatch
from lepo_kernels.dtypes import accumulation_dtype
from lepo_kernels.ops._arguments import as_per_row, as_row_keys, as_seed, as_step, check_first_id
from lepo_kernels.ops._library import save, saved, torch_op
from lepo_kernels.structures import Mixtures, MixtureUpstream, Noise, empty_gradient
from lepo_kernels.validation import FLOAT_DTYPES, MAX_IDS, check_integer, check_tensor

# Columns of the statistics that the backward pass takes over.
_STATISTICS = 8


class GumbelSoftmaxEmbedding(NamedTuple):
    """What `gumbel_softmax_embedding` and `linear_gumbel_softmax_embedding` return.

    Attributes:
        embedding: [N, D] in the dtype of the table.
        log_prob: [N] float32 (float64 for float64 logits), ``sum z log pi``.
        log_density: [N] likewise, the log-density of ``log z`` as a draw of the policy.
    """

    embedding: Tensor
    log_prob: Tensor
    log_density: Tensor


torch.serialization.add_safe_globals([GumbelSoftmaxEmbedding])


def gumbel_softmax_embedding(
    logits: Tensor,  # [N, V]
    embedding: Tensor,  # [V, D]
    tau: float | Tensor,
    *,
    temperature: float | Tensor = 1.0,
    seed: int | Tensor = 0,
    row_keys: Tensor | None = None,  # [N]
    step: int | Tensor = 0,
    first_id: int = 0,
    backend: str | None = None,
) -> GumbelSoftmaxEmbedding:
    """Mix all rows of a table by Gumbel-softmax weights, differentiably.

    ``z = softmax((a + g) / tau)`` with ``a = logits / temperature`` and ``g`` the Gumbel noise of
    `lepo_kernels.gumbel_noise` (Jang et al., arXiv 1611.01144; Maddison et al., arXiv 1611.00712).

    The weights are a sample of the Concrete distribution. ``log_density`` is the log-density of
    ``log z`` (ExpConcrete, Maddison et al.) over the m entries that are not -inf, as
    `lepo_kernels.exp_concrete_log_density` has it: the score function of an on-policy
    policy gradient whose action is a mixture of the whole vocabulary. As ``z`` comes from the row's
    own noise, its value depends on the noise, m and tau alone; its gradient, with ``z`` held
    constant, is ``(1 - m softmax(-g)) / temperature``. It is 0 where m = 1. Its error is about
    ``m * 1e-7``. Entries at -inf have no density: it is one on the simplex of the others.

    Args:
        logits: [N, V] float32, bfloat16, float16, or float64; V <= 2^26. Entries may be -inf.
            Differentiable.
        embedding: [V, D] of the same choice of dtypes; differentiable. Every row takes part, so one
            that holds NaN or an infinity spoils all mixtures, even where its weight is 0.
        tau: >= 0, a number or an [N] tensor. At 0, ``z`` is one-hot at the argmax, and the mixture
            has no gradient in the logits; ``log_density`` is its limit, -inf (0 where m = 1), and
            has none, either. A tensor is a constant to autograd.
        temperature: > 0, a number or an [N] tensor; a constant to autograd likewise.
        seed: any 64-bit integer, or a 0-d int64 tensor.
        row_keys: [N] int64; None numbers the rows.
        step: in [0, 2^32), or a 0-d or [N] integer tensor.
        first_id: the vocabulary id of the first column, a multiple of 4, for logits and tables that
            are a part of a larger vocabulary; noise goes by id. ``first_id + V <= 2^26``.
        backend: see `lepo_kernels.backend`.

    Returns:
        A `GumbelSoftmaxEmbedding`. The gradients of ``log_prob`` and ``log_density`` take ``z`` for
        a constant; of the former, as the soft surrogate of LEPO does (arXiv 2604.17892).

    Raises:
        TypeError, ValueError: an argument has the wrong dtype, shape, device or range.
        ValueError: a row of logits is all -inf, or holds NaN or +inf (checked on the CPU, or with
            ``LEPO_CHECK_VALUES=1``).
        RuntimeError: a second or forward-mode derivative is asked for.
    """
    check_tensor("logits", logits, ("N", "V"), FLOAT_DTYPES)
    vocab, device = logits.shape[1], logits.device
    check_integer("logits.shape[1]", vocab, 1, MAX_IDS)
    check_tensor("embedding", embedding, (vocab, "D"), FLOAT_DTYPES, device)
    check_first_id(first_id, vocab)
    chosen = dispatch.resolve(
        "gumbel_softmax_embedding", device, backend, logits.dtype, embedding.dtype
    )
    noise = prepare_noise(logits, tau, temperature, seed, row_keys, step, first_id)
    results = _gumbel_softmax_embedding(logits, embedding, noise, False, chosen)
    return results.public(embedding.dtype)


def prepare_noise(
    like: Tensor,  # [N, ...]
    tau: float | Tensor,
    temperature: float | Tensor,
    seed: int | Tensor,
    row_keys: Tensor | None,  # [N]
    step: int | Tensor,
    first_id: int,
) -> Noise:
    """Check these arguments of the public ops, but for ``first_id``.

    Raises:
        TypeError, ValueError: an argument has the wrong dtype, shape, device or range.
    """
    rows, device = like.shape[0], like.device
    return Noise(
        as_per_row("tau", tau, rows, device, zero_included=True),
        as_per_row("temperature", temperature, rows, device),
        as_seed(seed, device),
        as_row_keys(row_keys, rows, device),
        as_step(step, rows, device),
        first_id,
    )


class MixtureResults(NamedTuple):
    """What the ops of Gumbel-softmax mixtures return; see `_gumbel_softmax_embedding`."""

    mixed: Tensor  # [N, D]
    log_prob: Tensor  # [N]
    log_density: Tensor  # [N]
    deviation: Tensor  # [N, D]
    statistics: Tensor  # [N, 8]

    def public(self, dtype: torch.dtype) -> GumbelSoftmaxEmbedding:
        """What the public functions return of it."""
        return GumbelSoftmaxEmbedding(self.mixed.to(dtype), self.log_prob, self.log_density)

    def kept(self) -> Mixtures:
        """What the backward pass takes over."""
        return Mixtures(self.mixed, self.deviation, self.statistics)


@torch_op("gumbel_softmax_embedding")
def _gumbel_softmax_embedding(
    logits: Tensor,  # [N, V]
    embedding: Tensor,  # [V, D]
    noise: Noise,
    shard: bool,
    backend: str,
) -> MixtureResults:
    """Mixtures [N, D], log-probabilities [N], log-densities [N], deviations [N, D], statistics.

    Mixtures and deviations ``e - E_peak`` are in the dtype that sums over the table are formed in.
    The statistics [N, 8] are float64, which holds an id, too. With ``q = a + g``:

        0  the largest q
        1  1 / sum exp((q - largest) / tau), which makes z of exp((q - largest) / tau); 1 if tau = 0
        2  the largest a
        3  1 / sum exp(a - largest), which makes pi of exp(a - largest)
        4  the peak: the first column (not id) with the largest q
        5  m, how many entries are not -inf
        6  1 / sum X over those entries, X = exp(-g)
        7  sum log X over those entries

    A row that is all -inf, or holds NaN or +inf, has NaN everywhere but in columns 4 and 5; m = 0
    tells that it is all -inf. Such a row is an error, unless this is a ``shard``.

    Shards of the vocabulary. Let shard s hold the columns from its ``first_id`` on, and be what
    this op returns of them with ``shard`` set. The whole is then, all sums in float64, shards with
    m_s = 0 left out:

        q_max = max q_max_s                        a_max = max a_max_s
        u_s = exp((q_max_s - q_max) / tau) / scale_s, scale_s = column 1
        b_s = exp(a_max_s - a_max) / pi_scale_s    pi_scale = 1 / sum b_s
        scale = 1 / sum u_s,  w_s = u_s scale      m = sum m_s
        1 / sum X = 1 / sum (1 / column 6)         sum log X = sum column 7

    p is the first shard with q_max_s = q_max, and holds the peak. Where tau = 0, w_p = 1, w_s = 0
    for all others and scale = 1. Then, over shards with w_s > 0:

        log_prob = log pi_scale + sum w_s (log_prob_s - log pi_scale_s + a_max_s - a_max)
        log_density = `log_density_of` the whole's statistics
        E_peak = mixed_p - deviation_p
        rest = w_p deviation_p + sum over s != p of w_s mixed_s
        mixed = rest + w_p E_peak
        deviation = rest - (sum over s != p of w_s) E_peak

    The backward op on a shard takes the whole's mixtures, deviations, upstream gradients and
    statistics, with the peak as a column of the shard: -1 outside of p. It returns the shard's part
    of both gradients, and needs nothing else of the other shards.
    """
    return empty_results(logits, embedding)


def empty_results(
    like: Tensor,  # [N, ...], what the logits are or are made of
    table: Tensor,  # [V, D]
) -> MixtureResults:
    """Uninitialised tensors of the shapes and dtypes of a forward op's results."""
    rows = like.shape[0]
    mixed = table.new_empty(rows, table.shape[1], dtype=accumulation_dtype(table.dtype))
    log_prob = like.new_empty(rows, dtype=accumulation_dtype(like.dtype))
    statistics = like.new_empty(rows, _STATISTICS, dtype=torch.float64)
    return MixtureResults(
        mixed, log_prob, torch.empty_like(log_prob), torch.empty_like(mixed), statistics
    )


@torch_op("gumbel_softmax_embedding_backward")
def gumbel_softmax_embedding_backward(
    upstream: MixtureUpstream,
    logits: Tensor,  # [N, V]
    embedding: Tensor,  # [V, D]
    noise: Noise,
    mixtures: Mixtures,
    need_dlogits: bool,
    need_dembedding: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:  # [N, V] or [0], [V, D] or [0]
    """Gradients of the logits and the table; one that is not needed comes back empty.

    The pull at column j is ``E_j . de - mixed . de``, at the peak ``-(deviation . de)``. A peak of
    -1 is in another shard: no column is special then, and where tau = 0, all weights are 0.
    """
    return empty_gradient(logits, need_dlogits), empty_gradient(embedding, need_dembedding)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: MixtureResults) -> None:
    logits, embedding, noise, _, backend = inputs
    ctx.mark_non_differentiable(output.deviation, output.statistics)
    save(ctx, logits, embedding, noise, output.kept(), backend)


def _backward(ctx: Any, *grads: Tensor) -> dict[str, Tensor]:
    logits, embedding, noise, mixtures, backend = saved(ctx)
    need_dlogits, need_dembedding = _gumbel_softmax_embedding.needs(ctx, "logits", "embedding")
    dlogits, dembedding = gumbel_softmax_embedding_backward(
        MixtureUpstream(*grads[:3]),
        logits,
        embedding,
        noise,
        mixtures,
        need_dlogits,
        need_dembedding,
        backend,
    )
    return {"logits": dlogits, "embedding": dembedding}


_gumbel_softmax_embedding.register_autograd(_backward, _setup_context)
gumbel_softmax_embedding_backward.refuse_double_backward()
