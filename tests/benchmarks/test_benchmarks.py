"""The benchmarks do not rot: every implementation runs and is right at a tiny size."""

import itertools
import json

import pytest
import torch

from benchmarks import compare, machine, memory, timing
from benchmarks.case import Case, Implementation
from benchmarks.cases import FAMILIES, TIMED, TINY

CPU = torch.device("cpu")
PAIRS = [
    pytest.param(case, one, id=f"{case.name}: {one.name}")
    for case in TINY
    for one in case.implementations
]


@pytest.mark.parametrize(("case", "implementation"), PAIRS)
def test_an_implementation_is_right(case, implementation):
    if implementation.missing is not None:
        pytest.skip(implementation.missing)
    inputs = case.make(CPU)
    implementation.check(inputs, implementation.run(inputs))


@pytest.mark.parametrize(("case", "implementation"), PAIRS)
def test_a_check_sees_a_wrong_result(case, implementation):
    if implementation.missing is not None:
        pytest.skip(implementation.missing)
    inputs = case.make(CPU)
    result = implementation.run(inputs)
    with pytest.raises(AssertionError):
        implementation.check(inputs, spoil(result))


def spoil(result):
    """The last tensor, with values that none of them may have."""
    if isinstance(result, torch.Tensor):
        return -1 - result.abs()
    fields = list(result)
    # Of a draw, the weights: a check of it does not read the rest.
    at = 1 if hasattr(result, "_fields") and "weights" in result._fields else -1
    fields[at] = -1 - fields[at].abs()
    return type(result)(*fields) if hasattr(result, "_fields") else tuple(fields)


def test_inputs_are_the_same_at_every_call():
    for case in TINY:
        first, second = case.make(CPU), case.make(CPU)
        for name, value in vars(first).items():
            assert torch.equal(value, getattr(second, name)), f"{case.name}: {name}"


def test_names_tell_cases_and_implementations_apart():
    names = [case.name for case in (*TIMED, *TINY)]
    assert len(set(names)) == len(names)
    for case in TIMED:
        inside = [x.name for x in case.implementations]
        assert len(set(inside)) == len(inside)


def test_every_timed_implementation_is_tested_at_a_tiny_size():
    for family in FAMILIES:
        tested = {(x.name, case.dtype) for case in family.tiny for x in case.implementations}
        timed = {(x.name, case.dtype) for case in family.timed for x in case.implementations}
        assert timed <= tested


def test_rounds_are_interleaved_and_the_median_is_taken():
    ticks = itertools.count()
    calls = []
    durations = {"a": [1, 1, 5, 3], "b": [2, 2, 2, 2, 2]}
    now = 0.0

    def clock():
        next(ticks)
        return now

    def function(name):
        def run():
            nonlocal now
            calls.append(name)
            times = durations[name]
            now += times[min(calls.count(name) - 1, len(times) - 1)]

        return run

    a, b = timing.interleaved([function("a"), function("b")], rounds=3, clock=clock)
    # Once each before the rounds, as both are slow; then each once per round.
    assert calls[:2] == ["a", "b"]
    assert [set(calls[i : i + 2]) for i in (2, 4, 6)] == [{"a", "b"}] * 3
    assert (a.median, a.fastest, b.median) == (3, 1, 2)


def test_fast_functions_are_repeated():
    now, calls = 0.0, 0

    def run():
        nonlocal now, calls
        calls += 1
        now += 0.001

    (only,) = timing.interleaved([run], rounds=2, clock=lambda: now)
    # 5 ms per sample.
    assert calls == 2 + 2 * 5
    assert only.median == pytest.approx(0.001)


FIGURES = machine.Machine(
    *({size: 1e9 * i for i, size in enumerate(machine.SIZES, 1)} for _ in range(3)),
    {torch.float32: 1e12, torch.bfloat16: 2e12},
)


def test_floors_take_the_bandwidth_of_the_memory_that_holds_the_bytes():
    def floors(size, flops=0, dtype=torch.float32):
        return FIGURES.floors(Case("op", "", lambda _: None, (), size, flops, dtype))

    assert floors(1 << 20)[0] == (1 << 20) / 1e9
    assert floors(8 << 20)[0] == (8 << 20) / 2e9
    assert floors(1 << 40)[0] == (1 << 40) / 4e9
    assert floors(1, 10**12)[1] == 1.0
    assert floors(1, 10**12, torch.bfloat16)[1] == 0.5


def test_the_table_has_a_line_per_implementation():
    case = TINY[0]
    result = compare.compare(case, FIGURES, rounds=2, with_memory=False)
    json.dumps(result)
    text = compare.table(result)
    for one in case.implementations:
        assert one.name in text
    by_name = {row["implementation"]: row for row in result["rows"]}
    first = case.implementations[0].name
    assert by_name[first]["ratio_to_ours"] == 1.0
    assert by_name["floor: amax"]["ratio_to_floor"] == 1.0


def test_what_is_missing_is_named():
    one = Implementation("peer", "other", lambda x: x, lambda x, y: None, "it is not here")
    case = Case("op", "shape", lambda _: None, (one,), 1)
    result = compare.compare(case, FIGURES, rounds=1, with_memory=False)
    assert "peer: skipped, it is not here" in compare.table(result)


@pytest.mark.skipif(memory.why_not() is not None, reason=str(memory.why_not()))
def test_extra_memory_is_the_peak_above_inputs_and_results():
    mib = 1 << 20

    def run(x):
        # 64 MiB for the moment, 32 MiB for good.
        torch.ones(16 * mib).sum()
        return torch.ones(8 * mib)

    one = Implementation("one", "ours", run, lambda x, y: None)
    case = Case("op", "shape", lambda _: torch.ones(8 * mib), (one,), 1)
    extra = memory.measure(case, one, case)
    # The two are not there at once: the peak is 64 MiB, of which the result is 32.
    assert 30 * mib < extra < 40 * mib


@pytest.mark.slow
@pytest.mark.skipif(memory.why_not() is not None, reason=str(memory.why_not()))
def test_extra_memory_in_a_process_of_its_own():
    case = TINY[0]
    assert 0 <= memory.extra_memory(case, case.implementations[0], 1) < 1 << 26
