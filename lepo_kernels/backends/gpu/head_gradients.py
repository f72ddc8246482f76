"""Sums of a head's gradients, block by block of the logits; head.py says how they are rounded."""

import torch
from torch import Tensor

from lepo_kernels.backends.gpu.blocks import HeadPart
from lepo_kernels.backends.gpu.products import add_product, wide_product
from lepo_kernels.structures import HeadGradients, Needs


class GradientSums:
    """Sums of gradients over the blocks of the logits; empty where they are not wanted."""

    def __init__(
        self,
        hidden: Tensor,  # [M, D], the rows that are used
        lm_head: Tensor,  # [V, D]
        needs: Needs,
    ) -> None:
        self._needs = needs
        need_dhidden, need_dlm_head, need_dbias = needs
        device = hidden.device
        self._hidden = hidden
        shape = hidden.shape if need_dhidden else (0,)
        self._dhidden = torch.zeros(shape, dtype=torch.float32, device=device)
        # Without rows no part is written.
        make = torch.empty if len(hidden) else torch.zeros
        shape = lm_head.shape if need_dlm_head else (0,)
        self._dlm_head = make(shape, dtype=lm_head.dtype, device=device)
        self._dweight = torch.empty(0, device=device)
        count = len(lm_head) if need_dbias else 0
        self._dbias = torch.zeros(count, dtype=torch.float32, device=device)

    def add(
        self,
        block: slice,
        hidden: Tensor,  # [R, D]
        part: HeadPart,
        da: Tensor,  # [R, C]
    ) -> None:
        """Add what a block of the logits gives."""
        need_dhidden, need_dlm_head, need_dbias = self._needs
        if need_dhidden:
            add_product(self._dhidden[block], da, part.weight)
        if need_dlm_head:
            self._add_to_head(block, hidden, part.columns, da)
        if need_dbias:
            self._dbias[part.columns] += da.sum(dim=0, dtype=torch.float32)

    def _add_to_head(
        self,
        block: slice,
        hidden: Tensor,  # [R, D]
        columns: slice,
        da: Tensor,  # [R, C]
    ) -> None:
        """Blocks of rows come in turn for each part of the vocabulary."""
        is_first, is_last = block.start == 0, block.stop == len(self._hidden)
        if is_first and is_last:
            torch.mm(da.T, hidden, out=self._dlm_head[columns])
            return
        if is_first:
            self._dweight = wide_product(da.T, hidden)
        else:
            add_product(self._dweight, da.T, hidden)
        if is_last:
            self._dlm_head[columns] = self._dweight

    def outputs(
        self,
        count: int,
        taken: Tensor | None,  # [M]
    ) -> HeadGradients:
        """The gradients of ``count`` rows, of which those in ``taken`` were used, or all."""
        dhidden = self._dhidden.to(self._hidden.dtype)
        if self._needs.need_dhidden and taken is not None and len(taken) < count:
            all_rows = dhidden.new_zeros((count, *dhidden.shape[1:]))
            dhidden = all_rows.index_copy_(0, taken, dhidden)
        return HeadGradients(dhidden, self._dlm_head, self._dbias.to(self._dlm_head.dtype))
