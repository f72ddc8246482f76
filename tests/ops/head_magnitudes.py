"""What results of the logits of a head may be off by, and their gradients.

For `tests.tolerances`: in units of ``sum_error(V)``, as the magnitudes of sums over a vocabulary
are, in float64. A number's own operations, and a logit, which is a shorter sum, count less. What a
logit is off by moves a probability by as much relative to it.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from tests.tolerances import sum_error


class HeadMagnitudes(NamedTuple):
    """Of logits at ids, log-sum-exps and entropies, and of their gradients."""

    selected: Tensor  # [N, K]
    lse: Tensor  # [N]
    entropy: Tensor  # [N]
    dhidden: Tensor  # [N, D]
    dlm_head: Tensor  # [V, D]
    dbias: Tensor  # [V]
    dlogits: Tensor  # [N, V]: of the raw logits


def wide(x: Tensor | float) -> Tensor:
    """In float64, without a graph."""
    return torch.as_tensor(x).detach().double()


def logit_magnitudes(
    hidden: Tensor,  # [N, D]
    lm_head: Tensor,  # [V, D]
    bias: Tensor | None = None,  # [V]
) -> Tensor:  # [N, V]
    """Of raw logits; one of -inf has no error. A softcap makes no error larger."""
    size = wide(hidden).abs() @ wide(lm_head).abs().T
    return size if bias is None else (size + wide(bias).abs()).masked_fill(bias == -math.inf, 0)


def head_magnitudes(
    hidden: Tensor,  # [N, D]
    lm_head: Tensor,  # [V, D]
    ids: Tensor,  # [N, K]
    upstream: tuple[Tensor, Tensor, Tensor] | list[Tensor],  # [N, K], [N], [N]
    *,
    bias: Tensor | None = None,  # [V]
    softcap: float | None = None,
    inv_temperature: Tensor | float = 1.0,  # [N] or []
) -> HeadMagnitudes:
    """Of `linear_log_probs` and of its gradients for ``upstream``."""
    scale = wide(inv_temperature).reshape(-1, 1)
    raw = wide(hidden) @ wide(lm_head).T + (0 if bias is None else wide(bias))
    logits = raw if softcap is None else softcap * torch.tanh(raw / softcap)
    size = logit_magnitudes(hidden, lm_head, bias)
    a = logits * scale
    found = from_logits(a, size * scale, ids, upstream, width=hidden.shape[1])
    # The sums over the vocabulary or the rows, and what their terms are off by. The latter are sums
    # that are longer than the vocabulary where there are more rows.
    vocab = a.shape[1]
    longer = sum_error(max(len(a), vocab)) / sum_error(vocab)
    terms = _pulls(a, ids, upstream)[0]
    off = size * sum_error(hidden.shape[1]) / sum_error(vocab)
    slope = 0.0 if softcap is None else 2 * off / softcap
    dlogits = (longer * terms + found.dlogits + slope * terms) * scale
    return found._replace(
        dhidden=dlogits @ wide(lm_head).abs(),
        dlm_head=dlogits.T @ wide(hidden).abs(),
        dbias=dlogits.sum(0),
        dlogits=dlogits,
    )


def from_logits(
    a: Tensor,  # [N, V]
    size: Tensor,  # [N, V]
    ids: Tensor,  # [N, K]
    upstream: tuple[Tensor, Tensor, Tensor] | list[Tensor],  # [N, K], [N], [N]
    width: int = 1,
) -> HeadMagnitudes:
    """Of logits that are sums of ``width`` numbers of ``size``; no gradient but ``dlogits``."""
    vocab = a.shape[1]
    own = sum_error(1) / sum_error(vocab)
    off = size * sum_error(width) / sum_error(vocab)
    lse = a.logsumexp(-1)
    terms, pi, surprise = _pulls(a, ids, upstream)
    eta = wide(upstream[2]).abs()[:, None]
    # The logits', the sum's relative to it, and the roundings of the result.
    lse_off = (pi * off).sum(-1) + 1 + own * lse.abs()
    # A sum of pi (a - lse), in which log-sum-exps nearly cancel.
    entropy_off = (pi * (1 + surprise) * (off + 1)).sum(-1) + lse_off
    moved = off + lse_off[:, None]
    # The coefficients of the selected logits are what they are, those of probabilities are not.
    selected = torch.zeros_like(pi).scatter_add(1, ids.long(), wide(upstream[0]).abs())
    dlogits = own * terms + (terms - selected) * moved
    dlogits = dlogits + eta * pi * (moved + entropy_off[:, None])
    none = a.new_zeros(0)
    return HeadMagnitudes(
        off.gather(1, ids.long()), lse_off, entropy_off, none, none, none, dlogits
    )


def _pulls(
    a: Tensor,  # [N, V]
    ids: Tensor,  # [N, K]
    upstream: tuple[Tensor, Tensor, Tensor] | list[Tensor],  # [N, K], [N], [N]
) -> tuple[Tensor, Tensor, Tensor]:  # each [N, V]
    """Magnitudes of the gradients of ``a``; probabilities; their surprise and its mean, added."""
    alpha, gamma, eta = (wide(x).abs() for x in upstream)
    log_pi = (a - a.logsumexp(-1, keepdim=True)).masked_fill(a == -math.inf, 0)
    pi = a.softmax(-1)
    surprise = log_pi.abs() - (pi * log_pi).sum(-1, keepdim=True)
    pull = pi * (gamma[:, None] + eta[:, None] * surprise)
    return pull.scatter_add(1, ids.long(), alpha), pi, surprise
