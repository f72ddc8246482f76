"""No call finds its inputs in a cache: there are enough copies, each in memory of its own."""

import pytest
import torch

from benchmarks import cases, rotation

CPU = torch.device("cpu")


# A model's weights are more than a cache holds: its cases are their own copies.
@pytest.mark.parametrize(
    "case", [case for case in cases.tiny() if not case.tokens], ids=lambda case: case.name
)
def test_copies_are_other_memory_with_inputs_of_the_same_kind(case):
    inputs = case.make(CPU)
    found = rotation.copies(case, inputs, case.bytes, 1 << 20)
    assert len(found) == 2
    assert rotation.own_bytes(found[1], inputs) > 0
    for name, x in vars(inputs).items():
        y = vars(found[1])[name]
        if isinstance(x, torch.Tensor):
            assert (x.shape, x.dtype, x.requires_grad) == (y.shape, y.dtype, y.requires_grad)


@pytest.mark.parametrize("case", cases.tiny(), ids=lambda case: case.name)
def test_every_implementation_takes_a_copy(case):
    copy = case.another(case.make(CPU), 1)
    for one in case.on(CPU):
        if one.why_not(CPU) is None and not one.compiles:
            one.check(copy, one.run(copy))


def test_copies_fill_two_caches_but_no_more_than_the_memory():
    (case,) = [case for case in cases.tiny() if case.op.startswith("philox")]
    inputs = case.make(CPU)
    size = rotation.own_bytes(case.another(inputs, 1), inputs)
    caches = 10 * case.bytes
    assert len(rotation.copies(case, inputs, caches, 1 << 20)) == 20
    assert len(rotation.copies(case, inputs, caches, 7 * size)) == 1 + 7
    assert len(rotation.copies(case, inputs, caches, 0)) == 1


def test_tables_that_a_call_reads_a_little_of_are_shared():
    for case in cases.tiny():
        if case.op.startswith(("latent", "mix")):
            inputs = case.make(CPU)
            assert case.another(inputs, 3).embedding is inputs.embedding
