"""Reference kernel of the counter-based noise: Philox4x32-10 in int64 torch arithmetic.

Contract: the words of (seed, row key, step, id, draw) are bit-identical on every backend. The
counter is (id // 4 + draw * 2^24, step, row key low, row key high), the key (seed low, seed high),
and entry ``id`` reads word ``id % 4`` of its block. The maps from words to uniform, Gumbel and
normal numbers are plain torch and the same everywhere up to the rounding of ``log``.

Philox: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).
"""

import math

import torch
from torch import Tensor

from lepo_kernels.backends.checks import check_ids, check_steps

_WORD = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_DRAW_STRIDE = 1 << 24
_LARGEST_UNIFORM = 1 - 2.0**-24


def philox_words(
    seed: Tensor,  # []
    row_keys: Tensor,  # [N]
    step: Tensor,  # [N] or [1]
    ids: Tensor,  # [N, K] or [1, K]
    draw: int,
) -> Tensor:  # [N, K]
    """The uint32 word of every entry, held in int64."""
    check_ids("ids", ids, 4 * _DRAW_STRIDE)
    counter = _counter(row_keys, step, ids // 4, draw)
    words = torch.stack(philox_blocks(counter, (seed & _WORD, (seed >> 32) & _WORD)), dim=-1)
    which = (ids % 4).expand(words.shape[:-1])
    return words.gather(-1, which[..., None]).squeeze(-1)


def dense_philox_words(
    seed: Tensor,  # []
    row_keys: Tensor,  # [N]
    step: Tensor,  # [N] or [1]
    vocab: int,
    first_id: int = 0,
) -> Tensor:  # [N, vocab]
    """Draw 0 of ``vocab`` ids from ``first_id``, a multiple of 4: one Philox block per four ids."""
    blocks = first_id // 4 + torch.arange((vocab + 3) // 4, device=row_keys.device)[None]
    counter = _counter(row_keys, step, blocks, 0)
    words = torch.stack(philox_blocks(counter, (seed & _WORD, (seed >> 32) & _WORD)), dim=-1)
    return words.flatten(1)[:, :vocab]


def philox_blocks(
    counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox4x32-10 of counters and keys of any broadcastable shapes, all in [0, 2^32)."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        # The int64 product wraps modulo 2^64, which keeps all its bits; the masks drop the sign.
        even, odd = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1 = ((odd >> 32) & _WORD) ^ c1 ^ k0, odd & _WORD
        c2, c3 = ((even >> 32) & _WORD) ^ c3 ^ k1, even & _WORD
        k0, k1 = (k0 + _KEY_STEPS[0]) & _WORD, (k1 + _KEY_STEPS[1]) & _WORD
    c0, c1, c2, c3 = torch.broadcast_tensors(c0, c1, c2, c3)
    return c0, c1, c2, c3


def _counter(
    row_keys: Tensor, step: Tensor, blocks: Tensor, draw: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    check_steps(step)
    low, high = row_keys & _WORD, (row_keys >> 32) & _WORD
    return blocks + draw * _DRAW_STRIDE, (step & _WORD)[:, None], low[:, None], high[:, None]


def uniform_from_words(words: Tensor, dtype: torch.dtype) -> Tensor:
    """``v = min((word + 1/2) 2^-32, 1 - 2^-24)``: never 0, never 1."""
    return ((words.to(dtype) + 0.5) * 2.0**-32).clamp_max(_LARGEST_UNIFORM)


def exponential_from_words(words: Tensor, dtype: torch.dtype) -> Tensor:
    """Exponential(1) numbers, ``-log1p(-v)``."""
    return uniform_from_words(words, dtype).neg_().log1p_().neg_()


def gumbel_from_words(words: Tensor, dtype: torch.dtype) -> Tensor:
    """Gumbel(0, 1) numbers, ``-log(-log1p(-v))``: finite, with a fine upper tail."""
    return exponential_from_words(words, dtype).log_().neg_()


def normal_from_words(
    even: Tensor,  # [N, K] words of the even id of each pair
    odd: Tensor,  # [N, K] words of the odd id of each pair
    ids: Tensor,  # [N, K] or [1, K]
    dtype: torch.dtype,
) -> Tensor:  # [N, K]
    """Normal(0, 1) numbers by Box-Muller: even ids take r cos, odd ids r sin of their pair."""
    radius = (2 * exponential_from_words(even, dtype)).sqrt_()
    angle = (2 * math.pi) * uniform_from_words(odd, dtype)
    return radius * torch.where(ids % 2 == 0, angle.cos(), angle.sin())


def gumbel_noise(
    seed: Tensor, row_keys: Tensor, step: Tensor, ids: Tensor, draw: int, dtype: torch.dtype
) -> Tensor:  # [N, K]
    """Gumbel numbers of entries; arguments as in `philox_words`."""
    return gumbel_from_words(philox_words(seed, row_keys, step, ids, draw), dtype)


def normal_noise(
    seed: Tensor, row_keys: Tensor, step: Tensor, ids: Tensor, draw: int, dtype: torch.dtype
) -> Tensor:  # [N, K]
    """Normal numbers of entries; arguments as in `philox_words`."""
    first = ids - ids % 2
    even = philox_words(seed, row_keys, step, first, draw)
    odd = philox_words(seed, row_keys, step, first + 1, draw)
    return normal_from_words(even, odd, ids, dtype)
