"""LEPO's surrogate and its gradients in plain torch, as well as a careful user can.

The gradient is known in closed form where the loss is: no autograd over [N, V], one softmax in the
place of a log-softmax with its backward pass, and from hidden states the logits of some rows at a
time.
"""

import torch
from torch import Tensor

# Logits of a chunk: they stay in a CPU's cache, and fill a GPU.
_CHUNK = {"cpu": 1 << 23, "cuda": 1 << 27}


def of_logits(
    logits: Tensor,  # [N, V]
    ids: Tensor,  # [N, K]
    weights: Tensor,  # [N, K]
    share: Tensor,  # [N]: what a row's log-probability counts in the loss
) -> tuple[Tensor, Tensor]:  # [], [N, V]
    """-sum of share * (weights . log pi), and its gradient in the logits."""
    selected = logits.gather(1, ids).float()
    pi = logits.softmax(-1, dtype=torch.float32)
    # A selected entry has lse as the difference to its own log-probability; the largest one's is
    # the best known, and never underflows.
    top, at = logits.max(-1, keepdim=True)
    lse = top.float() - pi.gather(1, at).log()
    total = weights.sum(-1, keepdim=True)
    loss = (share * (total * lse - (weights * selected).sum(-1, keepdim=True))[:, 0]).sum()
    gradient = pi.mul_(total * share[:, None]).scatter_add_(1, ids, -weights * share[:, None])
    return loss, gradient.to(logits.dtype)


def of_hidden(
    hidden: Tensor,  # [N, D]
    lm_head: Tensor,  # [V, D]
    ids: Tensor,  # [N, K]
    weights: Tensor,  # [N, K]
    share: Tensor,  # [N]
    softcap: float | None,
) -> tuple[Tensor, Tensor, Tensor]:  # [], [N, D], [V, D]
    """The same from hidden states: three products for each chunk of rows."""
    dhidden = torch.empty_like(hidden)
    dhead = torch.zeros_like(lm_head)
    loss = torch.zeros((), device=hidden.device)
    size = max(1, _CHUNK[hidden.device.type] // len(lm_head))
    for start in range(0, len(hidden), size):
        part = slice(start, start + size)
        logits = hidden[part] @ lm_head.T
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        term, da = of_logits(logits, ids[part], weights[part], share[part])
        if softcap is not None:
            da = da * (1 - (logits / softcap) ** 2)
        loss += term
        torch.mm(da, lm_head, out=dhidden[part])
        dhead.addmm_(da.T, hidden[part])
    return loss, dhidden, dhead
