"""The gradients of hidden states, head and bias that the loss forms; loss.py says how."""

import torch
from torch import Tensor

from lepo_kernels.backends.gpu.products import add_product, wide_product
from lepo_kernels.structures import Needs


class LossGradients:
    """The gradients of hidden states, head and bias; empty where they are not wanted."""

    def __init__(
        self,
        hidden: Tensor,  # [M, D], the rows that are used
        lm_head: Tensor,  # [V, D]
        needs: Needs,
    ) -> None:
        self.needs = needs
        self._hidden = hidden
        self._lm_head = lm_head
        # The head's, or their float32 sum; made when there is something to write.
        self._sum: Tensor | None = None
        self.dhidden = hidden.new_empty(hidden.shape if needs.need_dhidden else (0,))
        count = len(lm_head) if needs.need_dbias else 0
        self.dbias = hidden.new_zeros(count, dtype=torch.float32)

    def add(
        self,
        rows: slice,
        da: Tensor,  # [R, V], in the dtype of the hidden states
    ) -> None:
        """Add those of some of the rows."""
        if self.needs.need_dhidden:
            # Not straight to its dtype: a sum this long may be split, and its parts rounded.
            self.dhidden[rows] = wide_product(da, self._lm_head)
        if self.needs.need_dlm_head:
            self._add_to_head(rows, da)
        if self.needs.need_dbias:
            self.dbias += da.sum(dim=0, dtype=torch.float32)

    def _add_to_head(
        self,
        rows: slice,
        da: Tensor,  # [R, V]
    ) -> None:
        hidden = self._hidden[rows]
        if self._sum is not None:
            add_product(self._sum, da.T, hidden)
        elif len(hidden) == len(self._hidden):
            self._sum = torch.mm(da.T, hidden)
        else:
            self._sum = wide_product(da.T, hidden)

    def dlm_head(self) -> Tensor:  # [V, D] or [0]
        """The head's, rounded."""
        if not self.needs.need_dlm_head:
            return self._lm_head.new_empty(0)
        if self._sum is None:
            return self._lm_head.new_zeros(self._lm_head.shape)
        return self._sum.to(self._lm_head.dtype)
