"""Triton kernel that shows the counter-based noise.

Contract: that of philox.py, which launches it.
"""

import triton
import triton.language as tl

from lepo_kernels.backends.triton.common.noise_kernels import words_at


@triton.jit
def philox_words_kernel(
    seed: tl.tensor,  # []
    row_keys: tl.tensor,  # [N]
    step: tl.tensor,  # [N] or [1]
    stride_step: tl.tensor,
    ids: tl.tensor,  # [N, K] or [1, K]
    stride_ids: tl.tensor,
    draw: tl.tensor,
    words: tl.tensor,  # [N, K] int64, written
    entries: tl.tensor,
    IDS: tl.constexpr,
) -> None:
    """A row per program, and a block of its ids."""
    row = tl.program_id(0).to(tl.int64) + tl.arange(0, 1)
    entry = tl.program_id(1) * IDS + tl.arange(0, IDS)[None, :]
    inside = entry < entries
    id = tl.load(ids + row[:, None] * stride_ids + entry, mask=inside, other=0)
    steps, keys = tl.load(step + row * stride_step), tl.load(row_keys + row)
    word = words_at(tl.load(seed), steps, keys, id, draw)
    tl.store(words + row[:, None] * entries + entry, word.to(tl.int64), mask=inside)
