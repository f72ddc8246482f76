"""Every check finds the bug that was planted for it, and says where it is."""

import re
import subprocess

import pytest
import torch

from tests.cuda_sim import build
from tests.cuda_sim.simulator import Module, SanitizerError, Schedule, SimulationError

PLANTED = Module("planted")


def run(name, arrays=1, variant="plain", numbers=(), **schedule):
    x = [torch.zeros(64, dtype=torch.float32) for _ in range(arrays)]
    return Module("planted", variant).run(f"run_{name}", x, numbers, Schedule(**schedule))


# An entry's last array has 32 numbers where it must be just large enough.
def run_exactly(name, arrays, variant="plain"):
    x = [torch.zeros(32, dtype=torch.float32) for _ in range(arrays)]
    return Module("planted", variant).run(f"run_{name}", x, (), Schedule())


# --- Races: found by the race check, whatever the order -------------------------------------------

RACES = {
    "race_between_warps": 1,
    "race_between_blocks": 1,
    "missing_syncwarp": 1,
    "shuffle_is_no_fence": 1,
    "written_after_the_fence": 2,
}


@pytest.mark.parametrize("name", RACES)
def test_race(name):
    with pytest.raises(SanitizerError, match="data race") as caught:
        run(name, RACES[name], "thread")
    # Both sides of the race, each in its thread and at its line.
    assert len(re.findall(r"planted\.cu:\d+", str(caught.value))) >= 2
    assert re.search(r"block \(\d, 0, 0\), thread \(\d+, 0, 0\)", str(caught.value))


def test_a_ticket_needs_its_fences():
    arrays = [torch.zeros(3), torch.zeros(1, dtype=torch.int32)]
    module = Module("planted", "thread")
    for before, after in ((0, 1), (1, 0)):
        with pytest.raises(SanitizerError, match="data race"):
            module.run("run_ticket", arrays, (before, after), Schedule())
    parts, _ = module.run("run_ticket", arrays, (1, 1), Schedule())
    assert parts.tolist() == [2, 1, 1]


def test_orders_show_a_race_in_the_values():
    right = torch.arange(63, -1, -1)

    def right_threads(**schedule):
        return (run("race_between_warps", **schedule)[0] == right).tolist()

    # Whoever runs later finds what the others wrote.
    assert right_threads(order="forward") == [False] * 32 + [True] * 32
    assert right_threads(order="reverse") == [True] * 32 + [False] * 32
    shuffled = [right_threads(order="shuffled", seed=seed) for seed in (1, 2)]
    assert shuffled[0] != shuffled[1]
    assert all(sum(threads) == 32 for threads in shuffled)


# --- Memory --------------------------------------------------------------------------------------


def test_shared_overrun_by_index():
    message = (
        r"kernel planted::shared_overrun_by_index, block \(0, 0, 0\), thread \(31, 0, 0\): "
        r"shared array values: index 31 is outside \[0, 31\)"
    )
    with pytest.raises(SimulationError, match=message):
        run("shared_overrun_by_index")


def test_shared_overrun_by_pointer():
    with pytest.raises(SimulationError, match="wrote beyond the shared array values"):
        run("shared_overrun_by_pointer")
    with pytest.raises(SanitizerError, match=r"(?s)use-after-poison.*planted\.cu:\d+"):
        run("shared_overrun_by_pointer", variant="address")


def test_dynamic_overrun():
    with pytest.raises(SimulationError, match=r"values: index 31 is outside \[0, 31\)"):
        run("dynamic_overrun")


@pytest.mark.parametrize("name", ["global_overrun", "global_read_before"])
def test_global_overrun(name):
    arrays = 1 + (name == "global_read_before")
    with pytest.raises(SanitizerError, match=r"(?s)heap-buffer-overflow.*planted\.cu:\d+"):
        run_exactly(name, arrays, "address")


def test_global_overrun_without_a_sanitizer():
    # 128 bytes end at the page that faults.
    with pytest.raises(SimulationError, match=r"global_overrun, .*thread \(31, .*invalid"):
        run_exactly("global_overrun", 1)
    # 31 numbers leave four bytes before that page.
    with pytest.raises(SimulationError, match="a write beyond the 124 bytes of an array"):
        PLANTED.run("run_write_just_behind", [torch.zeros(31)])


def test_far_away():
    with pytest.raises(SimulationError, match=r"far_away, .*invalid or misaligned address"):
        run("far_away")


def test_a_fault_leaves_the_process_in_order():
    for _ in range(3):
        with pytest.raises(SimulationError, match="invalid"):
            run("far_away")
    run("uninitialised_shared")


