"""CPU kernel of the counter-based noise: csrc/cpu/philox.cpp.

Contract: as the reference's, bit for bit.
"""

import torch
from torch import Tensor

from lepo_kernels.backends.checks import check_ids, check_steps
from lepo_kernels.validation import MAX_IDS


def philox_words(
    seed: Tensor,  # []
    row_keys: Tensor,  # [N]
    step: Tensor,  # [N] or [1]
    ids: Tensor,  # [N, K] or [1, K]
    draw: int,
) -> Tensor:  # [N, K]
    """The uint32 word of every entry, held in int64."""
    check_ids("ids", ids, MAX_IDS)
    check_steps(step)
    words: Tensor = torch.ops.lepo_kernels_cpu.philox_words(
        seed, row_keys.contiguous(), step.contiguous(), ids.contiguous(), draw
    )
    return words
