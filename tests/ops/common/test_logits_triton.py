"""The arithmetic of logits inside Triton kernels, where Triton has no function of its own."""

import pytest
import torch

from tests import triton_backend

pytestmark = pytest.mark.skipif(triton_backend.why_not() is not None, reason="no triton")
DEVICE = "cuda" if triton_backend.has_gpu() else "cpu"
SWITCH = 0.35  # from the series to a quotient of exp, which may err by two units


@pytest.fixture(autouse=True)
def on_triton(monkeypatch):
    with triton_backend.serving(monkeypatch):
        yield


# Around the switch, where tanh is 1, beyond any float32 exp, and where it is x itself.
def test_tanh_keeps_its_relative_accuracy():
    from tests.triton_sim import logits

    tiny = torch.logspace(-37, -3, 1000)
    x = torch.cat((tiny, torch.linspace(0.001, 1, 20001), torch.linspace(1, 12, 5001)))
    x = torch.cat((x, -x, torch.tensor([0.0, 300.0, -1e30]))).to(DEVICE)
    out = torch.empty_like(x)
    logits.tanhs[(1,)](x, out, len(x), BLOCK=1 << 16)
    exact = torch.tanh(x.double())
    units = torch.where(x.abs() < SWITCH, 0.75, 4.5)
    assert ((out.double() - exact).abs() <= units * 2.0**-23 * exact.abs()).all()


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
def test_tanh_of_what_is_no_number(value):
    from tests.triton_sim import logits

    x = torch.tensor([value], device=DEVICE)
    out = torch.empty_like(x)
    logits.tanhs[(1,)](x, out, 1, BLOCK=16)
    torch.testing.assert_close(out, torch.tanh(x), rtol=0, atol=0, equal_nan=True)
