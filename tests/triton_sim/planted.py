"""Small kernels, right or with a planted bug, that show what the interpreter and its checks do."""

import triton
import triton.language as tl


@triton.jit
def copy(
    x,  # [n]
    out,  # [n]
    n,
    beyond: tl.constexpr,  # how many entries too many
    BLOCK: tl.constexpr,
):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n + beyond
    tl.store(out + at, tl.load(x + at, mask=inside), mask=inside)


@triton.jit
def before_the_start(
    x,  # [4]
    out,  # [4]
):
    at = tl.arange(0, 4)
    tl.store(out + at, tl.load(x + at - 1))


@triton.jit
def total(
    x,  # [n]
    out,  # [1]
    n,
    ATOMIC: tl.constexpr,
    BLOCK: tl.constexpr,
):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    part = tl.sum(tl.load(x + at, mask=at < n, other=0.0))
    if ATOMIC:
        tl.atomic_add(out, part)
    else:
        tl.store(out, tl.load(out) + part)


@triton.jit
def atomic_and_plain(
    x,  # [programs]
    out,  # [1]
):
    tl.atomic_add(out, 1.0)
    tl.store(x + tl.program_id(0), tl.load(out))


@triton.jit
def shift_in_place(
    x,  # [n]
    n,
    BLOCK: tl.constexpr,
):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n - 1
    tl.store(x + at, tl.load(x + at + 1, mask=inside), mask=inside)


@triton.jit
def same_place_twice(
    out,  # [2]
):
    at = tl.arange(0, 4)
    tl.store(out + at // 2, at.to(tl.float32))


@triton.jit
def reads_its_own(
    x,  # [n]
    out,  # [n]
    BLOCK: tl.constexpr,
):
    at = tl.arange(0, BLOCK)
    tl.store(x + at, at.to(tl.float32))
    tl.store(out + at, tl.load(x + BLOCK - 1 - at))


@triton.jit
def half_of_a_word(
    x,  # [2] int64
    out,  # [4] int32
):
    at = tl.arange(0, 4)
    tl.store(out + at, tl.load(x.to(tl.pointer_type(tl.int32)) + at))


@triton.jit
def off_by_a_byte(
    x,  # [8] int8
    out,  # [1] int32
):
    tl.store(out, tl.load((x + 1).to(tl.pointer_type(tl.int32))))


@triton.jit
def converted(
    x,  # [n]
    out,  # [n]
    n,
    BLOCK: tl.constexpr,
):
    at = tl.arange(0, BLOCK)
    inside = at < n
    tl.store(out + at, tl.load(x + at, mask=inside).to(out.dtype.element_ty), mask=inside)


@triton.jit
def arithmetic(
    x,  # [n]
    y,  # [n]
    out,  # [n]
    BLOCK: tl.constexpr,
):
    at = tl.arange(0, BLOCK)
    a, b = tl.load(x + at), tl.load(y + at)
    tl.store(out + at, tl.where(a > b, -a, a * b + b))


@triton.jit
def product(
    x,  # [16, 16]
    y,  # [16, 16]
    out,  # [16, 16] float32
):
    at = tl.arange(0, 16)[:, None] * 16 + tl.arange(0, 16)[None, :]
    tl.store(out + at, tl.dot(tl.load(x + at), tl.load(y + at)))


@triton.jit
def largest(
    x,  # [16]
    out,  # [1]
):
    tl.store(out, tl.max(tl.load(x + tl.arange(0, 16))))


@triton.jit
def _doubled(x):
    return x + x


@triton.jit
def counted(
    x,  # [n]
    out,  # [1]
    n,
):
    """A loop to a number that is known at run time, and a function of the kernel's own."""
    sum = 0.0
    for at in range(n):
        sum += _doubled(tl.load(x + at))
    tl.store(out, sum)


# --- For the compiler alone -----------------------------------------------------------------------


@triton.jit
def broken(
    x,  # [32768]
):
    tl.store(x, nothing_of_the_kind)  # noqa: F821


@triton.jit
def endless(
    x,  # [32768]
):
    sum = tl.load(x)
    for _ in tl.static_range(1 << 30):
        sum += sum
    tl.store(x, sum)


@triton.jit
def spilling(
    x,  # [32768]
):
    """A thread of one warp holds 512 values: all are needed before the first is stored."""
    at = tl.arange(0, 1 << 14)
    values = tl.load(x + at)
    tl.store(x + at, values / tl.sum(values))