def test_uninitialised_shared_memory_shows_in_the_values():
    (nan,) = run("uninitialised_shared")
    (huge,) = run("uninitialised_shared", poison=0x7E)
    assert nan[:31].tolist() == huge[:31].tolist() == [1] * 31
    assert nan[31].isnan()
    assert huge[31] > 1e37


@pytest.mark.parametrize("variant", ["plain", "address"])
def test_misaligned_vector(variant):
    with pytest.raises(SimulationError, match=r"misaligned load of 16 bytes at 0x"):
        run("misaligned_vector", 2, variant)


def test_misaligned_pointer():
    with pytest.raises(SanitizerError, match=r"planted\.cu:\d+:\d+: runtime error: .*misaligned"):
        run("misaligned_pointer", 2, "address")


def test_misaligned_atomic():
    with pytest.raises(SimulationError, match="misaligned atomic of 8 bytes"):
        run("misaligned_atomic")


def test_more_shared_memory_than_cuda_has():
    with pytest.raises(
        SimulationError, match="shared array second of 32768 bytes: more than 49152"
    ):
        run("too_much_shared")


# --- Synchronisation -----------------------------------------------------------------------------


def test_divergent_barrier():
    message = r"barrier divergence: this thread is .* at planted\.cu:\d+, others at planted\.cu:\d+"
    with pytest.raises(SimulationError, match=message):
        run("divergent_barrier")


def test_deadlock():
    with pytest.raises(SimulationError, match=r"(?s)deadlock.*in __syncthreads at planted\.cu:\d+"):
        run("barrier_against_shuffle")


@pytest.mark.parametrize("order", ["forward", "reverse"])
def test_exited_lanes(order):
    with pytest.raises(
        SimulationError, match=r"names lanes fff00000, which have exited|exits while"
    ):
        run("shuffle_with_exited_lanes", order=order)
    with pytest.raises(SimulationError, match="exits while lanes 7fffffff wait for it in __shfl"):
        run("exit_while_awaited")


def test_lane_outside_its_mask():
    with pytest.raises(SimulationError, match="the calling lane is not in its mask 0000ffff"):
        run("lane_outside_its_mask")


def test_different_primitives_do_not_meet():
    with pytest.raises(SimulationError, match="__ballot_sync meets __shfl_sync in one mask"):
        run("different_primitives")


def test_values_from_outside_the_mask_are_garbage():
    (out,) = run("reads_outside_the_mask")
    assert out[:15].tolist() == [1] * 15
    assert out[15] not in (0, 1)


def test_waiting_for_a_block_that_cannot_begin():
    with pytest.raises(SimulationError, match=r"livelock: .*1 blocks have not begun"):
        run("wait_for_later_block")
    run("wait_for_later_block", resident_blocks=2)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ((1, 1025, 0), "1025 threads per block"),
        ((1, 0, 0), "0 threads per block"),
        ((0, 32, 0), "an empty grid"),
        ((1, 32, 2**20), "1048576 bytes of shared memory"),
    ],
)
def test_launches_that_cuda_refuses(numbers, message):
    with pytest.raises(SimulationError, match=message):
        run("launch", numbers=numbers)


# --- Numerics ------------------------------------------------------------------------------------


def test_fast_math_that_errs_shows_a_nan():
    x = torch.full((32,), 1 - 2.0**-24)
    arrays = [x, torch.zeros(32)]
    _, exact = PLANTED.run("run_fast_log_of_log", arrays)
    _, high = PLANTED.run("run_fast_log_of_log", arrays, (), Schedule(math="high"))
    assert exact.isfinite().all()
    assert high.isnan().all()


# --- The compiler --------------------------------------------------------------------------------


def test_plain_shared_memory_does_not_compile(tmp_path):
    for declaration in ("__shared__ float x[8];", "extern __shared__ float x[];"):
        source = tmp_path / "plain.cu"
        source.write_text(
            f'#include "cuda/runtime.cuh"\n__global__ void kernel() {{ {declaration} }}\n'
        )
        with pytest.raises(build.BuildError, match="use LEPO_SHARED or LEPO_DYNAMIC_SHARED"):
            build.module(source, "plain")


def test_a_kernel_file_needs_the_simulator_or_nvcc(tmp_path):
    source = tmp_path / "host.cpp"
    source.write_text('#include "cuda/runtime.cuh"\n')
    words = [*build.compiler(), f"-I{build.ROOT / 'csrc'}", "-fsyntax-only", str(source)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert "compiled by nvcc, or by g++ with LEPO_CUDA_SIM" in done.stderr
