"""Reads and writes the first elements of a vector beside forbidden pages; run by the tests.

Arguments: the library, the element type.
"""

import sys

import numpy as np

from tests.csrc.layer import Layer
from tests.guarded import SIDES, GuardedMemory


def main(path: str, dtype: str) -> None:
    layer = Layer(path)
    size = np.dtype(layer.STORAGE[dtype]).itemsize
    for side in SIDES:
        for count in range(layer.lanes):
            print("load_some", dtype, "count", count, side, flush=True)
            source = GuardedMemory(count * size, side)
            layer.load_some(dtype, source.address, count, 0.0)
            print("store_some", dtype, "count", count, side, flush=True)
            layer.store_some(dtype, source.address, np.zeros(layer.lanes, np.float32), count)
            assert source.untouched_beside()
            assert source.bytes.raw == bytes(count * size)
        print("load_one and store_one", dtype, side, flush=True)
        source, target = GuardedMemory(size, side), GuardedMemory(size, side)
        source.bytes.raw = np.array([1], layer.STORAGE[dtype]).tobytes()
        layer.copy_one(dtype, source.address, target.address)
        assert target.untouched_beside()
        assert target.bytes.raw == source.bytes.raw


if __name__ == "__main__":
    main(*sys.argv[1:])
