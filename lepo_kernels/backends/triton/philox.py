"""Triton kernel of the counter-based noise.

Contract: as the reference's, bit for bit. One launch reads the ids and writes the words, once.
"""

import torch
import triton
from torch import Tensor

from lepo_kernels.backends.checks import check_ids, check_steps
from lepo_kernels.backends.triton.common.launching import FUSED, device_of, stride_of
from lepo_kernels.backends.triton.common.philox_kernels import philox_words_kernel
from lepo_kernels.validation import INDEX_DTYPES, MAX_DRAWS, MAX_IDS, check_integer, check_tensor

# Tile and warps; not measured on a GPU yet.
_WORDS = {"IDS": 512, "num_warps": 4, **FUSED}


def philox_words(
    seed: Tensor,  # []
    row_keys: Tensor,  # [N]
    step: Tensor,  # [N] or [1]
    ids: Tensor,  # [N, K] or [1, K]
    draw: int,
) -> Tensor:  # [N, K]
    """The uint32 word of every entry, held in int64."""
    rows, device = row_keys.numel(), row_keys.device
    check_tensor("seed", seed, (), (torch.int64,), device)
    check_tensor("row_keys", row_keys, ("N",), (torch.int64,))
    check_tensor("step", step, (1 if step.shape == (1,) else rows,), (torch.int64,), device)
    check_tensor("ids", ids, (1 if ids.shape[:1] == (1,) else rows, "K"), INDEX_DTYPES, device)
    check_integer("draw", draw, 0, MAX_DRAWS - 1)
    check_ids("ids", ids, MAX_IDS)
    check_steps(step)
    entries = ids.shape[1]
    words = torch.empty(rows, entries, dtype=torch.int64, device=device)
    if words.numel() > 0:
        with device_of(words):
            philox_words_kernel[(rows, triton.cdiv(entries, _WORDS["IDS"]))](
                seed,
                row_keys.contiguous(),
                step.contiguous(),
                stride_of(step),
                ids.contiguous(),
                0 if ids.shape[0] == 1 else entries,
                draw,
                words,
                entries,
                **_WORDS,
            )
    return words
