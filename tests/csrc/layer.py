"""The SIMD layer of the CPU kernels, called from Python: tests/csrc/simd_layer.cpp by ctypes."""

import ctypes
from pathlib import Path

import numpy as np


class Layer:
    """The SIMD layer of one instruction set, on numpy arrays."""

    # Elements by the number that csrc names them by; numpy has no bfloat16, and holds its bits.
    STORAGE = {"float32": np.float32, "bfloat16": np.uint16, "float16": np.float16}  # noqa: RUF012

    def __init__(self, path: str | Path):
        self.path = path
        self._library = ctypes.CDLL(str(path))
        self.lanes: int = self._library.lanes()

    def map(self, name: str, values: np.ndarray) -> np.ndarray:
        """``name`` over float32 numbers or uint32 words; gives float32."""
        padded = np.resize(values, -(-values.size // self.lanes) * self.lanes)
        out = np.empty(padded.size, np.float32)
        self._call(name, padded, out, ctypes.c_int64(padded.size))
        return out[: values.size]

    def widen(self, dtype: str, values: np.ndarray) -> np.ndarray:
        assert values.dtype == self.STORAGE[dtype]
        assert values.size % self.lanes == 0
        out = np.empty(values.size, np.float32)
        self._call("widen", self._number(dtype), values, out, ctypes.c_int64(values.size))
        return out

    def narrow(self, dtype: str, values: np.ndarray) -> np.ndarray:
        assert values.dtype == np.float32
        assert values.size % self.lanes == 0
        out = np.empty(values.size, self.STORAGE[dtype])
        self._call("narrow", self._number(dtype), values, out, ctypes.c_int64(values.size))
        return out

    def load_some(self, dtype: str, address: int, count: int, fill: float) -> np.ndarray:
        out = np.empty(self.lanes, np.float32)
        self._call(
            *("first_elements", self._number(dtype), ctypes.c_void_p(address)),
            *(ctypes.c_int(count), ctypes.c_float(fill), out),
        )
        return out

    def store_some(self, dtype: str, address: int, values: np.ndarray, count: int) -> None:
        assert values.size == self.lanes
        target = ctypes.c_void_p(address)
        self._call("store_first", self._number(dtype), target, values, ctypes.c_int(count))

    def copy_one(self, dtype: str, source: int, target: int) -> None:
        self._call(
            "copy_one", self._number(dtype), ctypes.c_void_p(source), ctypes.c_void_p(target)
        )

    def any(self, mask: np.ndarray) -> bool:
        assert mask.dtype == np.int32
        return bool(self._call("any_lane", mask))

    def fold(self, name: str, values: np.ndarray) -> np.float32:
        assert values.dtype == np.float32
        assert values.size == self.lanes
        return np.float32(self._call(name, values, result=ctypes.c_float))

    def pairwise(self, name: str, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        out = np.empty(self.lanes, np.float32)
        self._call(name, a, b, out)
        return out

    def lane_numbers(self) -> np.ndarray:
        out = np.empty(self.lanes, np.int32)
        self._call("vector_lane_numbers", out)
        return out

    def philox_blocks(self, seed: int, row_key: int, step: int, blocks: np.ndarray) -> np.ndarray:
        """[4, lanes]: word w of the block in each lane."""
        assert blocks.dtype == np.uint32
        assert blocks.size == self.lanes
        out = np.empty((4, self.lanes), np.uint32)
        self._call("vector_philox_blocks", *_key(seed, row_key, step), blocks, out)
        return out

    def philox_words(self, seed: int, row_key: int, step: int, first: int, draw: int) -> np.ndarray:
        """[4 * lanes]: the words of the ids from ``first`` on."""
        out = np.empty(4 * self.lanes, np.uint32)
        entry = (ctypes.c_uint32(first), ctypes.c_uint32(draw))
        self._call("vector_philox_words", *_key(seed, row_key, step), *entry, out)
        return out

    def scalar_philox_word(self, seed: int, row_key: int, step: int, id: int, draw: int) -> int:
        entry = (ctypes.c_uint32(id), ctypes.c_uint32(draw))
        arguments = (*_key(seed, row_key, step), *entry)
        return self._call("scalar_philox_word", *arguments, result=ctypes.c_uint32)

    def _number(self, dtype: str) -> ctypes.c_int:
        return ctypes.c_int(list(self.STORAGE).index(dtype))

    def _call(self, name, *arguments, result=ctypes.c_int):
        function = getattr(self._library, name)
        function.restype = result
        return function(
            *(
                ctypes.c_void_p(np.ascontiguousarray(x).ctypes.data)
                if isinstance(x, np.ndarray)
                else x
                for x in arguments
            )
        )


def _key(seed: int, row_key: int, step: int) -> tuple:
    return ctypes.c_uint64(seed), ctypes.c_uint64(row_key), ctypes.c_uint32(step)
