"""The prompts of a rollout, one row per sample."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Prompts:
    """B rows, ``samples`` neighbours of which have the same prompt.

    Attributes:
        ids: [B, P] int64.
        mask: [B, P] bool.
        row_keys: [B] int64, of the rows' noise.
        samples: rows per prompt.
    """

    ids: Tensor
    mask: Tensor
    row_keys: Tensor
    samples: int

    @classmethod
    def repeated(
        cls,
        input_ids: Tensor,  # [B / samples, P]
        attention_mask: Tensor,  # [B / samples, P]
        samples: int,
        row_keys: Tensor | None,  # [B]
    ) -> "Prompts":
        """Prompts with ``samples`` rows each; row keys count from 0 where none are given."""
        ids = input_ids.long().repeat_interleave(samples, dim=0)
        mask = attention_mask.bool().repeat_interleave(samples, dim=0)
        if row_keys is None:
            row_keys = torch.arange(ids.shape[0], device=ids.device)
        return cls(ids, mask, row_keys, samples)

    def positions(self) -> Tensor:  # [B, P]
        """Positions of the prompts' tokens; below 0 on padding."""
        return self.mask.long().cumsum(dim=1) - 1
