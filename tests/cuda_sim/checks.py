"""Runs the modules' entries and compares with float64 or with torch, for tests and mutants."""

import dataclasses
import math

import torch

from lepo_kernels import structures
from lepo_kernels.backends.reference.sample_latent import sample_latent as reference_draw
from lepo_kernels.ops.sample_latent import NOISES, LatentSample
from tests.cuda_sim.rows import finite_rows, special_rows
from tests.cuda_sim.simulator import SCHEDULES, Module

REDUCE = Module("block_reduce")
SELECT = Module("radix_select")
LATENT = Module("sample_latent")
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


@dataclasses.dataclass(frozen=True)
class Draw:
    """The arguments of a latent draw, but for the logits."""

    top_k: int = 1
    top_p: float = 1.0
    min_p: float = 0.0
    noise: str = "none"
    noise_scale: float = 1.0
    clamp: tuple[float, float] = (-math.inf, math.inf)
    num_draws: int = 1
    exclude: tuple[int, ...] = ()
    tau: tuple[float, ...] = (1.0,)
    temperature: tuple[float, ...] = (1.0,)
    step: tuple[int, ...] = (0,)
    seed: int = 0

    def tensors(self):
        """tau, temperature, seed, step, exclude_ids."""
        return (
            torch.tensor(self.tau, dtype=torch.float64),
            torch.tensor(self.temperature, dtype=torch.float64),
            torch.tensor(self.seed),
            torch.tensor(self.step),
            torch.tensor(self.exclude, dtype=torch.int64),
        )


def row_keys_of(rows):
    return torch.arange(rows) * (2**33 + 7) - 5


def latent(logits, draw, schedule=SCHEDULES[0], *, splits=1, offset=0, gap=0, module=LATENT):
    """The launch's outputs. Rows begin at ``offset`` and lie ``gap`` entries apart."""
    rows, vocab = logits.shape
    width = draw.num_draws if draw.noise == "categorical" else draw.top_k
    # NaN around the rows: it would show in every result.
    room = torch.full((rows, vocab + gap), math.nan, dtype=logits.dtype)
    room[:, :vocab] = logits
    flat = torch.cat([torch.full((offset,), math.nan, dtype=logits.dtype), room.flatten()])
    flat = flat[: len(flat) - gap]
    tau, temperature, seed, step, exclude = draw.tensors()
    size = torch.zeros(1, dtype=torch.int64)
    (size,) = module.run("workspace_bytes", [size], (rows, vocab, draw.top_k, splits))
    # What the workspace holds before must not matter.
    workspace = torch.full((int(size),), 0x5C, dtype=torch.uint8)
    arrays = [flat.contiguous(), tau, temperature, seed, row_keys_of(rows), step, exclude]
    arrays += [torch.full((rows, width), -7)]
    arrays += [torch.full((rows, width), -7.0) for _ in range(3)]
    arrays += [torch.full((rows,), -7, dtype=torch.int32)]
    arrays += [torch.full((rows,), -7.0) for _ in range(3)]
    arrays += [torch.full((rows,), -7) for _ in range(2)]
    numbers = (
        *(rows, vocab, vocab + gap, offset, list(ENTRIES).index(logits.dtype)),
        *(draw.top_k, width, splits, len(exclude), NOISES.index(draw.noise)),
        *(int(len(x) > 1) for x in (tau, temperature, step)),
        draw.top_p if draw.top_p < 1 else math.inf,
        math.log(draw.min_p) if draw.min_p > 0 else -math.inf,
        *(draw.noise_scale, *draw.clamp),
    )
    return LatentSample(*module.run("sample_latent", [*arrays, workspace], numbers, schedule)[7:17])


def reference_latent(logits, draw):
    tau, temperature, seed, step, exclude = draw.tensors()
    arguments = structures.Draw(
        tau,
        temperature,
        draw.top_k,
        draw.top_p,
        draw.min_p,
        draw.noise,
        draw.noise_scale,
        *draw.clamp,
        draw.num_draws,
        exclude if len(exclude) else None,
        seed,
        row_keys_of(len(logits)),
        step,
        *(1.0, 1.0, 0, 0),
    )
    return LatentSample(*reference_draw(logits, arguments))


def check_latent_statistics(logits, draw, ours):
    """Log-sum-exp and entropy against float64."""
    temperature = torch.tensor(draw.temperature, dtype=torch.float64).float()
    a = (logits.float() * temperature.reciprocal()[:, None]).double()
    log_p = a.log_softmax(1)
    p, log_sum = log_p.exp(), a.logsumexp(1)
    entropy = -(p * log_p.clamp(min=-1e9)).sum(1)
    # Distances from the maximum: an exponential errs by 2 units and 1.2 for each unit of distance
    # more, all in one direction at worst. A lane adds 16 terms, a warp adds 5
    # times; float64 does the rest.
    far = (a.amax(1, keepdim=True) - a).clamp(max=1e4)
    mean, square = (p * far).sum(1), (p * far.square()).sum(1)
    eps = 2.0**-23
    assert ((ours.lse - log_sum).abs() <= eps * (23 + 1.2 * mean + log_sum.abs())).all()
    bound = 23 * (1 + mean) + 1.2 * (mean + square) + entropy
    assert ((ours.entropy - entropy).abs() <= eps * bound).all()


def check_latent(logits, draw, ours):
    """Choices exactly as the reference's; numbers up to float32 rounding."""
    expected = reference_latent(logits, draw)
    for name in ("ids", "count", "logits", "shadow", "token"):
        assert torch.equal(getattr(ours, name), getattr(expected, name)), name
    check_latent_statistics(logits, draw, ours)
    torch.testing.assert_close(ours.kept_lse, expected.kept_lse, rtol=1e-6, atol=1e-6)
    # Noise is exact in its words; its numbers, up to 20, are off by some units in the last place,
    # and a small tau magnifies them in the exponent of a weight.
    torch.testing.assert_close(ours.scores, expected.scores, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.weights, expected.weights, rtol=1e-4, atol=1e-5)


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
    x = all_rows(503)[2:3]
    options = {"suffix": "_of_64_threads", "module": module}
    check_top_k(x, 70, top_k(x, 70, schedule, **options))
    # Four tiles of 128, which are full but for the last places.
    check_top_k(x, 500, top_k(x, 500, schedule, in_global=True, **options))


def exercise_sample_latent(module, schedule):
    # Two blocks, whose parts are merged. All entries tie, so that candidates are dropped on the way
    # in the scan; the other row's candidates come from both parts.
    x = torch.stack([torch.zeros(4099), finite_rows(4099)["normal"]])
    for row in x.split(1):
        draw = Draw(top_k=40, top_p=0.9, noise="gumbel", tau=(0.5,))
        check_latent(row, draw, latent(row, draw, schedule, splits=2, module=module))


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
