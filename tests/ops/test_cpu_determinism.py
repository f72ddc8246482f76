"""The native kernels' bits: the same for any threads and run, nearly so for any instruction set."""

import pytest
import torch

from lepo_kernels import dispatch
from tests.guarded import run_apart
from tests.ops.native_cases import NATIVE_OPS, cases, native_ops, offered_capabilities, same_bits
from tests.ops.native_outputs import WIDTHS

pytestmark = pytest.mark.skipif(
    "cpu" in dispatch.MISSING, reason="the CPU library is not part of this installation"
)

# A float32 output may differ between instruction sets by this many units of its largest value:
# they sum in other orders, and only some fuse products into sums. A narrower output by one.
UNITS = 8


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("op", native_ops())
def test_bits_do_not_depend_on_threads_or_the_run(op, threads):
    for case in cases(op, WIDTHS):
        threads(1)
        first, again = case.run("cpu"), case.run("cpu")
        threads(2)
        parallel = case.run("cpu")
        for one, two, three in zip(first, again, parallel, strict=True):
            assert same_bits(one, two), f"{case.name}: another run gives other bits"
            if not NATIVE_OPS[op].has_matrix_product:
                assert same_bits(one, three), f"{case.name}: two threads give other bits"


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """What each instruction set of this machine gives: its name -> case name -> outputs."""
    folder = tmp_path_factory.mktemp("outputs")
    for name in offered_capabilities():
        path = folder / f"{name}.pt"
        run_apart("tests.ops.native_outputs", str(path), LEPO_CPU_CAPABILITY=name)
    return {name: torch.load(folder / f"{name}.pt") for name in offered_capabilities()}


@pytest.mark.parametrize("op", native_ops())
def test_instruction_sets_agree(op, outputs):
    baseline, *others = outputs.values()
    names = [name for name in baseline if name.startswith(f"{op} ")]
    assert names
    for other in others:
        for name in names:
            for x, y in zip(baseline[name], other[name], strict=True):
                assert_equal_up_to_rounding(x, y, name)


def assert_equal_up_to_rounding(x, y, name):
    if not x.is_floating_point():
        assert torch.equal(x, y), name
        return
    # -inf, the padding of scores, in the same places.
    finite = x.isfinite()
    assert same_bits(x[~finite], y[~finite]), name
    units = UNITS if x.dtype == torch.float32 else 1
    unit = torch.finfo(x.dtype).eps * x[finite].abs().max() if finite.any() else 0
    apart = (x[finite].double() - y[finite].double()).abs()
    assert (apart <= units * unit).all(), f"{name}: {apart.max() / unit:.1f} units apart"
