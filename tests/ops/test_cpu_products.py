"""The CPU kernels' own products of bfloat16 matrices, on the instruction set in use."""

import pytest
import torch
from torch import Tensor

from lepo_kernels import dispatch, native
from lepo_kernels.backends.cpu.products import BFloat16Products, Float32Products, products_for
from tests.guarded import SIDES, GuardedMemory
from tests.ops.helpers import assert_passes_on
from tests.seeds import seeded
from tests.tolerances import assert_within

pytestmark = pytest.mark.skipif(
    "cpu" in dispatch.MISSING, reason="the CPU library is not part of this installation"
)

PRODUCTS = BFloat16Products()
# Rows, columns, inner. One number; less than a panel of each, and an odd sum; whole panels of the
# widest instruction set; a panel and a rest; more panels than a task has; more pairs than a block
# has, odd; nothing to sum, and nothing at all.
SHAPES = (
    (1, 1, 1),
    (7, 5, 3),
    (8, 48, 2),
    (9, 49, 33),
    (200, 97, 66),
    (17, 50, 2051),
    (3, 5, 0),
    (0, 5, 4),
    (5, 0, 4),
)
FLOATS = (torch.float32, torch.bfloat16)


def make(outer: int, inner: int, dtype: torch.dtype, transposed: bool) -> Tensor:
    shape = (inner, outer) if transposed else (outer, inner)
    x = torch.randn(shape).to(dtype)
    return x.T if transposed else x


def exact(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """The product of what is rounded to bfloat16, and the sums of its terms' magnitudes."""
    a, b = left.bfloat16().double(), right.bfloat16().double()
    return a @ b.T, a.abs() @ b.abs().T


@pytest.mark.parametrize("out_dtype", FLOATS)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("transposed", [(False, False), (False, True), (True, False), (True, True)])
def test_a_product_is_a_float32_sum_of_exact_products(dtype, transposed, out_dtype):
    torch.manual_seed(seeded(0))
    for rows, columns, inner in SHAPES:
        left, right = (
            make(size, inner, dtype, t) for size, t in zip((rows, columns), transposed, strict=True)
        )
        out = torch.full((rows, columns), torch.nan, dtype=out_dtype)
        PRODUCTS.multiply(PRODUCTS.left(left), PRODUCTS.right(right), out)
        result, magnitude = exact(left, right)
        assert_within(out, result, inner, magnitude)
        if out_dtype == torch.float32:
            before = torch.randn(rows, columns)
            out.copy_(before)
            PRODUCTS.multiply(PRODUCTS.left(left), PRODUCTS.right(right), out, add=True)
            assert_within(out, result + before, inner + 1, magnitude + before.abs())


def test_factors_without_dense_rows_or_columns_are_taken_too():
    torch.manual_seed(seeded(1))
    left, right = torch.randn(9, 20, dtype=torch.bfloat16), torch.randn(7, 20)
    gaps = torch.zeros(18, 40, dtype=torch.bfloat16)[::2, ::2].copy_(left)
    out, same = torch.empty(9, 7), torch.empty(9, 7)
    PRODUCTS.multiply(PRODUCTS.left(gaps), PRODUCTS.right(right), out)
    PRODUCTS.multiply(PRODUCTS.left(left), PRODUCTS.right(right), same)
    assert torch.equal(out, same)


def test_bits_depend_on_neither_threads_nor_the_other_rows():
    torch.manual_seed(seeded(2))
    left, right = torch.randn(300, 1100), torch.randn(500, 1100)
    threads = torch.get_num_threads()
    try:
        found = []
        for count in (1, 2):
            torch.set_num_threads(count)
            out = torch.empty(300, 500)
            found.append(PRODUCTS.multiply(PRODUCTS.left(left), PRODUCTS.right(right), out))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*found)
    some = PRODUCTS.multiply(
        PRODUCTS.left(left[5:8]), PRODUCTS.right(right[3:60]), torch.empty(3, 57)
    )
    assert torch.equal(some, found[0][5:8, 3:60])


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
def test_what_is_not_finite_stays_in_its_row(value):
    torch.manual_seed(seeded(3))
    # An odd sum: the pair that is filled up must not make NaN of an infinity.
    left, right = torch.randn(9, 5), torch.randn(7, 5).abs() + 1
    left[4, 4] = value
    out = torch.empty(9, 7)
    PRODUCTS.multiply(PRODUCTS.left(left), PRODUCTS.right(right), out)
    assert out[torch.arange(9) != 4].isfinite().all()
    torch.testing.assert_close(out[4], torch.full((7,), value), equal_nan=True)


