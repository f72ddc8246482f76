"""What `interpreted` changes, and that nothing of it stays."""

import subprocess
import sys

import pytest
import torch

pytest.importorskip("triton")

import triton
import triton.runtime.interpreter as ti
from triton.runtime.jit import JITFunction

from tests.triton_sim import planted
from tests.triton_sim.interpreter import PATCHED, interpreted


def test_loops_and_device_functions():
    x, out = torch.arange(5.0), torch.zeros(1)
    with interpreted():
        planted.counted[(1,)](x, out, 5)
    assert out.item() == 20


def test_nothing_stays():
    before = [dict(vars(changed)) for changed in PATCHED]
    run, call = JITFunction.run, JITFunction.__call__
    with interpreted():
        planted.counted[(1,)](torch.arange(5.0), torch.zeros(1), 5)
        # The functions themselves stay ready to be compiled.
        assert isinstance(planted.counted, JITFunction)
        assert JITFunction.run is not run
    assert [dict(vars(changed)) for changed in PATCHED] == before
    assert (JITFunction.run, JITFunction.__call__) == (run, call)
    assert type(ti.interpreter_builder) is ti.InterpreterBuilder
    with pytest.raises(RuntimeError, match="outside of the scope of a kernel"):
        planted._doubled(1)


def test_nothing_stays_after_an_error():
    before = [dict(vars(changed)) for changed in PATCHED]
    with pytest.raises(ZeroDivisionError), interpreted():
        raise ZeroDivisionError
    assert [dict(vars(changed)) for changed in PATCHED] == before


def test_what_is_decorated_inside_is_compiled_outside():
    with interpreted():
        inner = triton.jit(planted._doubled.fn)
    assert isinstance(inner, JITFunction)


def test_an_error_in_a_kernel_is_triton_s_own():
    with pytest.raises(ti.InterpreterError), interpreted():
        planted.largest[(1,)](torch.zeros(16), "nothing")


# 1 / 0 and the maximum of nothing but NaN.
def test_infinities_and_nan_do_not_warn():
    x, out = torch.full((16,), torch.nan), torch.zeros(1)
    with interpreted():
        planted.largest[(1,)](x, out)
        values = torch.tensor([torch.inf, -torch.inf]).repeat(8)
        planted.arithmetic[(1,)](-values, values, torch.empty(16), BLOCK=16)


def test_the_package_imports_without_triton():
    code = """
import sys
sys.modules["triton"] = None
import lepo_kernels
assert "not installed" in lepo_kernels.dispatch.MISSING["triton"]
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
