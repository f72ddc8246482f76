"""Which strategy of the loss head is the fastest, by strategies.json.

A table by family of the device, kind of the dtype, and classes of D and V: the number of rows is no
part of it, since a row's statistics shall not depend on the others. ``basis`` of a family says what
its entries rest on. `python -m benchmarks.strategies` measures them on a GPU.
"""

import functools
import json
from pathlib import Path
from typing import Any

import torch

from lepo_kernels.backends.triton.common import launching
from lepo_kernels.backends.triton.common.launching import dtype_class

TABLE = Path(__file__).with_name("strategies.json")
# The largest D and V of each class; what is larger is in the last class.
WIDTHS = (1024, 2048, 4096)
VOCABS = (65536,)


def choice(device: torch.device, dtype: torch.dtype, width: int, vocab: int) -> str:
    """The strategy for products of this dtype and [V, D] head."""
    family = launching.device_family(device)
    rows = _table()[family][dtype_class(dtype)]
    name: str = rows[class_of("D", width, WIDTHS)][class_of("V", vocab, VOCABS)]
    return name


def class_of(name: str, value: int, limits: tuple[int, ...]) -> str:
    """The class of a size, as the table names it."""
    for limit in limits:
        if value <= limit:
            return f"{name} <= {limit}"
    return f"{name} > {limits[-1]}"


@functools.cache
def _table() -> dict[str, Any]:
    table: dict[str, Any] = json.loads(TABLE.read_text())
    return table
