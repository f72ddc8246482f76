"""How far apart two ways of computing logits are, and how far rounding may bring them.

With u the unit roundoff of the dtype, a layer makes some six stages of independent relative
errors, each of RMS u / sqrt(3) for rounding what it stores, and sqrt(n) times that in float32 for a
sum of n products. What reaches the logits is the root of their sum of squares, times the model's
own amplification, which is measured: how far the logits move where the embeddings move by one unit
in the last place. Twice that is the bound; but at most a quarter of the logits' spread, and at
least half of what bfloat16 rounds at one place: some recurrent models compute a step by another
formula than a sequence, and a thousandth of the spread is no other policy. float64 is held to
float32's bound, in which many models keep parts.
"""

import math
from typing import Any

import torch
from torch import Tensor

_STAGES_PER_LAYER = 6
_MARGIN = 2.0
# Of the logits' own spread; no rounding excuses more.
_LARGEST_BOUND = 0.25
_LEAST_BOUND = torch.finfo(torch.bfloat16).eps / 4
_HALF = (torch.bfloat16, torch.float16)


def rounding_bound(config: Any, width: int, dtype: torch.dtype, moved: float) -> float:
    """What rounding alone may do to the logits, in units of `distance`.

    Args:
        config: the model's, of its text.
        width: of the hidden state.
        dtype: of the computation, float32 for float64.
        moved: how far the logits move where each entry of the embeddings moves by a unit in the
            last place.
    """
    unit = torch.finfo(dtype).eps / 2
    wide = torch.finfo(torch.float32).eps / 2
    inner = int(getattr(config, "intermediate_size", None) or 4 * width)
    stage = (unit + wide * math.sqrt(inner)) / math.sqrt(3)
    layers = int(getattr(config, "num_hidden_layers", None) or 32)
    made = stage * math.sqrt(_STAGES_PER_LAYER * layers)
    amplification = max(1.0, moved / (2 * unit))
    return min(max(_MARGIN * made * amplification, _LEAST_BOUND), _LARGEST_BOUND)


def distance(
    found: Tensor,  # [M, V]
    wanted: Tensor,  # [M, V]
    dtype: torch.dtype,
) -> float:
    """RMS difference of the logits over the RMS of their deviations from the mean.

    Of M positions the largest; in half precision the median, since rounding there may send a token
    to another expert at some of them.
    """
    real = wanted.isfinite().all(dim=0)
    found, wanted = found[:, real].double(), wanted[:, real].double()
    spread = (wanted - wanted.mean(-1, keepdim=True)).square().mean(-1)
    apart = found - wanted
    apart = (apart - apart.mean(-1, keepdim=True)).square().mean(-1)
    each = (apart / spread.clamp(min=torch.finfo(torch.float32).tiny)).sqrt()
    return float(each.median() if dtype in _HALF else each.max())
