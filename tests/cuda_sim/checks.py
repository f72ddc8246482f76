"""Runs the modules' entries and compares with float64 or with torch, for tests and mutants."""

import dataclasses

import torch

from tests.cuda_sim.rows import finite_rows, special_rows
from tests.cuda_sim.simulator import SCHEDULES, Module

REDUCE = Module("block_reduce")
SELECT = Module("radix_select")
ENTRIES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


def all_rows(width, dtype=torch.float32):
    return torch.stack([*finite_rows(width).values(), *special_rows(width).values()]).to(dtype)


def statistics(x, threads=256, schedule=SCHEDULES[0], module=REDUCE):
    rows, columns = x.shape
    arrays = [x.contiguous(), torch.full((rows, 4), -7.0)]
    return module.run("row_statistics", arrays, (threads, rows, columns), schedule)[1]


def exact_statistics(x):
    x = x.double()
    log_p = x.log_softmax(1)
    entropy = -(log_p.exp() * log_p.clamp(min=-1e9)).sum(1)
    return x.amax(1), x.sum(1), x.logsumexp(1), entropy


def check_statistics(x, ours):
    largest, total, log_sum, entropy = exact_statistics(x)
    assert torch.equal(ours[:, 0].double(), largest)
    eps = 2.0**-23
    # Each of the up to V additions rounds; a pairwise tree and 256 partial sums keep it at a few.
    sums = x.double().abs().sum(1)
    finite = sums < 3e38
    assert ((ours[:, 1] - total).abs() <= 32 * eps * sums)[finite].all()
    # The exponentials err by 2 units and more far below the maximum, where they weigh less; every
    # partial sum of a thread rounds. V / 256 additions, 8 merges.
    steps = 8 + x.shape[1] / 32
    bound = eps * (steps + log_sum.abs())
    assert ((ours[:, 2] - log_sum).abs() <= bound).all()
    # The entropy loses what cancels between log(sum) and the weighted mean.
    assert ((ours[:, 3] - entropy).abs() <= eps * (3 * steps + 8 * entropy.abs() + 8)).all()


def top_k(x, k, schedule=SCHEDULES[0], *, offset=0, in_global=False, suffix="", module=SELECT):
    rows, width = x.shape
    padded = torch.cat([torch.zeros(offset, dtype=x.dtype), x.flatten()])
    room = torch.zeros(rows * 2 ** (k - 1).bit_length() if in_global else 0, dtype=torch.int64)
    values, ids = torch.full((rows, k), -7.0), torch.full((rows, k), -7, dtype=torch.int32)
    _, values, ids, _ = module.run(
        f"top_k_{ENTRIES[x.dtype]}{suffix}",
        [padded, values, ids, room],
        (rows, width, k, int(in_global), offset),
        schedule,
    )
    return values, ids


def check_top_k(x, k, found):
    values, ids = found
    # A stable sort keeps ties in the order of ids; torch puts NaN above +inf.
    order = x.float().sort(dim=1, descending=True, stable=True)
    assert torch.equal(ids.long(), order.indices[:, :k])
    expected = order.values[:, :k]
    torch.testing.assert_close(values, expected, rtol=0, atol=0, equal_nan=True)


# --- Small cases that reach every barrier, for the race check -------------------------------------


def exercise_block_reduce(module, schedule):
    # Two rows and two warps: the race check costs most per thread.
    x = torch.stack([*finite_rows(200).values()][:2])
    check_statistics(x, statistics(x, 64, schedule, module))
    y = torch.arange(128, dtype=torch.int32).view(2, 64)
    _, sums = module.run("scan", [y, torch.zeros(2, 65, dtype=torch.int32)], (64,), schedule)
    assert torch.equal(sums[:, 1:], y.cumsum(1).int())


def exercise_radix_select(module, schedule):
    # One row that needs every pass; k above the number of threads.
    x = all_rows(300)[2:3]
    check_top_k(x, 70, top_k(x, 70, schedule, suffix="_of_64_threads", module=module))


def exercise_features(module, schedule):
    x = torch.arange(2.0 * 64).view(2, 64)
    (out,) = module.run("reverse", [x], (2, 64), schedule)
    assert torch.equal(out, x.flip(1))
    (left,) = module.run("early_exit", [torch.zeros(128, dtype=torch.int32)], (50,), schedule)
    assert left.tolist() == [*range(49, -1, -1)] + [0] * 78
    ticket = torch.zeros(1, dtype=torch.int32)
    arrays = [torch.arange(4.0 * 64), torch.zeros(4), ticket, torch.zeros(1)]
    assert module.run("last_block", arrays, (4, 64), schedule)[3] == arrays[0].sum()
    counts = torch.zeros(4, dtype=torch.int32)
    together = dataclasses.replace(schedule, resident_blocks=4)
    *_, out = module.run("grid_barrier", [counts, ticket, counts], (4,), together)
    assert out.tolist() == [10] * 4
