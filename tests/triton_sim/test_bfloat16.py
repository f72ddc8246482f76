"""bfloat16 in the interpreter is torch's bfloat16."""

import pytest
import torch

pytest.importorskip("triton")

from triton.runtime.interpreter import InterpreterError

from tests.triton_sim import planted
from tests.triton_sim.interpreter import interpreted

# Every bfloat16, and what lies between neighbours: halves, which go to the even one, and the two
# numbers beside a half; infinities, numbers that round to one, subnormals and NaN are among them.
ALL = torch.arange(1 << 16, dtype=torch.int32) << 16
BETWEEN = torch.stack([ALL, ALL + 0x7FFF, ALL + 0x8000, ALL + 0x8001, ALL + 0xFFFF])
FLOATS = BETWEEN.flatten().view(torch.float32)


def same(x, y):
    return torch.equal(x.isnan(), y.isnan()) and torch.equal(x[~x.isnan()], y[~y.isnan()])


def run(kernel, *arguments, **options):
    with interpreted():
        kernel[(1,)](*arguments, **options)
    return arguments


def test_float32_is_rounded_to_the_nearest():
    out = torch.empty_like(FLOATS, dtype=torch.bfloat16)
    run(planted.converted, FLOATS, out, len(FLOATS), BLOCK=1 << 19)
    assert same(out, FLOATS.bfloat16())


@pytest.mark.parametrize(
    ("source", "target"),
    [
        (torch.bfloat16, torch.float32),
        (torch.bfloat16, torch.float16),
        (torch.float16, torch.bfloat16),
        (torch.int32, torch.bfloat16),
        (torch.bfloat16, torch.int32),
    ],
)
def test_conversions(source, target):
    x = torch.tensor([0.0, -0.0, 1.0, -2.5, 257.0, 1e-5, 3.1415926, 65000.0]).to(source)
    _, out, _ = run(planted.converted, x, torch.empty(8, dtype=target), 8, BLOCK=8)
    assert torch.equal(out, x.to(target))


def test_arithmetic_rounds_after_each_step():
    torch.manual_seed(0)
    x, y = torch.randn(2, 1024).bfloat16()
    *_, out = run(planted.arithmetic, x, y, torch.empty_like(x), BLOCK=1024)[:3]
    assert torch.equal(out, torch.where(x > y, -x, x * y + y))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_products(dtype):
    torch.manual_seed(0)
    x, y = torch.randn(2, 16, 16).to(dtype)
    *_, out = run(planted.product, x, y, torch.empty(16, 16))
    torch.testing.assert_close(out, x.float() @ y.float())


def test_a_reduction_of_bfloat16_is_refused():
    out = torch.zeros(1).bfloat16()
    with pytest.raises(InterpreterError, match="cannot reduce or scan bfloat16"):
        run(planted.total, torch.ones(16).bfloat16(), out, 16, ATOMIC=False, BLOCK=16)
