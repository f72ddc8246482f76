"""The Gumbel-softmax mixture and its gradients in plain torch, as well as a careful user can.

In place wherever [N, V] is concerned, and with the gradient by formula in place of autograd's.
"""

import torch
from torch import Tensor


def of_logits(
    logits: Tensor,  # [N, V]
    embedding: Tensor,  # [V, D]
    upstream: Tensor,  # [N, D]
    tau: float,
) -> tuple[Tensor, Tensor, Tensor]:  # [N, D], [N, V], [N, V]
    """The mixture, its weights, and the logits' gradient; the table's is weights^T upstream."""
    # As torch's gumbel_softmax draws it.
    scores = torch.empty_like(logits, dtype=torch.float32).exponential_().log_().neg_()
    weights = scores.add_(logits).div_(tau).softmax(-1)
    narrow = weights.to(embedding.dtype)
    mixed = narrow @ embedding
    pull = (upstream @ embedding.T).float()
    # Not from the mixture, whose rounding would be in every entry.
    pull -= torch.bmm(weights[:, None], pull[..., None])[..., 0]
    gradient = pull.mul_(weights).div_(tau)
    return mixed, narrow, gradient.to(logits.dtype)


def tied(
    hidden: Tensor,  # [N, D]
    lm_head: Tensor,  # [V, D]
    upstream: Tensor,  # [N, D]
    tau: float,
) -> tuple[Tensor, Tensor, Tensor]:  # [N, D], [N, D], [V, D]
    """The mixture of a tied head's own logits, and the gradients of hidden states and table."""
    mixed, weights, da = of_logits(hidden @ lm_head.T, lm_head, upstream, tau)
    return mixed, da @ lm_head, (da.T @ hidden).addmm_(weights.T, upstream)
