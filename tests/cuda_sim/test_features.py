"""The simulator does what CUDA does, in every order of threads and blocks."""

import math
import subprocess

import pytest
import torch

from tests.cuda_sim import build
from tests.cuda_sim.simulator import SCHEDULES, Module, Schedule

in_every_order = pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
FEATURES = Module("features")


def zeros(*shape, dtype=torch.int32):
    return torch.zeros(shape, dtype=dtype)


@in_every_order
# 3 x 5 x 2 threads: a cut warp; 7 x 5 x 3 = 105: three warps and a cut one.
@pytest.mark.parametrize("block", [(3, 5, 2), (7, 5, 3), (64, 1, 1)])
def test_every_thread_knows_its_place(schedule, block):
    grid = (2, 3, 2)
    threads, blocks = math.prod(block), math.prod(grid)
    (out,) = FEATURES.run("indices", [zeros(blocks, threads, 3)], (*grid, *block), schedule)
    for b in range(blocks):
        for t in range(threads):
            at = (t % block[0], t // block[0] % block[1], t // block[0] // block[1])
            of = (b % grid[0], b // grid[0] % grid[1], b // grid[0] // grid[1])
            assert out[b, t].tolist() == [i + 100 * j for i, j in zip(at, of, strict=True)]


@in_every_order
def test_shuffles(schedule):
    x = torch.arange(100, 132, dtype=torch.int32)
    _, out = FEATURES.run("shuffle", [x, zeros(8, 32)], (), schedule)
    lanes = range(32)
    sources = [
        [(i + 5) % 32 for i in lanes],
        [i // 8 * 8 + 3 for i in lanes],
        [i ^ 9 for i in lanes],
        # Of the four lanes a segment has, the partner is in the next segment (own value) or in
        # the one before (its value).
        [i ^ 4 if i & 4 else i for i in lanes],
        [i - 3 if i >= 3 else i for i in lanes],
        [i - 3 if i % 8 >= 3 else i for i in lanes],
        [i + 3 if i < 29 else i for i in lanes],
        [i + 3 if i % 16 < 13 else i for i in lanes],
    ]
    assert torch.equal(out, x[torch.tensor(sources)])


@in_every_order
def test_votes(schedule):
    x = torch.arange(32, dtype=torch.int32) % 5
    _, out = FEATURES.run("votes", [x, zeros(7, 32)], (), schedule)
    values = x.tolist()
    for lane in range(32):
        peers = range(16) if lane < 16 else range(16, 32)
        mine = [values[i] for i in peers]
        expected = [
            sum(1 << i for i in peers if values[i] > 2),
            int(0 in mine),
            1,
            sum(1 << i for i in range(32) if values[i] == values[lane]),
            sum(mine),
            max(mine),
            min(mine),
        ]
        assert [v % 2**32 for v in out[:, lane].tolist()] == expected


@in_every_order
def test_votes_of_a_block(schedule):
    x = torch.tensor([i % 7 for i in range(70)], dtype=torch.int32)
    _, out = FEATURES.run("block_votes", [x, zeros(3, 70)], (70,), schedule)
    assert out.tolist() == [[1] * 70, [1] * 70, [int((x > 3).sum())] * 70]


@in_every_order
@pytest.mark.parametrize("threads", [1, 33, 256])
def test_dynamic_shared_memory(schedule, threads):
    x = torch.arange(5.0 * threads).view(5, threads)
    (out,) = FEATURES.run("reverse", [x], (5, threads), schedule)
    assert torch.equal(out, x.flip(1))


@in_every_order
# None but the first thread of a warp, a cut warp, whole warps.
@pytest.mark.parametrize("leave", [1, 33, 50, 64])
def test_ended_threads_do_not_hold_up_a_barrier(schedule, leave):
    (out,) = FEATURES.run("early_exit", [zeros(128)], (leave,), schedule)
    assert out.tolist() == [*range(leave - 1, -1, -1)] + [0] * (128 - leave)


@in_every_order
def test_atomics(schedule):
    x = torch.arange(3, 123, dtype=torch.int32)
    ints = torch.tensor([0, -(2**31), 2**31 - 1, 0, -1, 0, 0, 0], dtype=torch.int32)
    arrays = [x, ints, zeros(1, dtype=torch.int64), zeros(1, dtype=torch.float32)]
    _, ints, longs, floats = FEATURES.run("atomics", arrays, (), schedule)
    every_bit = 127
    assert ints.tolist()[:5] == [int(x.sum()), 122, 3, every_bit, ~every_bit]
    assert 4 <= ints[5] <= 123
    assert ints[6:].tolist() == [1, 7]
    assert longs.item() == int(x.sum()) << 32
    assert floats.item() == 30.0


@in_every_order
@pytest.mark.parametrize("variant", ["plain", "thread"])
def test_the_last_block_merges(schedule, variant):
    x = torch.arange(4.0 * 32)
    arrays = [x, torch.full((4,), math.nan), zeros(1), zeros(1, dtype=torch.float32)]
    _, _, ticket, total = Module("features", variant).run("last_block", arrays, (4, 32), schedule)
    assert (ticket.item(), total.item()) == (4, x.sum().item())


@pytest.mark.parametrize("variant", ["plain", "thread"])
@pytest.mark.parametrize("order", ["forward", "reverse", "shuffled"])
def test_blocks_that_wait_for_each_other(order, variant):
    arrays = [zeros(4), zeros(1), zeros(4)]
    schedule = Schedule(order, seed=3, resident_blocks=4)
    *_, out = Module("features", variant).run("grid_barrier", arrays, (4,), schedule)
    assert out.tolist() == [1 + 2 + 3 + 4] * 4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bit_types_are_torchs(dtype):
    every = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(dtype)
    numbers = torch.randn(2**16, generator=torch.Generator().manual_seed(0))
    # Every number and, to both sides, what lies around the points half way between two.
    half_way = (every.float() + every.roll(1).float()) / 2
    below = torch.nextafter(half_way, torch.tensor(-math.inf))
    above = torch.nextafter(half_way, torch.tensor(math.inf))
    for y in (every.float(), half_way, below, above, numbers, numbers * 1e-6, numbers * 6e4):
        name = str(dtype).removeprefix("torch.")
        arrays = [every, torch.zeros(2**16), y.contiguous(), torch.zeros_like(every)]
        _, wide, _, narrow = FEATURES.run(f"convert_{name}", arrays, (2**16,))
        torch.testing.assert_close(wide, every.float(), rtol=0, atol=0, equal_nan=True)
        torch.testing.assert_close(narrow, y.to(dtype), rtol=0, atol=0, equal_nan=True)


def test_vectors():
    x, y = torch.randn(64, 8).bfloat16(), torch.randn(64, 4)
    arrays = [x, torch.zeros_like(x), y, torch.zeros_like(y)]
    _, x_out, _, y_out = FEATURES.run("copy_vectors", arrays, (64,))
    assert torch.equal(x, x_out)
    assert torch.equal(y, y_out)


def test_bits():
    words = [0, 1, 2**31, 2**32 - 1, 0x00F0, 0xDEADBEEF]
    x = torch.tensor([w - 2**32 if w >= 2**31 else w for w in words], dtype=torch.int32)
    _, out = FEATURES.run("bits", [x, zeros(5, len(words))], (len(words),))
    expected = [
        [w.bit_count() for w in words],
        [32 - w.bit_length() for w in words],
        [(w & -w).bit_length() for w in words],
        [int(f"{w:032b}"[::-1], 2) for w in words],
        [0] * len(words),
    ]
    assert [[v % 2**32 for v in row] for row in out.tolist()] == expected


def fast_math(x, mode):
    schedule = Schedule(math=mode, seed=1)
    _, out = FEATURES.run("fast_math", [x, torch.zeros(5, len(x))], (len(x),), schedule)
    return out.double()


def test_fast_math_errs_within_what_cuda_documents():
    x = torch.cat([torch.linspace(-80, 80, 999), torch.linspace(0.5, 2, 999)])
    exact = torch.stack([f(x.double()) for f in (torch.exp, torch.log, torch.log2, torch.rsqrt)])
    exact = torch.cat([exact, (1 / x.double())[None]])
    unit = torch.exp2(exact.abs().clamp(min=2.0**-126).log2().floor() - 23)
    units = [2 + (1.173 * x).abs().floor(), 3, 3, 2, 2]
    allowed = torch.stack([n * u for n, u in zip(units, unit, strict=True)])
    near_one = (x >= 0.5) & (x <= 2)
    allowed[1, near_one], allowed[2, near_one] = 2.0**-21.41, 2.0**-22
    # And the rounding to float32.
    slack = unit
    for mode in ("high", "low", "mixed"):
        error = fast_math(x, mode) - exact
        assert not (error.abs() > allowed + slack).any()
        # It does err: by more than rounding, nearly everywhere, in the direction of the mode.
        usual = exact.isfinite() & (x != 0)
        assert (error.abs() > unit)[usual].double().mean() > 0.95
        upwards = (error > 0)[usual].double().mean()
        low, high = {"high": (0.99, 1), "low": (0, 0.01), "mixed": (0.4, 0.6)}[mode]
        assert low <= upwards <= high
    assert torch.equal(fast_math(x, "exact").float().nan_to_num(), exact.float().nan_to_num())


def test_fast_math_keeps_its_special_values():
    x = torch.tensor([0.0, math.inf, -math.inf, math.nan])
    expected = torch.tensor(
        [
            [1, math.inf, 0, math.nan],
            [-math.inf, math.inf, math.nan, math.nan],
            [-math.inf, math.inf, math.nan, math.nan],
            [math.inf, 0, math.nan, math.nan],
            [math.inf, 0, 0, math.nan],
        ],
        dtype=torch.float64,
    )
    for mode in ("exact", "high", "low", "mixed"):
        torch.testing.assert_close(fast_math(x, mode), expected, equal_nan=True, rtol=0, atol=0)


def test_sines_of_multiples_of_pi():
    # Quarters of a turn, and many turns.
    x = torch.cat([torch.arange(-4.0, 4.0, 0.5), torch.linspace(-70, 70, 16)])
    _, out = FEATURES.run("sine", [x, torch.zeros(2, 32)])
    angle = math.pi * torch.remainder(x.double(), 2)
    expected = torch.stack([angle.sin(), angle.cos()])
    torch.testing.assert_close(out.double(), expected, rtol=1e-6, atol=1e-6)


def test_the_portable_fibers_do_the_same():
    x = torch.arange(5.0 * 64).view(5, 64)
    (out,) = Module("features", "ucontext").run("reverse", [x], (5, 64), SCHEDULES[2])
    assert torch.equal(out, x.flip(1))


def test_orders_of_blocks_and_repetition():
    x = torch.arange(3, 123, dtype=torch.int32)

    def winner(order, seed=0):
        arrays = [x, zeros(8), zeros(1, dtype=torch.int64), zeros(1, dtype=torch.float32)]
        return FEATURES.run("atomics", arrays, (), Schedule(order, seed))[1][5].item() - 1

    # 120 threads race for the zero: the first of all, the last, or any.
    assert (winner("forward"), winner("reverse")) == (3, 122)
    shuffled = [winner("shuffled", seed) for seed in range(8)]
    assert shuffled == [winner("shuffled", seed) for seed in range(8)]
    assert len({(number - 3) // 40 for number in shuffled}) > 1
    assert len(set(shuffled)) > 3


def test_what_does_not_compile_is_tried_once(tmp_path, monkeypatch):
    monkeypatch.setenv("LEPO_SIM_CACHE", str(tmp_path))
    monkeypatch.setattr(build, "_failed", {})
    source = tmp_path / "broken.cpp"
    source.write_text("no C++ at all\n")
    build.compiler_version()
    tried = []
    run = subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: tried.append(a) or run(*a, **k))
    for _ in range(2):
        with pytest.raises(build.BuildError, match="error"):
            build.built("broken.o", ["-c"], [source], tmp_path)
    assert len(tried) == 1
