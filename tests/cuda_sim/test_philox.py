"""The CUDA kernel's words are the reference's words."""

import pytest
import torch

from lepo_kernels import philox_words
from tests.cuda_sim.simulator import SCHEDULES, Module, Schedule

DRAW = 63


def simulated_words(module, seed, row_keys, steps, ids, schedule, blocks):
    rows, width = len(row_keys), ids.shape[1]
    strides = (int(len(steps) > 1), width if len(ids) > 1 else 0)
    arrays = [torch.tensor([seed]), row_keys, steps, ids, torch.full((rows, width), -1)]
    return module.run("philox_words", arrays, (rows, width, *strides, DRAW, blocks), schedule)[-1]


def expected_words(seed, row_keys, steps, ids):
    steps, ids = steps.expand(len(row_keys)), ids.expand(len(row_keys), -1)
    return philox_words(seed, row_keys, steps, ids, draw=DRAW, backend="reference")


def cases():
    chance = torch.Generator().manual_seed(0)

    def integers(low, high, *shape):
        return torch.randint(low, high, shape, generator=chance)

    keys = integers(-(2**63), 2**63 - 1, 5)
    # 5 x 61 entries are more than one block of 256 and no multiple of it.
    yield keys, integers(0, 2**32, 5), integers(0, 2**26, 5, 61)
    # Shared step and ids; the highest id.
    yield keys, integers(0, 2**32, 1), torch.tensor([[2**26 - 1, 0, 1, 2, 3, 4]])
    yield keys[:1], integers(0, 2**32, 1), torch.tensor([[7]])


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
# One block must loop over the entries; with three, the last has nothing to do.
@pytest.mark.parametrize("blocks", [1, 3])
def test_words_are_the_references(schedule, blocks):
    for row_keys, steps, ids in cases():
        ours = simulated_words(Module("philox"), -5, row_keys, steps, ids, schedule, blocks)
        assert torch.equal(ours, expected_words(-5, row_keys, steps, ids))


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["address", "thread"])
def test_sanitizers_find_nothing(variant):
    for row_keys, steps, ids in cases():
        ours = simulated_words(Module("philox", variant), 9, row_keys, steps, ids, Schedule(), 2)
        assert torch.equal(ours, expected_words(9, row_keys, steps, ids))
