"""The interpreter's operations: right on bfloat16, and with every memory access checked.

The interpreter holds a bfloat16 as the uint16 of its bits. It adds and multiplies those as
integers, and it cuts off what it should round. Here arithmetic on bfloat16 is done in float32 and
rounded to the nearest, ties to even, as GPUs do.
"""

from typing import Any

import numpy as np
import triton.language as tl
import triton.runtime.interpreter as ti
from triton.runtime.interpreter import TensorHandle

from tests.triton_sim.memory import Memory


def widened(bits: np.ndarray) -> np.ndarray:
    """The float32 of bfloat16's bits."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def rounded(values: np.ndarray) -> np.ndarray:
    """The bits of the nearest bfloat16, ties to even; NaN stays NaN."""
    bits = np.array(values, dtype=np.float32, order="C").view(np.uint32)
    nearest = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    return np.where(np.isnan(values), 0x7FC0, nearest).astype(np.uint16).reshape(np.shape(values))


def is_bfloat16(x: TensorHandle) -> bool:
    return bool(x.dtype.scalar == tl.bfloat16)


def widen(x: TensorHandle) -> TensorHandle:
    return TensorHandle(widened(x.data), tl.float32) if is_bfloat16(x) else x


def narrow(x: TensorHandle, to: Any) -> TensorHandle:
    """Round a float32 result of bfloat16 numbers; comparisons stay as they are."""
    if to == tl.bfloat16 and x.data.dtype == np.float32:
        return TensorHandle(rounded(x.data), tl.bfloat16)
    return x


class Builder(ti.InterpreterBuilder):
    memory: Memory | None  # of the launch that is running

    # --- bfloat16 ---------------------------------------------------------------------------------

    def cast_impl(self, src: TensorHandle, dst_type: Any) -> TensorHandle:
        if dst_type.scalar == tl.bfloat16 and not is_bfloat16(src):
            return TensorHandle(rounded(super().cast_impl(src, tl.float32).data), tl.bfloat16)
        return super().cast_impl(widen(src), dst_type)

    def create_fp_to_fp(self, src: TensorHandle, dst_type: Any, rounding_mode: Any) -> TensorHandle:
        if tl.bfloat16 in (src.dtype.scalar, dst_type.scalar):
            return self.cast_impl(src, dst_type)
        return super().create_fp_to_fp(src, dst_type, rounding_mode)

    def unary_op(self, arg: TensorHandle, op: Any) -> TensorHandle:
        return narrow(super().unary_op(widen(arg), op), arg.dtype.scalar)

    def binary_op(self, lhs: TensorHandle, rhs: TensorHandle, op: Any) -> TensorHandle:
        return narrow(super().binary_op(widen(lhs), widen(rhs), op), lhs.dtype.scalar)

    def ternary_op(self, lhs: Any, rhs: Any, other: Any, op: Any) -> TensorHandle:
        result = super().ternary_op(widen(lhs), widen(rhs), widen(other), op)
        return narrow(result, other.dtype.scalar)

    def create_fma(self, x: TensorHandle, y: TensorHandle, z: TensorHandle) -> TensorHandle:
        return narrow(super().create_fma(widen(x), widen(y), widen(z)), z.dtype.scalar)

    def create_dot(self, a: TensorHandle, b: TensorHandle, *rest: Any) -> TensorHandle:
        return super().create_dot(widen(a), widen(b), *rest)

    # --- Memory -----------------------------------------------------------------------------------

    def program(self) -> int:
        (x, y, z), (nx, ny, _) = self.grid_idx, self.grid_dim
        return int(x + nx * (y + ny * z))

    def checked(self, kind: str, ptr: TensorHandle, mask: TensorHandle | None) -> None:
        if self.memory is not None:
            size = ti._get_np_dtype(ptr.get_element_ty()).itemsize
            shape = ptr.data.shape
            lanes = ptr.data if mask is None else ptr.data[np.broadcast_to(mask.data, shape)]
            self.memory.access(kind, lanes.reshape(-1), size, self.program())

    def create_masked_load(self, ptrs: Any, mask: Any, *rest: Any, **named: Any) -> TensorHandle:
        self.checked("load", ptrs, mask)
        return super().create_masked_load(ptrs, mask, *rest, **named)

    def create_masked_store(self, ptrs: Any, value: Any, mask: Any, *rest: Any) -> None:
        self.checked("store", ptrs, mask)
        super().create_masked_store(ptrs, value, mask, *rest)

    def create_atomic_rmw(self, op: Any, ptr: Any, val: Any, mask: Any, *rest: Any) -> TensorHandle:
        self.checked("update", ptr, mask)
        return super().create_atomic_rmw(op, ptr, val, mask, *rest)

    def create_atomic_cas(self, ptr: Any, *rest: Any) -> TensorHandle:
        self.checked("update", ptr, None)
        return super().create_atomic_cas(ptr, *rest)
