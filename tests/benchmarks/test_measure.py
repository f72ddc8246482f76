"""What is derived of a case's samples, and what becomes of implementations that fail."""

from dataclasses import dataclass

import pytest
import torch

from benchmarks import memory
from benchmarks.case import Case, Implementation
from benchmarks.ceilings import Ceilings
from benchmarks.device import Device
from benchmarks.measure import Effort, check_all, measure
from benchmarks.timing import stopwatch

CEILINGS = Ceilings(read=4e9, copy=2e9, gemm={"float32": 1e12})
MIB = 1 << 20


@dataclass
class Inputs:
    x: torch.Tensor


class Clock:
    """Reads how much work was done; each reading takes a microsecond."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        self.now += 1e-6
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def found(clock):
    def row(name, kind, seconds, error=None, lacks="", foreign=False):
        def run(inputs):
            if error is not None:
                raise error
            clock.now += seconds
            return inputs.x

        return Implementation(name, kind, run, lambda x, y: None, lacks=lacks, foreign=foreign)

    rows = (
        row("ours", "ours", 0.5),
        row("eager", "other", 2.0),
        row("peer", "other", 1.0, lacks="entropy"),
        row("wrong", "ours", 1.0, AssertionError("loss: off by 1")),
        row("broken peer", "other", 1.0, ImportError("no libcudart"), foreign=True),
        row("wrong peer", "other", 1.0, AssertionError("loss: off by 1"), foreign=True),
        row("broken ours", "ours", 1.0, ImportError("no libcudart")),
        row("large eager", "other", 1.0, torch.OutOfMemoryError("tried to allocate 80 GiB")),
    )
    case = Case("op", "shape", lambda _: Inputs(torch.ones(4)), rows, int(1e9), int(1e11))
    device = Device(torch.device("cpu"), clock)
    checked = check_all(case, rows, device)
    found = measure(case, rows, device, CEILINGS, Effort(0.0, 0), stopwatch(clock))
    # What is only checked fails and passes alike.
    assert {name: str(one.error) for name, one in checked.items()} == {
        name: str(one.error) for name, one in found.items()
    }
    assert not any(one.samples for one in checked.values())
    return found


def test_an_implementation_that_fails_is_left_out(found):
    assert str(found["wrong"].error) == "loss: off by 1"
    assert not found["wrong"].samples
    assert [name for name, one in found.items() if one.samples] == ["ours", "eager", "peer"]
    # A peer's broken installation is not ours to mend; but a wrong result is to be seen.
    unavailable = [name for name, one in found.items() if one.unavailable]
    assert unavailable == ["broken peer", "large eager"]


def test_columns_say_how_much_faster_and_how_far_from_the_limit(found):
    mine = found["ours"].derived
    assert mine["best_other"] == "peer"
    assert mine["ratio_to_best_other"] == pytest.approx(0.5, rel=1e-4)
    assert found["eager"].derived["ratio_to_best_other"] == pytest.approx(2.0, rel=1e-4)
    assert mine["gb_per_s"] == pytest.approx(2.0, rel=1e-4)
    assert mine["tflop_per_s"] == pytest.approx(0.2, rel=1e-4)
    percents = {name: mine[f"percent_of_{name}"] for name in ("read", "copy", "gemm", "limit")}
    # 0.25 s at 4 GB/s, 0.1 s at 1 TFLOP/s: bandwidth is the limit.
    assert percents == pytest.approx({"read": 50, "copy": 100, "gemm": 20, "limit": 50}, rel=1e-4)
    assert found["peer"].derived["lacks"] == "entropy"


def test_the_larger_floor_is_the_limit():
    def floor(size, flops=0):
        return CEILINGS.floor(Case("op", "", lambda _: None, (), size, flops))

    assert floor(int(4e9)) == 1.0
    assert floor(int(4e9), int(1e12)) == 1.0
    assert floor(int(4e9), int(3e12)) == 3.0


@pytest.mark.skipif(memory.why_not() is not None, reason=str(memory.why_not()))
def test_extra_memory_is_the_peak_above_inputs_and_results():
    def run():
        # 64 MiB for the moment, 32 MiB for good.
        torch.ones(16 * MIB).sum()
        return torch.ones(8 * MIB)

    run()
    # The two are not there at once: the peak is 64 MiB, of which the result is 32.
    assert 30 * MIB < memory.extra_on_host(run) < 40 * MIB
