"""What Triton does with the rows of a block of logits: their statistics, and their gradient.

Contract: ``a = cap(x + bias) / T`` of logits x in float32, bfloat16 or float16; computes in
float32. The numbers are those of csrc/cuda/linear_log_probs.h: the state of a unit of 512 entries
of a row is its largest ``a``, ``sum p`` and ``sum p (a - largest)`` with ``p = exp(a - largest)``;
a row's states are merged in float64.

- ``summarise`` reads the logits once, and those of the K selected ids once more while they are in
  the cache.
- ``gradient`` reads each logit once and writes its gradient once, rounded once; the output may be
  the logits' own memory. Rows without a coefficient are written as 0, unread.

A row's bits depend on its numbers, on V, and on whether the rows lie at multiples of 16 entries:
not on the other rows, nor on how the vocabulary is cut. No atomics; deterministic. A row that is
all -inf, or holds NaN or +inf, gets NaN statistics.
"""

from typing import Any

import triton
from torch import Tensor

from lepo_kernels.backends.gpu.blocks import UNIT
from lepo_kernels.backends.triton.common.launching import FUSED, device_of, stride_of
from lepo_kernels.backends.triton.head.row_kernels import (
    merge_states_kernel,
    row_gradient_kernel,
    summarise_kernel,
)

# Tiles and warps; not measured on a GPU yet. Each thread has four loads of 16 bytes on their way.
_SUMMARISE = {"UNITS": 4, "num_warps": 4, **FUSED}
_GRADIENT = {"COLUMNS": 2048, "num_warps": 4, **FUSED}
_MERGE = {"num_warps": 4, **FUSED}


def summarise(
    logits: Tensor,  # [R, C]
    bias: Tensor | None,  # [C] float32
    softcap: float,
    inv_temperature: Tensor,  # [R] or [1]
    ids: Tensor,  # [R, K] int64
    first: int,
    states: Tensor,  # [R, units, 3], written: those of the block's units
    selected: Tensor,  # [R, K], written where an id is in the block
) -> None:
    """States and selected logits of a block, vocabulary entries ``first`` and on."""
    rows, columns = logits.shape
    if rows == 0:
        return
    grid = (rows, triton.cdiv(columns, _SUMMARISE["UNITS"] * UNIT))
    with device_of(logits):
        summarise_kernel[grid](
            *_head_arguments(logits, bias, softcap, inv_temperature),
            ids,
            first,
            states,
            selected,
            columns,
            ids.shape[1],
            states.shape[1],
            **_variant(bias, softcap),
            **_SUMMARISE,
        )


def statistics(
    states: Tensor,  # [R, units, 3]
) -> tuple[Tensor, Tensor]:  # [R], [R]
    """Log-sum-exp and entropy of rows."""
    rows, units, _ = states.shape
    lse, entropy = states.new_empty(rows), states.new_empty(rows)
    if rows > 0:
        with device_of(states):
            merge_states_kernel[(rows,)](
                states, lse, entropy, units, UNITS=triton.next_power_of_2(units), **_MERGE
            )
    return lse, entropy


def gradient(
    logits: Tensor,  # [R, C]
    bias: Tensor | None,  # [C] float32
    softcap: float,
    inv_temperature: Tensor,  # [R] or [1]
    ids: Tensor,  # [R, K] int64
    first: int,
    grad_logits: Tensor,  # [R, K]
    grad_lse: Tensor,  # [R]
    grad_entropy: Tensor,  # [R]
    lse: Tensor,  # [R]
    entropy: Tensor,  # [R]
    da: Tensor,  # [R, C], written; may be the logits
) -> None:
    """Gradient of the logits of a block, vocabulary entries ``first`` and on."""
    rows, columns = logits.shape
    if rows == 0:
        return
    with device_of(logits):
        row_gradient_kernel[(rows, triton.cdiv(columns, _GRADIENT["COLUMNS"]))](
            *_head_arguments(logits, bias, softcap, inv_temperature),
            ids,
            first,
            grad_logits,
            grad_lse,
            grad_entropy,
            lse,
            entropy,
            da,
            da.stride(0),
            columns,
            ids.shape[1],
            **_variant(bias, softcap),
            **_GRADIENT,
        )


def _head_arguments(
    logits: Tensor,  # [R, C]
    bias: Tensor | None,  # [C]
    softcap: float,
    inv_temperature: Tensor,  # [R] or [1]
) -> tuple[Any, ...]:
    """Arguments of a kernel, from the logits to the stride of the temperature."""
    return (
        logits,
        logits.stride(0),
        inv_temperature if bias is None else bias,
        softcap,
        inv_temperature,
        stride_of(inv_temperature),
    )


def _variant(bias: Tensor | None, softcap: float) -> dict[str, bool]:
    return {"HAS_BIAS": bias is not None, "CAPPED": softcap != 0.0}
