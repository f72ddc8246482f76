"""Whether rollout and training are of the same policy: a check of every run, at no cost.

The rollout stores the log-probability of each step; the first training forward of its rows, before
any update, computes it again. Up to rounding the two are equal, whatever the model; where they are
not, gradients are of another policy than the one that was sampled.
"""

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from lepo_kernels.dispatch import is_autocast_enabled
from lepo_kernels.trainer.metrics import MetricMeans

# As TRL names the same comparison.
METRIC = "sampling/sampling_logp_difference"
# Mean absolute difference in nats above which a run is warned of, and above which it ends. A logit
# of magnitude 20 is rounded by 0.04 in bfloat16, and a hundredth of that is far beyond float32.
BOUNDS = {"half": (0.1, 1.0), "full": (0.01, 0.1)}


class SamplingAgreement:
    """Measures each rollout against its first training forward.

    Args:
        means: where the metrics go.
        warn_above: mean difference in nats that is warned of, once; None chooses by precision.
        fail_above: mean difference in nats that ends the run; None chooses by precision.
    """

    def __init__(
        self, means: MetricMeans, warn_above: float | None, fail_above: float | None
    ) -> None:
        self._means = means
        self._chosen = (warn_above, fail_above)
        self._warned = False

    def add(
        self,
        model: nn.Module,
        sampled: Tensor,  # [M]
        trained: Tensor,  # [M]
    ) -> None:
        """Log the mean and largest difference on M steps.

        With dropout in the training forward the two are of different functions: then it is logged,
        and nothing follows.

        Raises:
            ValueError: the mean difference is above the bound for errors.
        """
        if sampled.numel() == 0:
            return
        apart = (sampled - trained).abs().double()
        self._means.add_masked(f"{METRIC}/mean", apart, torch.ones_like(apart, dtype=torch.bool))
        self._means.add_max(f"{METRIC}/max", float(apart.max()))
        mean = float(apart.mean())
        warn_above, fail_above = self._bounds(model)
        # Negated, so that NaN is above every bound.
        if mean <= min(warn_above, fail_above) or _drops_out(model):
            return
        message = (
            "model: log-probabilities of the rollout and of the first training forward on the same "
            f"steps differ by {mean:.3g} nats on average, {float(apart.max()):.3g} at most"
        )
        if not mean <= fail_above:
            raise ValueError(
                f"{message} (bound {fail_above:g}): the gradient would not be of the policy that "
                "was sampled. Prompts or completions may be longer than the model's original "
                "context, or its kernels differ between the two; sampling_logp_difference_error "
                "sets the bound"
            )
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"{message} (bound {warn_above:g}; see {METRIC} in the log; "
                "sampling_logp_difference_warning sets the bound)",
                stacklevel=2,
            )

    def _bounds(self, model: nn.Module) -> tuple[float, float]:
        weight = next(model.parameters())
        half = is_autocast_enabled(weight.device.type) or any(
            p.is_floating_point() and p.element_size() < 4 for p in model.parameters()
        )
        defaults = BOUNDS["half" if half else "full"]
        warn_above, fail_above = (
            default if chosen is None else chosen
            for chosen, default in zip(self._chosen, defaults, strict=True)
        )
        return warn_above, fail_above


def _drops_out(model: Any) -> bool:
    """Whether a forward of the model in its present mode draws dropout."""
    for module in model.modules():
        if not module.training:
            continue
        rate = module.p if isinstance(module, nn.Dropout) else None
        rate = getattr(module, "attention_dropout", rate)
        if isinstance(rate, float) and rate > 0:
            return True
    return False
