"""What a GPU's backend does with blocks of logits, and what is known of rows after some of them."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from lepo_kernels.backends.gpu.blocks import UNIT, Rows
from lepo_kernels.backends.rows import fill_empty_sums

# Numbers in the state of a unit; the second is 0 where all of the unit's logits are -inf.
STATE = 3


class RowKernels(NamedTuple):
    """What a backend does with a block [R, C] of logits, vocabulary entries ``first`` and on.

    ``summarise(logits, bias, softcap, inv_temperature, ids, first, states, selected)`` writes the
    states [R, units, 3] of its units, and the selected logits [R, K] whose ids are in it.

    ``statistics(states)`` gives log-sum-exp and entropy, both [R].

    ``gradient(logits, bias, softcap, inv_temperature, ids, first, grad_logits, grad_lse,
    grad_entropy, lse, entropy, da)`` writes the gradient of the logits, which may overwrite them.

    ``bias`` is [C] float32 or None, and ``softcap`` 0 for none. What they compute is in
    csrc/cuda/linear_log_probs.h.
    """

    summarise: Callable[..., None]
    statistics: Callable[[Tensor], tuple[Tensor, Tensor]]
    gradient: Callable[..., None]


class States:
    """What is known of rows after some parts of the vocabulary."""

    def __init__(
        self,
        kernels: RowKernels,
        ids: Tensor,  # [R, K]
        vocab: int,
    ) -> None:
        self._kernels = kernels
        # An id that is out of range, which the caller checks for, is in no part.
        self._selected = torch.full(ids.shape, torch.nan, dtype=torch.float32, device=ids.device)
        self._states = self._selected.new_empty((len(ids), -(-vocab // UNIT), STATE))

    def add(
        self,
        logits: Tensor,  # [R, C]
        first: int,
        rows: Rows,
        bias: Tensor | None,  # [C]
        softcap: float,
    ) -> None:
        """Add the logits from vocabulary entry ``first`` on."""
        self._kernels.summarise(
            logits,
            bias,
            softcap,
            rows.inv_temperature,
            rows.ids,
            first,
            self._states,
            self._selected,
        )

    def outputs(self, shard: bool = False) -> tuple[Tensor, Tensor, Tensor]:  # [R, K], [R], [R]
        """Selected logits, log-sum-exp and entropy."""
        lse, entropy = self._kernels.statistics(self._states)
        if shard:
            fill_empty_sums(lse, entropy, (self._states[:, :, 1] == 0).all(dim=1))
        return self._selected, lse, entropy