def test_numbers_below_the_normal_ones_are_lost_at_most():
    left = torch.full((3, 8), 2.0**-130)
    out = torch.empty(3, 3)
    PRODUCTS.multiply(PRODUCTS.left(left), PRODUCTS.right(torch.ones(3, 8)), out)
    # Each factor may count as 0, and so may each of four pairs' sums.
    assert (out - 8 * 2.0**-130).abs().max() <= 8 * 2.0**-130 + 4 * 2.0**-126


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("transposed", [False, True])
def test_no_byte_outside_is_touched(side, dtype, transposed):
    torch.manual_seed(seeded(4))
    for rows, columns, inner in SHAPES[:5]:
        guarded = []

        def guard(x: Tensor, guarded: list[GuardedMemory] = guarded) -> Tensor:
            memory = GuardedMemory(x.numel() * x.element_size(), side)
            guarded.append(memory)
            return torch.frombuffer(memory.bytes, dtype=x.dtype).view(x.shape).copy_(x)

        left, right = (
            guard(torch.randn((inner, size) if transposed else (size, inner)).to(dtype))
            for size in (rows, columns)
        )
        if transposed:
            left, right = left.T, right.T
        # Gaps between the result's rows, but none behind the last one.
        whole = guard(torch.full((rows * (columns + 3) - 3,), torch.nan).to(dtype))
        out = whole.as_strided((rows, columns), (columns + 3, 1))
        PRODUCTS.multiply(PRODUCTS.left(left), PRODUCTS.right(right), out)
        assert_within(out.clone(), exact(left, right)[0], inner, exact(left, right)[1])
        assert int(whole.isnan().sum()) == 3 * (rows - 1)
        assert all(memory.untouched_beside() for memory in guarded)


def test_the_choice_is_by_dtype_and_instruction_set(monkeypatch):
    half, single = torch.zeros(1, dtype=torch.bfloat16), torch.zeros(1)
    for name in native.CAPABILITIES:
        monkeypatch.setattr(native, "cpu_capability", lambda name=name: name)
        fast = name == "avx512_bf16"
        assert isinstance(products_for(half, half), BFloat16Products if fast else Float32Products)
        for others in ((half, single), (single, single), (half.half(), half.half())):
            assert isinstance(products_for(*others), Float32Products)


def test_a_raw_call_is_checked():
    ops = torch.ops.lepo_kernels_cpu
    left, right = PRODUCTS.left(torch.ones(2, 4)), PRODUCTS.right(torch.ones(3, 4))
    with pytest.raises(RuntimeError, match="left: wrong size"):
        ops.bfloat16_multiply(left.data, right.data, 7, False, torch.empty(2, 3))
    with pytest.raises(RuntimeError, match="right: wrong size"):
        ops.bfloat16_multiply(left.data, right.data[1:], 4, False, torch.empty(2, 3))
    with pytest.raises(RuntimeError, match="out: expected float32, or bfloat16"):
        ops.bfloat16_multiply(left.data, right.data, 4, True, torch.empty(2, 3).bfloat16())
    with pytest.raises(RuntimeError, match="x: expected float32 or bfloat16"):
        ops.bfloat16_pack(torch.ones(2, 4).half(), True, left.data)
    with pytest.raises(RuntimeError, match="x: expected dense rows or columns"):
        ops.bfloat16_pack(torch.ones(4, 8)[::2, ::2], True, left.data)
    with pytest.raises(RuntimeError, match="packed: wrong size"):
        ops.bfloat16_pack(torch.ones(20, 4), True, left.data)


@pytest.mark.slow
@pytest.mark.parametrize("capability", native.CAPABILITIES)
def test_every_instruction_set(capability):
    assert_passes_on(capability, __file__, "not every")
