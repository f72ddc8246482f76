"""Whether the latents are used: metrics of mixtures, and the latent rows' share of the gradient.

The metrics of a rollout are a few sums over its record, [B, L, K]. The share reads the gradient of
the selected steps' hidden states [M, D] once, which the backward pass has just formed; only a log
waits for the device.
"""

import torch
from torch import Tensor

from lepo_kernels.dtypes import accumulation_dtype
from lepo_kernels.rollout.record import LatentRollout
from lepo_kernels.trainer.metrics import MetricMeans


def latent_use_metrics(rollout: LatentRollout) -> dict[str, float]:
    """The heaviest entry's weight, and how mixtures change within the latent phase.

    Returns:
        ``latent/top_weight``, the mean over latent steps; and of a row's first, middle and last
        latent step (``_first``, ``_middle``, ``_last``; the middle one of n is the one numbered
        (n - 1) // 2) the means over rows of ``latent/entropy``, ``latent/top_weight`` and
        ``latent/support_size``. Empty without latent steps.
    """
    L, K = rollout.latent_ids.shape[1:]
    latent = rollout.latent_mask[:, :L]
    steps = latent.sum(dim=1)
    rows = (steps > 0).nonzero()[:, 0]
    if len(rows) == 0 or K == 0:
        return {}
    top_weight = rollout.latent_weights.amax(dim=-1).double()
    last = steps[rows] - 1
    places = {"first": torch.zeros_like(last), "middle": last // 2, "last": last}
    values = {
        "latent/entropy": rollout.entropy[:, :L].double(),
        "latent/top_weight": top_weight,
        "latent/support_size": rollout.latent_count.double(),
    }
    found = {"latent/top_weight": top_weight[latent].mean()}
    for name, by_step in values.items():
        for where, place in places.items():
            found[f"{name}_{where}"] = by_step[rows, place].mean()
    # One wait for the device instead of one for each.
    return dict(zip(found, torch.stack(list(found.values())).tolist(), strict=True))


class LatentGradientShare:
    """The latent rows' share of the gradient of the loss, over what was added since the last log.

    Each selected step has a hidden state h that the head reads. With g = dL/dh, the share is the
    sum of |g|^2 over latent steps divided by that over all steps. The weights of the mixtures are
    constants of the loss, so what reaches h is the term of the step itself.
    """

    def __init__(self) -> None:
        self._sums: Tensor | None = None

    def add(
        self,
        latent: Tensor,  # [M] bool
        gradient: Tensor,  # [M, D]
    ) -> None:
        """Add the gradient of the hidden states of M steps; one that is not finite is left out."""
        norms = torch.linalg.vector_norm(gradient, dim=1, dtype=accumulation_dtype(gradient.dtype))
        squares = norms.double().square()
        sums = torch.stack([torch.where(latent, squares, 0.0).sum(), squares.sum()])
        sums = torch.where(sums.isfinite().all(), sums, torch.zeros_like(sums))
        self._sums = sums if self._sums is None else self._sums + sums

    def pop_into(self, means: MetricMeans) -> None:
        """Add ``latent/gradient_share`` to the metrics, and begin anew."""
        if self._sums is None:
            return
        of_latent, of_all = self._sums.tolist()
        self._sums = None
        means.add_ratio("latent/gradient_share", of_latent, of_all)
