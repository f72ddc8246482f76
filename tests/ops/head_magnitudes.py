"""How large the terms are of what is computed from the logits of a head, whatever cancels.

For `tests.tolerances`: float64, in sums of magnitudes. A logit that is off by a rounding of its own
terms moves a probability by as much relative to it: that is added to what the probability's other
operations lose.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor


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
    slope = 1.0 if softcap is None else 1 + 2 * size / softcap
    found = from_logits(logits * scale, size * scale, ids, upstream)
    dlogits = found.dlogits * scale * slope
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
) -> HeadMagnitudes:
    """Of the same from logits that are sums of magnitude ``size``; no gradient but ``dlogits``."""
    alpha, gamma, eta = (wide(x).abs() for x in upstream)
    lse = a.logsumexp(-1)
    log_pi = (a - lse[:, None]).masked_fill(a == -math.inf, 0)
    pi = a.softmax(-1)
    entropy = -(pi * log_pi).sum(-1)
    # Of a log-sum-exp: its logits', one rounding of each exponential, and its own.
    lse_size = (pi * size).sum(-1) + 1 + lse.abs()
    surprise = log_pi.abs() + entropy[:, None]
    entropy_size = (pi * (1 + surprise) * size).sum(-1) + lse_size
    moved = size + lse_size[:, None]
    pull = gamma[:, None] + eta[:, None] * surprise
    dlogits = pi * (pull * (1 + moved) + eta[:, None] * (moved + entropy_size[:, None]))
    dlogits = dlogits.scatter_add(1, ids.long(), alpha)
    none = a.new_zeros(0)
    selected = size.gather(1, ids.long())
    return HeadMagnitudes(selected, lse_size, entropy_size, none, none, none, dlogits)
