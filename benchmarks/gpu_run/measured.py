"""The facts that are measured first, in order of worth, and the work that each is."""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

import lepo_kernels as lk
from benchmarks.end_to_end import models
from benchmarks.gpu_run import left_out
from benchmarks.gpu_run.decode_fact import decode_step
from benchmarks.gpu_run.product_checks import padded
from benchmarks.gpu_run.rollout_fact import LAYERS, rollout_steps
from benchmarks.gpu_run.serving import Place
from benchmarks.gpu_run.work import Work, product
from benchmarks.timing import Call
from lepo_kernels.backends.gpu.products import add_product, wide_product

# Seconds that a fact is planned to take beside its samples and calls: making its inputs. A guess,
# as are those of compiling Triton's kernels and of building a model.
PREPARING, COMPILING, BUILDING = 0.4, 5.0, 15.0
# Seconds of samples, and calls before and beyond them.
SAMPLING, MORE_CALLS = 0.5, 8
# Kept entries of a loss and of a step.
KEPT = 30


@dataclass(frozen=True)
class Sizes:
    """Of a vocabulary, widths of hidden states, a product's and a loss's rows, and batches."""

    vocab: int
    widths: tuple[int, int]
    product_rows: int
    loss_rows: int
    batches: tuple[int, ...]
    copied: int  # bytes
    model: models.Model


REAL = Sizes(151936, (2048, 4096), 1024, 8192, (1, 32, 128, 512), 2 << 30, models.QWEN_3B)
TINY = Sizes(1030, (16, 24), 4, 6, (1, 3), 1 << 16, models.TINY)


@dataclass(frozen=True)
class Fact:
    """Something to measure.

    Attributes:
        make: makes the inputs, and returns a call to be timed, or what takes the fact by itself.
        graph: whether the replay of a CUDA graph is timed.
        setup: seconds that it is planned to take beside its calls.
        missing: why it cannot be taken.
    """

    name: str
    make: Callable[[], "Call | OfModel"]
    work: Work
    graph: bool = False
    setup: float = PREPARING
    missing: str = ""

    @property
    def planned(self) -> float:
        """Seconds."""
        return 0.0 if self.missing else self.setup + SAMPLING + MORE_CALLS * self.work.seconds


@dataclass(frozen=True)
class OfModel:
    """What is measured of a whole model: a function of it, the device and the backend."""

    measure: Callable[[models.Model, torch.device, str], dict[str, Any]]
    model: models.Model
    device: torch.device
    backend: str

    def __call__(self) -> dict[str, Any]:
        return self.measure(self.model, self.device, self.backend)


def facts_of(sizes: Sizes, place: Place) -> Iterator[Fact]:
    """All of them."""
    device = place.device
    yield Fact(
        "copy", functools.partial(_copy, sizes.copied, device), Work(bytes=2.0 * sizes.copied)
    )
    yield from _products(sizes, device)
    yield from _row_kernels(sizes, place)
    yield from _scaling(sizes, device)
    for width in sizes.widths:
        yield from _loss(sizes, width, place)
    yield _odd_head(sizes, place)
    yield from _latent_steps(sizes, place)
    yield from _mixtures(sizes, sizes.widths[0], place)
    yield from _decoding(sizes, place)


def _decoding(sizes: Sizes, place: Place) -> Iterator[Fact]:
    backend = place.backend_of("latent_step") or ""
    few = replace(sizes.model, layers=min(LAYERS, sizes.model.layers))
    # On a CPU nothing is compiled.
    compiling = ("transformers", "triton") if place.is_cuda else ("transformers",)
    for what, measure, model, setup, needed in (
        ("decoding step", decode_step, sizes.model, BUILDING, ("transformers",)),
        ("compiled rollout", rollout_steps, few, BUILDING + 2 * COMPILING, compiling),
    ):
        lacking = left_out.lacks(*needed)
        made = OfModel(measure, model, place.device, backend)
        yield Fact(
            f"{what}, {sizes.model.name}",
            lambda made=made: made,  # type: ignore[misc]
            Work(bytes=float(model.bytes(torch.bfloat16))),
            setup=setup,
            missing=f"{lacking} is not installed" if lacking else _missing(backend),
        )


