"""Rows of numbers that are hard for reductions and selections."""

import math

import torch
from torch import Tensor

# 1, 2, 7: fewer than a warp; 31 and 33: around one; 1000 and 4099: no multiple of a block, and a
# prime; 50257: a real vocabulary.
WIDTHS = (1, 2, 7, 31, 33, 1000, 4099, 50257)


def finite_rows(width: int) -> dict[str, Tensor]:
    chance = torch.Generator().manual_seed(width)
    normal = torch.randn(width, generator=chance)
    dropped = torch.rand(width, generator=chance) < 0.9
    one = torch.full((width,), -math.inf)
    one[width // 2] = 3.0
    return {
        "normal": normal,
        "logits": 5 * normal - 20,
        "all the same": torch.full((width,), 1.5),
        "few values": (2 * normal).round(),
        "zeros of both signs": torch.where(dropped, torch.tensor(-0.0), torch.tensor(0.0)),
        "huge": normal.sign() * 3e38,
        "spread": 1e4 * normal,
        "tiny": 1e-40 * normal,
        "rising": torch.arange(width, dtype=torch.float32) / 64,
        "falling": -torch.arange(width, dtype=torch.float32) / 64,
        "mostly dropped": normal.masked_fill(dropped & (torch.arange(width) > 0), -math.inf),
        "one left": one,
    }


def special_rows(width: int) -> dict[str, Tensor]:
    normal = torch.randn(width, generator=torch.Generator().manual_seed(width))

    def having(value):
        row = normal.clone()
        row[width // 3] = value
        return row

    return {
        "NaN": having(math.nan),
        "negative NaN": having(-math.nan),
        "+inf": having(math.inf),
        "all -inf": torch.full((width,), -math.inf),
        "all NaN": torch.full((width,), math.nan),
        "all +inf": torch.full((width,), math.inf),
        "all kinds": torch.tensor([math.nan, -math.inf, math.inf, 0.0, -0.0, 1.0]).repeat(width)[
            :width
        ],
    }
