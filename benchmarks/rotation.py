"""Copies of a case's inputs, so that no call finds its own in a cache."""

import math
from typing import Any

from torch import Tensor

from benchmarks.case import Case, tensor_bytes

# Two caches' worth: with one, the least recently used policy of real caches leaves much in place.
_CACHES = 2
_MOST = 64


def copies(case: Case, inputs: Any, cache: int, memory: int) -> list[Any]:
    """``inputs`` and as many others as it takes, within ``memory`` bytes.

    What a call touches is the case's least traffic, results included.
    """
    wanted = min(_MOST, math.ceil(_CACHES * cache / max(1, case.bytes)))
    found = [inputs]
    left = memory
    while len(found) < wanted:
        fresh = case.another(inputs, len(found))
        left -= own_bytes(fresh, inputs)
        if left < 0:
            break
        found.append(fresh)
    return found


def own_bytes(inputs: Any, original: Any) -> int:
    """Bytes of the tensors that a copy does not share with the original."""
    mine, theirs = vars(inputs), vars(original)
    own = [x for name, x in mine.items() if isinstance(x, Tensor) and x is not theirs[name]]
    return tensor_bytes(*own)
