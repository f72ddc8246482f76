"""Launches of the backward pass that both forms of the dense Gumbel-softmax mixture share."""

from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from lepo_kernels.backends.triton.common.launching import UNFUSED
from lepo_kernels.backends.triton.gumbel_softmax.gradient_kernels import (
    UPSTREAM,
    dense_table_gradient_kernel,
    upstream_kernel,
)
from lepo_kernels.backends.triton.gumbel_softmax.launching import (
    COMBINE,
    Chunk,
    Draws,
    dtype_class_beside_floats,
    is_split,
    options,
)
from lepo_kernels.backends.triton.gumbel_softmax.statistics_kernels import STATISTICS
from lepo_kernels.structures import Mixtures, MixtureUpstream
from lepo_kernels.validation import FLOAT_DTYPES, check_tensor

# Tiles, warps and stages of loads; not measured on a GPU yet.
TABLE_GRADIENT = {
    "half": {
        "ROWS": 32,
        "IDS": 128,
        "COLUMNS": 128,
        "num_warps": 8,
        "num_stages": 1,
        **UNFUSED,
    },
    "float": {
        "ROWS": 32,
        "IDS": 64,
        "COLUMNS": 128,
        "num_warps": 8,
        "num_stages": 1,
        **UNFUSED,
    },
    "rocm": {"ROWS": 32, "IDS": 64, "COLUMNS": 64, "num_warps": 8, "num_stages": 1, **UNFUSED},
}


@dataclass
class Upstream:
    """What the gradient kernels take of the upstream gradients and the forward pass."""

    high: Tensor  # [N, D]
    low: Tensor  # [N, D]
    upstream: Tensor  # [N, 5]
    statistics: Tensor  # [N, 8]
    order: Tensor  # [N], rows with gradients first
    count: Tensor  # [], how many they are


def upstream_of(
    draws: Draws,
    upstream: MixtureUpstream,
    mixtures: Mixtures,
    embedding: Tensor,  # [V, D]
) -> Upstream:
    """Of at least one row."""
    grad_embedding, grad_log_prob, grad_log_density = upstream
    mixed, deviation, statistics = mixtures
    rows, width, device = len(draws.row_keys), embedding.shape[1], embedding.device
    check_tensor("grad_embedding", grad_embedding, (rows, width), FLOAT_DTYPES, device)
    check_tensor("grad_log_prob", grad_log_prob, (rows,), FLOAT_DTYPES, device)
    check_tensor("grad_log_density", grad_log_density, (rows,), FLOAT_DTYPES, device)
    check_tensor("mixed", mixed, (rows, width), FLOAT_DTYPES, device)
    check_tensor("deviation", deviation, (rows, width), FLOAT_DTYPES, device)
    check_tensor("statistics", statistics, (rows, STATISTICS.value), (torch.float64,), device)
    split = is_split(embedding)
    high = torch.empty(rows, width, dtype=torch.bfloat16 if split else torch.float32, device=device)
    low = torch.empty_like(high) if split else high
    numbers = torch.empty(rows, UPSTREAM.value, dtype=torch.float32, device=device)
    idle = torch.empty(rows, dtype=torch.int8, device=device)
    statistics = statistics.contiguous()
    upstream_kernel[(rows,)](
        grad_embedding.contiguous(),
        grad_log_prob.contiguous(),
        grad_log_density.contiguous(),
        *draws.tau_arguments(),
        *draws.temperature_arguments(),
        mixed.contiguous(),
        deviation.contiguous(),
        statistics,
        numbers,
        idle,
        high,
        low,
        width,
        SPLIT=split,
        **COMBINE,
    )
    # Stable: a row's place depends on nothing but which rows have gradients.
    order, count = idle.argsort(stable=True), rows - idle.sum()
    return Upstream(high, low, numbers, statistics, order, count)


def table_gradient(
    chunk: Chunk,
    weights: Tensor,  # [N, chunk]
    upstream: Upstream,
    dembedding: Tensor,  # [V, D], written
) -> None:
    """The chunk's rows of it."""
    width = dembedding.shape[1]
    size, device = dtype_class_beside_floats(dembedding), dembedding.device
    tiles = options(TABLE_GRADIENT, size, len(weights), device, COLUMNS=width)
    column_blocks = triton.cdiv(width, tiles["COLUMNS"])
    dense_table_gradient_kernel[(column_blocks * triton.cdiv(chunk.ids, tiles["IDS"]),)](
        weights,
        chunk.width,
        upstream.high,
        upstream.low,
        upstream.order,
        upstream.count,
        dembedding,
        chunk.first,
        chunk.past,
        width,
        column_blocks,
        SPLIT=is_split(dembedding),
        **tiles,
    )
