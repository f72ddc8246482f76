"""The benchmarks do not rot: every implementation runs and is right at a tiny size."""

import pytest
import torch

from benchmarks import cases, shapes
from benchmarks.plan import Plan

CPU = torch.device("cpu")
PAIRS = [
    pytest.param(case, one, id=f"{case.name}: {one.name}", marks=[pytest.mark.slow] * one.compiles)
    for family in cases.FAMILIES
    for case in family.tiny
    for one in case.on(CPU)
    # A compilation takes many seconds: one per family.
    if not one.compiles or case is family.tiny[0]
]
PLANS = [
    Plan(torch.device(kind), 8 << 30, models, None, dtypes)
    for kind in ("cpu", "cuda")
    for models in (None, tuple(shapes.MODELS.values()))
    for dtypes in (None, (torch.float32,), (torch.bfloat16,))
]


@pytest.mark.parametrize(("case", "implementation"), PAIRS)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_an_implementation_is_right_and_a_wrong_result_is_seen(case, implementation):
    reason = implementation.why_not(CPU)
    if reason is not None:
        pytest.skip(reason)
    inputs = case.make(CPU)
    result = implementation.run(inputs)
    implementation.check(inputs, result)
    with pytest.raises(AssertionError):
        implementation.check(inputs, spoil(result))


def spoil(result):
    """The last tensor, with values that none of them may have."""
    if isinstance(result, torch.Tensor):
        return -1 - result.abs()
    fields = list(result)
    # Of a draw, the weights: a check of it does not read the rest. Of the largest entries, those.
    at = 1 if hasattr(result, "_fields") and "weights" in result._fields else -1
    if isinstance(result, torch.return_types.topk):
        return -1 - result[0].abs(), result[1]
    fields[at] = -1 - fields[at].abs()
    return type(result)(*fields) if hasattr(result, "_fields") else tuple(fields)


def test_inputs_are_the_same_at_every_call():
    for case in (case for family in cases.KERNELS for case in family.tiny):
        first, second = case.make(CPU), case.make(CPU)
        for name, value in vars(first).items():
            same = torch.equal if isinstance(value, torch.Tensor) else lambda x, y: x == y
            assert same(value, getattr(second, name)), f"{case.name}: {name}"


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_names_tell_cases_and_implementations_apart(plan):
    timed = cases.timed(plan)
    names = [case.name for case in (*timed, *cases.tiny())]
    assert len(set(names)) == len(names)
    for case in timed:
        inside = [x.name for x in case.on(plan.device)]
        assert len(set(inside)) == len(inside)


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_every_timed_implementation_is_tested_at_a_tiny_size(plan):
    for family in cases.FAMILIES:
        tested = {(x.name, case.dtype) for case in family.tiny for x in case.implementations}
        timed = {(x.name, case.dtype) for case in family.timed(plan) for x in case.implementations}
        assert timed <= tested


def test_the_backends_of_a_device_are_compared_on_it():
    case = cases.tiny()[0]
    backends = {one.backend for one in case.on(torch.device("cuda"))}
    assert backends == {None, "cuda", "triton", "reference"}
    assert {one.backend for one in case.on(CPU)} == {None, "cpu", "reference"}
