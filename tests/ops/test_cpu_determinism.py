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


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("op", native_ops())
def test_instruction_sets_agree(op, width, outputs):
    for name in (case.name for case in cases(op, (width,))):
        baseline, *others = (by_name[name] for by_name in outputs.values())
        for other in others:
            for x, y in zip(baseline, other, strict=True):
                rounds = NATIVE_OPS[op].rounds_weights and "bfloat16" in name
                assert_equal_up_to_rounding(x, y, width, name, rounds)


def assert_equal_up_to_rounding(x, y, width, name, rounds_weights):
    """Integers are equal. Floats are apart by some units of the largest value.

    Instruction sets sum in other orders, which moves a float32 sum of n terms by a part of
    sqrt(n) units, and only some fuse products into sums. A narrower output is rounded once more.
    Weights that one set rounds to bfloat16 are off by up to 2^-9 of themselves, in either
    direction, by 2^-9 / sqrt(3) in the root mean square: 4 * 2^-9 are more than six deviations of
    their sum, relative to the root of the sum of squares that the largest entry is made of.
    """
    if not x.is_floating_point():
        assert torch.equal(x, y), name
        return
    # -inf, the padding of scores, is in the same places.
    finite = x.isfinite()
    assert same_bits(x[~finite], y[~finite]), name
    if not finite.any():
        return
    # What is kept in float64 was computed in float32.
    eps = max(torch.finfo(x.dtype).eps, torch.finfo(torch.float32).eps)
    units = 8 + width**0.5 / 4 if eps == torch.finfo(torch.float32).eps else 1
    units += 4 * 2.0**-9 / eps if rounds_weights else 0
    apart = (x[finite].double() - y[finite].double()).abs().max()
    apart = float(apart / x[finite].abs().max().clamp_min(torch.finfo(x.dtype).tiny)) / eps
    assert apart <= units, f"{name}: {apart:.1f} units apart, {units:.1f} allowed"
