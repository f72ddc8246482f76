"""The CUDA kernels of the mixture: exact sums on both ways of loading, shared ids, and overruns.

The numbers are small integers and fractions of a power of two, so that float32 holds every sum
exactly, in any order: a result is right to the bit or wrong.
"""

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from tests.cuda_sim.simulator import SCHEDULES, Module, Schedule

MIX = Module("mix_embeddings")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
PIECE = 128
EVERY_SCHEDULE = pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
# 1, 7: scalar loads, less than a warp; 33: more; 8: one vector of any dtype; 72: less than a warp
# of vectors; 264: a tile of 16-bit vectors and one more, two and one of float32; 1600: a lane has a
# second and, in float32, a fourth and fifth chunk of a dot product.
WIDTHS = (1, 7, 33, 8, 72, 264, 1600)


def integers(low: int, high: int, *shape: int, seed: int = 0) -> Tensor:
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed))


@dataclasses.dataclass
class Problem:
    """A call; tables and gradients lie in memory as ``gap`` and ``shift`` (in elements) say."""

    ids: Tensor  # [N, K]
    weights: Tensor  # [N, K]
    embedding: Tensor  # [V, D]
    grad: Tensor  # [N, D]
    gap: int = 0
    shift: int = 0
    schedule: Schedule = SCHEDULES[0]
    module: Module = MIX
    # What the names of the entries end with.
    suffix: str = ""

    def numbers(self) -> tuple[int, ...]:
        (vocab, width), dtype = self.embedding.shape, self.embedding.dtype
        wide = int(self.ids.dtype == torch.int64)
        before = self.shift * self.embedding.element_size()
        place = (vocab, width, width + self.gap, before)
        return (DTYPES.index(dtype), wide, *self.ids.shape, *place)

    def in_memory(self, x: Tensor) -> Tensor:
        rows = torch.nn.functional.pad(x, (0, self.gap), value=math.nan)
        # No gap behind the last row.
        flat = rows.flatten()[: max(rows.numel() - self.gap, 0)]
        return torch.nn.functional.pad(flat, (self.shift, 0), value=math.nan)

    def run(self, entry: str, *arrays: Tensor) -> Tensor:
        inputs = [self.ids, self.weights, *arrays]
        return self.module.run(entry + self.suffix, inputs, self.numbers(), self.schedule)[-1]

    def mixture(self) -> Tensor:
        table = self.in_memory(self.embedding)
        return self.run("mix_embeddings", table, torch.full_like(self.grad, -7))

    def dweights(self) -> Tensor:
        matrices = map(self.in_memory, (self.embedding, self.grad))
        return self.run("mix_dweights", *matrices, torch.full_like(self.weights, -7))

    def dembedding(self) -> Tensor:
        count = self.ids.numel()
        keys = self.run("mix_keys", torch.full((count,), -7, dtype=torch.int32))
        keys, order = keys.sort(stable=True)
        # What no piece writes, none may read.
        room = torch.full((2 * -(-count // PIECE) * self.grad.shape[1],), math.nan)
        out = torch.full_like(self.embedding, 0 if self.suffix else -7)
        return self.run("mix_dembedding", keys, order, self.in_memory(self.grad), room, out)


def problem(rows: int, kept: int, vocab: int, width: int, dtype: torch.dtype) -> Problem:
    ids = integers(0, max(vocab, 1), rows, kept, seed=1)
    # 0 among them.
    weights = integers(-4, 5, rows, kept, seed=2) / 8
    embedding = integers(-8, 9, vocab, width, seed=3).to(dtype)
    return Problem(ids, weights, embedding, integers(-8, 9, rows, width, seed=4).to(dtype))


def expected_mixture(p: Problem) -> Tensor:
    rows = p.embedding.double()[p.ids.long()].masked_fill((p.weights == 0)[..., None], 0)
    return (p.weights.double()[..., None] * rows).sum(1).to(p.embedding.dtype)


def expected_dweights(p: Problem) -> Tensor:
    return (p.embedding.double()[p.ids.long()] * p.grad.double()[:, None]).sum(-1).float()


def expected_dembedding(p: Problem) -> Tensor:
    table = torch.zeros(p.embedding.shape, dtype=torch.float64)
    contributions = p.weights.double()[..., None] * p.grad.double()[:, None]
    table.index_add_(0, p.ids.flatten().long(), contributions.flatten(0, 1))
    return table.to(p.embedding.dtype)


def check(p: Problem) -> None:
    assert torch.equal(p.mixture(), expected_mixture(p))
    assert torch.equal(p.dweights(), expected_dweights(p))
    assert torch.equal(p.dembedding(), expected_dembedding(p))


# K = 1, a few, more than 16 loads at once, and more than a warp reads at once.
@EVERY_SCHEDULE
@pytest.mark.parametrize("kept", [1, 5, 30, 70])
def test_any_number_of_entries(kept, schedule):
    check(dataclasses.replace(problem(3, kept, 9, 72, torch.bfloat16), schedule=schedule))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", WIDTHS)
def test_any_width(width, dtype):
    check(problem(2, 4, 9, width, dtype))


# A gap of 8 elements keeps vectors aligned, one of 3 does not; nor does a first row at one element.
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("gap", "shift"), [(8, 0), (3, 0), (0, 1), (8, 8)])
def test_any_place_in_memory_gives_the_same_bits(gap, shift, dtype):
    torch.manual_seed(0)
    p = problem(3, 20, 9, 264, dtype)
    # Numbers whose sums round.
    p.embedding, p.grad = torch.randn(9, 264).to(dtype), torch.randn(3, 264).to(dtype)
    p.weights = torch.rand(3, 20)
    moved = dataclasses.replace(p, gap=gap, shift=shift)
    assert torch.equal(moved.mixture(), p.mixture())
    assert torch.equal(moved.dweights(), p.dweights())
    assert torch.equal(moved.dembedding(), p.dembedding())


def test_bits_of_a_row_are_the_same_alone():
    torch.manual_seed(0)
    p = problem(5, 20, 9, 72, torch.float32)
    p.embedding, p.grad, p.weights = torch.randn(9, 72), torch.randn(5, 72), torch.rand(5, 20)
    alone = Problem(p.ids[3:4], p.weights[3:4], p.embedding, p.grad[3:4])
    assert torch.equal(alone.mixture(), p.mixture()[3:4])
    assert torch.equal(alone.dweights(), p.dweights()[3:4])


def test_int32_ids():
    p = problem(3, 5, 9, 8, torch.float32)
    check(dataclasses.replace(p, ids=p.ids.int()))


# 40 columns are two tiles of a warp, 150 entries two pieces.
def test_one_block_takes_all_rows():
    p = problem(50, 3, 5, 40, torch.float32)
    check(dataclasses.replace(p, suffix="_in_one_block"))


@pytest.mark.parametrize("shape", [(0, 4, 9, 8), (3, 0, 9, 8), (3, 4, 9, 0), (0, 0, 0, 8)])
def test_empty_calls(shape):
    check(problem(*shape, torch.float32))


def test_rows_of_weight_zero_are_not_read():
    p = problem(3, 20, 9, 8, torch.float32)
    p.ids = p.ids.clamp_max(7)
    p.ids[:, ::3], p.weights[:, ::3] = 8, 0
    # A row without entries, whose gradient counts nowhere.
    p.weights[0] = 0
    mixture, dembedding = expected_mixture(p), expected_dembedding(p)
    p.embedding[8], p.grad[0] = math.nan, math.nan
    assert torch.equal(p.mixture(), mixture)
    assert torch.equal(p.dembedding(), dembedding)


# The row beyond the table, the ends of int64, and what int32 would wrap to a good id.
@pytest.mark.parametrize("bad", [-1, 9, 2**63 - 1, -(2**63), 2**32 + 1])
def test_ids_out_of_range_spoil_their_row_only(bad):
    p = problem(4, 20, 9, 72, torch.bfloat16)
    p.ids[1, 3], p.weights[1, 3] = bad, 0.5
    # An entry of weight 0 counts for nothing, whatever its id.
    p.ids[2, 7], p.weights[2, 7] = bad, 0
    good = dataclasses.replace(p, ids=p.ids.clamp(0, 8).clone(), weights=p.weights.clone())
    good.ids[1, 3] = 0
    mixed, expected = p.mixture(), good.mixture()
    assert mixed[1].isnan().all()
    keep = torch.tensor([0, 2, 3])
    assert torch.equal(mixed[keep], expected[keep])
    dweights = p.dweights()
    outside = (p.ids < 0) | (p.ids > 8)
    assert torch.equal(dweights.isnan(), outside)
    assert torch.equal(dweights[~outside], good.dweights()[~outside])
    good.weights[1, 3] = 0
    assert torch.equal(p.dembedding(), expected_dembedding(good))


# How many entries each id has, from the lowest: one piece and less; a whole piece; an id that
# begins with a piece, ends with one, does both, or neither; pieces that hold nothing but one id;
# one id with more pieces than a warp looks at together; and behind all, entries that add nothing.
RUNS = {
    "less than a piece": [3, 1, 60],
    "a piece": [PIECE],
    "one more": [PIECE + 1],
    "two pieces": [PIECE, PIECE],
    "shared in the middle": [100, 60, 100],
    "from the middle over two": [100, 2 * PIECE + 60, 5],
    "to the end": [PIECE - 1, 2 * PIECE + 1],
    "one after the other": [200, 200, 200],
    "whole pieces": [3 * PIECE, 1, 2 * PIECE],
    "many pieces": [5, 35 * PIECE, 7],
    "padding": [50, 200, -100],
    "padding alone": [-300],
}


@pytest.mark.parametrize("runs", RUNS.values(), ids=RUNS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_ids_that_pieces_share(runs, dtype):
    kept = torch.cat([torch.full((abs(n),), i) for i, n in enumerate(runs)])
    weights = torch.cat([torch.full((abs(n),), float(n > 0)) for n in runs])
    weights *= integers(1, 5, len(kept), seed=5) / 4
    mixed_up = torch.randperm(len(kept), generator=torch.Generator().manual_seed(6))
    p = problem(len(kept), 1, len(runs) + 1, 8, dtype)
    p.ids, p.weights = kept[mixed_up, None], weights[mixed_up, None]
    p.schedule = SCHEDULES[len(kept) % len(SCHEDULES)]
    assert torch.equal(p.dembedding(), expected_dembedding(p))


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["address", "thread"])
def test_sanitizers_find_nothing(variant):
    # Two pieces that share an id, and rows that end where their memory ends; a few warps.
    for gap, shift in ((0, 0), (3, 1)):
        p = problem(2, 70, 3, 40, torch.bfloat16)
        p = dataclasses.replace(p, gap=gap, shift=shift, module=Module(MIX.name, variant))
        check(p)
        # An id that no address can be made of, where nothing is added.
        p.ids[1, 3], p.weights[1, 3] = 2**63 - 1, 0
        within = dataclasses.replace(p, ids=p.ids.clamp_max(2))
        assert torch.equal(p.mixture(), expected_mixture(within))
        assert torch.equal(p.dembedding(), expected_dembedding(within))
