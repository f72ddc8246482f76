"""Each planted bug is found, and what is right passes."""

import pytest
import torch

pytest.importorskip("triton")

from tests.triton_sim import planted
from tests.triton_sim.interpreter import interpreted
from tests.triton_sim.memory import KernelError


def fault(kernel, grid, *arguments, races=True, **options):
    """What is wrong with a launch, or "nothing"."""
    try:
        with interpreted(races=races):
            kernel[grid](*arguments, **options)
    except KernelError as found:
        return str(found)
    return "nothing"


# 1000 entries in 8 programs: the last one is cut.
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
def test_a_right_kernel_passes(dtype):
    x = torch.arange(1000).to(dtype)
    out = torch.zeros(1000, dtype=dtype)
    assert fault(planted.copy, (8,), x, out, 1000, beyond=0, BLOCK=128) == "nothing"
    assert torch.equal(out, x)


def test_past_the_end_and_before_the_start():
    x, out = torch.zeros(1000), torch.zeros(1000)
    found = fault(planted.copy, (8,), x, out, 1000, beyond=2, BLOCK=128, races=False)
    assert found == (
        "copy: program 7: load of 4 bytes outside of every tensor, in 2 lanes, 0 bytes past the "
        "nearest one before it"
    )
    x, out = torch.zeros(2, 4)
    found = fault(planted.before_the_start, (1,), x, out)
    assert found == "before_the_start: program 0: load outside of every tensor"


def test_what_a_view_leaves_out_is_outside():
    whole = torch.zeros(1000)
    found = fault(planted.copy, (8,), whole[:999], torch.zeros(999), 999, beyond=1, BLOCK=128)
    assert "load of 4 bytes outside of every tensor, in 1 lanes" in found


def test_overlapping_views_are_one_memory():
    whole = torch.zeros(1001)
    left, right = whole[:-1], whole[1:]
    assert "another one stores" in fault(planted.copy, (8,), left, right, 1000, beyond=0, BLOCK=128)


def test_alignment():
    found = fault(planted.off_by_a_byte, (1,), torch.zeros(8).char(), torch.zeros(1).int())
    assert "misaligned load of 4 bytes" in found


def test_updates_without_atomics():
    x = torch.ones(1000)
    for atomic, expected in ((True, "nothing"), (False, "program 1 loads what another one stores")):
        out = torch.zeros(1)
        assert expected in fault(planted.total, (8,), x, out, 1000, ATOMIC=atomic, BLOCK=128)
        assert out.item() == (1000 if atomic else 128)
    assert "nothing" in fault(
        planted.total, (8,), x, torch.zeros(1), 1000, ATOMIC=False, BLOCK=128, races=False
    )


def test_atomics_beside_plain_accesses():
    found = fault(planted.atomic_and_plain, (3,), torch.zeros(3), torch.zeros(1))
    assert "program 1 updates what others load" in found


def test_a_program_stores_what_another_one_loads():
    assert "others load" in fault(planted.shift_in_place, (8,), torch.zeros(1000), 1000, BLOCK=128)


def test_one_program_against_itself():
    assert "store to the same place" in fault(planted.same_place_twice, (1,), torch.zeros(2))
    found = fault(planted.reads_its_own, (1,), torch.zeros(8), torch.zeros(8), BLOCK=8)
    assert "loads what it has stored" in found


def test_accesses_smaller_than_an_element():
    x, out = torch.arange(2), torch.zeros(4, dtype=torch.int32)
    assert fault(planted.half_of_a_word, (1,), x, out) == "nothing"
    assert out.tolist() == [0, 0, 1, 0]
