"""No native kernel touches a byte outside its inputs, nor reads the gaps between their rows.

A read past the end meets a page without access, and the gaps hold NaN or -1. Outputs are torch's
own to allocate: the sanitizers watch those (tests/csrc/sanitize.py).
"""

import pytest

from tests.guarded import run_apart
from tests.ops.native_cases import NATIVE_OPS, native_ops, offered_capabilities


def test_every_native_op_has_cases():
    assert set(native_ops()) <= set(NATIVE_OPS)


@pytest.mark.parametrize("capability", offered_capabilities())
def test_kernels_stay_inside_their_inputs(capability):
    calls = run_apart("tests.ops.guarded_calls", "cpu", LEPO_CPU_CAPABILITY=capability)
    for op in native_ops():
        assert f"{op} " in calls