def _normal(*shape: int, device: torch.device, scale: float = 1.0) -> Tensor:
    return torch.randn(shape, device=device, dtype=torch.bfloat16) * scale


def _missing(backend: str | None) -> str:
    return "" if backend else "no backend of a GPU for it"


def _copy(size: int, device: torch.device) -> Call:
    x = torch.zeros(size // 4, device=device)
    y = torch.empty_like(x)
    return lambda _: y.copy_(x)


def _products(sizes: Sizes, device: torch.device) -> Iterator[Fact]:
    rows, vocab, width = sizes.product_rows, sizes.vocab, sizes.widths[1]
    work = Work(flops=product(rows, width, vocab))
    odd = vocab + 1

    def inputs(columns: int) -> tuple[Tensor, Tensor]:
        hidden = _normal(rows, width, device=device)
        return hidden, _normal(columns, width, device=device, scale=width**-0.5).T

    def in_bfloat16() -> Call:
        hidden, head = inputs(vocab)
        return lambda _: torch.mm(hidden, head)

    def in_float32(columns: int) -> Call:
        hidden, head = inputs(columns)
        return lambda _: wide_product(hidden, head)

    def into_padded_rows() -> Call:
        hidden, head = inputs(odd)
        out = padded(rows, odd, torch.float32, device)
        return lambda _: wide_product(hidden, head, out=out)

    def added() -> Call:
        hidden, _ = inputs(1)
        da = _normal(rows, vocab, device=device)
        total = torch.zeros(vocab, width, device=device)
        return lambda _: add_product(total, da.T, hidden)

    yield Fact("product, bfloat16", in_bfloat16, work)
    yield Fact("product, float32", lambda: in_float32(vocab), work)
    yield Fact("product, float32, odd vocabulary", lambda: in_float32(odd), work)
    yield Fact("product, float32, odd vocabulary, padded rows", into_padded_rows, work)
    yield Fact("product added to a float32 head", added, work)


def _row_kernels(sizes: Sizes, place: Place) -> Iterator[Fact]:
    """The statistics of float32 logits, and their gradient."""
    rows, vocab, device = sizes.product_rows, sizes.vocab, place.device
    size = 4.0 * rows * vocab
    backend = place.backend_of("gather_log_probs")

    def inputs() -> tuple[Tensor, Tensor]:
        logits = torch.randn(rows, vocab, device=device)
        return logits, torch.randint(vocab, (rows, KEPT), device=device)

    def statistics() -> Call:
        logits, ids = inputs()
        return lambda _: lk.gather_log_probs(logits, ids, backend=backend)

    def gradient() -> Call:
        logits, ids = inputs()
        found = lk.gather_log_probs(logits.requires_grad_(), ids, backend=backend)
        total = found.lse.sum()
        return lambda _: torch.autograd.grad(total, logits, retain_graph=True)

    yield Fact("row statistics", statistics, Work(bytes=size), missing=_missing(backend))
    yield Fact("row gradients", gradient, Work(bytes=2 * size), missing=_missing(backend))


def _scaling(sizes: Sizes, device: torch.device) -> Iterator[Fact]:
    """What the backward pass of the loss does: both gradients times the loss's own."""
    width = sizes.widths[1]
    entries = (sizes.loss_rows + sizes.vocab) * width

    def scaling() -> Call:
        dhidden = _normal(sizes.loss_rows, width, device=device)
        dhead = _normal(sizes.vocab, width, device=device)
        one = torch.ones(1, device=device)
        # As `lepo_kernels.backends.gpu.loss` multiplies them.
        return lambda _: [torch.mul(x, one, out=torch.empty_like(x)) for x in (dhidden, dhead)]

    yield Fact("scaling of the gradients", scaling, Work(bytes=4.0 * entries))


def _loss(sizes: Sizes, width: int, place: Place) -> Iterator[Fact]:
    """The loss with its gradients, and the three products that it cannot do without."""
    rows, vocab, device = sizes.loss_rows, sizes.vocab, place.device
    work = Work(flops=3 * product(rows, width, vocab))
    backend = place.backend_of("lepo_loss")

    def inputs() -> tuple[Tensor, Tensor]:
        hidden = _normal(rows, width, device=device)
        return hidden, _normal(vocab, width, device=device, scale=2 * width**-0.5)

    def bare() -> Call:
        hidden, head = inputs()

        def call(_: int) -> object:
            da = torch.mm(hidden, head.T)
            return torch.mm(da, head), torch.mm(da.T, hidden)

        return call

    def loss() -> Call:
        hidden, head = (x.requires_grad_() for x in inputs())
        ids = torch.randint(vocab, (rows, KEPT), device=device)
        weights = torch.rand(rows, KEPT, device=device).softmax(1)
        latent = torch.ones(rows, dtype=torch.bool, device=device)
        advantages = torch.randn(rows, device=device)
        shares = torch.full((rows,), 1 / rows, device=device)

        def call(_: int) -> object:
            found = lk.lepo_loss(
                hidden, head, ids, weights, latent, advantages, shares, backend=backend
            )
            return torch.autograd.grad(found.loss, (hidden, head))

        return call

    yield Fact(f"three products, D {width}", bare, work)
    yield Fact(f"lepo_loss, D {width}", loss, work, missing=_missing(backend))


def _odd_head(sizes: Sizes, place: Place) -> Fact:
    """Log-probabilities of an odd vocabulary, with gradients: logits in chunks, formed twice."""
    rows, vocab, width, device = sizes.loss_rows, sizes.vocab + 1, sizes.widths[1], place.device
    backend = place.backend_of("linear_log_probs")

    def scored() -> Call:
        hidden = _normal(rows, width, device=device).requires_grad_()
        head = _normal(vocab, width, device=device, scale=2 * width**-0.5).requires_grad_()
        ids = torch.randint(vocab, (rows, KEPT), device=device)

        def call(_: int) -> object:
            found = lk.linear_log_probs(hidden, head, ids, backend=backend)
            return torch.autograd.grad(found.logits.sum() - found.lse.sum(), (hidden, head))

        return call

    work = Work(flops=4 * product(rows, width, vocab))
    name = f"linear_log_probs, odd vocabulary, D {width}"
    return Fact(name, scored, work, missing=_missing(backend))


def _latent_steps(sizes: Sizes, place: Place) -> Iterator[Fact]:
    vocab, width, device = sizes.vocab, sizes.widths[0], place.device
    backend = place.backend_of("latent_step")

    def step(rows: int) -> Call:
        logits = _normal(rows, vocab, device=device, scale=2.0)
        table = _normal(vocab, width, device=device)
        seed, number = (torch.tensor(x, device=device) for x in (7, 3))
        return lambda _: lk.latent_step(
            logits, table, tau=0.7, top_k=KEPT, top_p=0.95, seed=seed, step=number, backend=backend
        )

    for rows in sizes.batches:
        work = Work(bytes=2.0 * rows * (vocab + KEPT * width))
        make = functools.partial(step, rows)
        name = f"latent_step, N {rows}"
        yield Fact(name, make, work, graph=True, missing=_missing(backend))


def _mixtures(sizes: Sizes, width: int, place: Place) -> Iterator[Fact]:
    """The mixtures over the whole vocabulary, forward; two products each with the head or table."""
    rows, vocab, device = sizes.batches[1], sizes.vocab, place.device
    table_bytes = 2.0 * vocab * width

    def dense() -> Call:
        logits = _normal(rows, vocab, device=device, scale=2.0)
        table = _normal(vocab, width, device=device)
        return lambda _: lk.gumbel_softmax_embedding(logits, table, 0.7, seed=7, backend=backend)

    def linear() -> Call:
        hidden = _normal(rows, width, device=device)
        head = _normal(vocab, width, device=device, scale=2 * width**-0.5)
        return lambda _: lk.linear_gumbel_softmax_embedding(
            hidden, head, None, 0.7, seed=7, backend=backend
        )

    op = "gumbel_softmax_embedding"
    backend = place.backend_of(op)
    for name, make, size in (
        (f"{op}, N {rows}", dense, table_bytes),
        (f"linear_{op}, N {rows}", linear, 2 * table_bytes),
    ):
        yield Fact(name, make, Work(bytes=size), setup=COMPILING, missing=_missing(backend))
