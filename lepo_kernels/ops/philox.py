"""Counter-based noise: Philox4x32-10 words, and Gumbel and normal numbers made of them.

Design note: the noise of a vocabulary entry depends only on (seed, row key, step, vocabulary id,
draw), never on the batch, its order, the device, the backend or a shard of the vocabulary. Any
kernel can thus redraw any entry's noise, and none has to store it. Seed and step may be tensors,
so a captured graph does not freeze them.
"""

import torch
from torch import Tensor

from lepo_kernels import dispatch
from lepo_kernels.backends.reference.philox import gumbel_from_words, normal_from_words
from lepo_kernels.ops._arguments import as_seed, as_step
from lepo_kernels.ops._library import torch_op
from lepo_kernels.validation import INDEX_DTYPES, MAX_DRAWS, check_integer, check_tensor, shape_or

_NOISE_DTYPES = (torch.float32, torch.float64)


def philox_words(
    seed: int | Tensor,
    row_keys: Tensor,  # [N]
    step: int | Tensor,
    ids: Tensor,  # [N, K] or [K]
    *,
    draw: int = 0,
    backend: str | None = None,
) -> Tensor:  # [N, K]
    """The random 32-bit word of each (seed, row key, step, id, draw).

    Philox4x32-10 (Salmon et al., SC 2011) with key = seed and counter =
    (id // 4 + draw * 2^24, step, row key low, row key high); the entry reads word id % 4.

    Args:
        seed: any 64-bit integer, or a 0-d int64 tensor.
        row_keys: [N] int64, any values: what names a row, whatever batch it is in.
        step: in [0, 2^32), or a 0-d or [N] integer tensor.
        ids: [N, K] or [K] int64 or int32 in [0, 2^26).
        draw: in [0, 64): independent streams for the same entry.
        backend: see `lepo_kernels.backend`.

    Returns:
        [N, K] int64 in [0, 2^32), the same bits on every backend.

    Raises:
        TypeError, ValueError: an argument has the wrong dtype, shape, device or range.
        IndexError: an id is out of range (checked on the CPU, or with ``LEPO_CHECK_VALUES=1``).
    """
    check_tensor("row_keys", row_keys, ("N",), (torch.int64,))
    rows, device = row_keys.shape[0], row_keys.device
    flat = isinstance(ids, Tensor) and ids.dim() == 1
    check_tensor("ids", ids, ("K",) if flat else (rows, "K"), INDEX_DTYPES, device)
    check_integer("draw", draw, 0, MAX_DRAWS - 1)
    chosen = dispatch.resolve("philox_words", device, backend)
    return _philox_words(
        as_seed(seed, device),
        row_keys,
        as_step(step, rows, device),
        (ids[None] if flat else ids).long(),
        draw,
        chosen,
    )


def gumbel_noise(
    seed: int | Tensor,
    row_keys: Tensor,  # [N]
    step: int | Tensor,
    ids: Tensor,  # [N, K] or [K]
    *,
    draw: int = 0,
    dtype: torch.dtype = torch.float32,
    backend: str | None = None,
) -> Tensor:  # [N, K]
    """Gumbel(0, 1) numbers: ``-log(-log1p(-v))``, ``v = min((word + 1/2) 2^-32, 1 - 2^-24)``.

    Args:
        seed, row_keys, step, ids, draw, backend: as in `philox_words`.
        dtype: float32 or float64.

    Returns:
        [N, K] of ``dtype``, always finite.

    Raises:
        TypeError, ValueError: as in `philox_words`, or another dtype is asked for.
    """
    _check_noise_dtype(dtype)
    words = philox_words(seed, row_keys, step, ids, draw=draw, backend=backend)
    return gumbel_from_words(words, dtype)


def normal_noise(
    seed: int | Tensor,
    row_keys: Tensor,  # [N]
    step: int | Tensor,
    ids: Tensor,  # [N, K] or [K]
    *,
    draw: int = 0,
    dtype: torch.dtype = torch.float32,
    backend: str | None = None,
) -> Tensor:  # [N, K]
    """Normal(0, 1) numbers by the Box-Muller map of the word pairs of ids (2i, 2i + 1).

    With uniforms v of the pair's words, ``r = sqrt(-2 log1p(-v_even))``: the even id gets
    ``r cos(2 pi v_odd)``, the odd one ``r sin(2 pi v_odd)``.

    Args:
        seed, row_keys, step, ids, draw, backend: as in `philox_words`.
        dtype: float32 or float64.

    Returns:
        [N, K] of ``dtype``, always finite.

    Raises:
        TypeError, ValueError: as in `philox_words`, or another dtype is asked for.
    """
    _check_noise_dtype(dtype)
    check_tensor("ids", ids, shape_or(ids, ("N", "K")), INDEX_DTYPES)
    first = ids - ids % 2
    even = philox_words(seed, row_keys, step, first, draw=draw, backend=backend)
    odd = philox_words(seed, row_keys, step, first + 1, draw=draw, backend=backend)
    return normal_from_words(even, odd, ids, dtype)


def _check_noise_dtype(dtype: torch.dtype) -> None:
    if dtype not in _NOISE_DTYPES:
        raise TypeError(f"dtype: expected float32 or float64, got {dtype}")


@torch_op("philox_words")
def _philox_words(
    seed: Tensor,  # []
    row_keys: Tensor,  # [N]
    step: Tensor,  # [N] or [1]
    ids: Tensor,  # [N, K] or [1, K]
    draw: int,
    backend: str,
) -> Tensor:  # [N, K]
    return row_keys.new_empty(row_keys.shape[0], ids.shape[1])
