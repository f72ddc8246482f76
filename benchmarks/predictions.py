"""``python -m benchmarks.predictions`` prints what the facts of a GPU run are predicted to be.

The table is in `benchmarks/NOTES.md`; a test compares the two. Nothing here was measured. A call is
a sequence of pieces that do not overlap; each takes the longest of its bytes, its flops and its
instructions, at a share of the device's rates, and what it waits for beside them. Bytes count
inputs once and outputs once. A row is one fact of `python -m benchmarks.gpu_run`, by its name
there: a median within 15 % confirms it, another refutes its model.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from benchmarks.gpu_run.measured import KEPT, REAL, Sizes
from benchmarks.gpu_run.rollout_fact import LAYERS
from benchmarks.gpu_run.work import product
from tools.triton_report import models

# Seconds, inferred: launch and dependent latencies of `latent_step` in a graph, the some 15 small
# kernels of a public call (checks of its arguments, mostly), and an op that eager PyTorch issues.
_STEP_LATENCY, _CALL, _ISSUE = 12e-6, 40e-6, 15e-6
# Counted on a CPU: ops that are no views, of a latent step of the loop and of a model's 36 layers.
_DECODE_OPS = 40 + 1310
# Counted in the same way: ops of the loss beside its blocks of 1024 rows, and of a block, among
# which are a product, three row kernels and 46 ops of [1024] or [1024, 30] numbers. The seconds of
# a small one that follows another are inferred, as is the number of a part of the vocabulary.
_LOSS_OPS, _BLOCK_OPS, _SMALL, _PART_OPS = 71, 46, 1.5e-6, 15
# Of a layer in a compiled step, whose chains of small ops are one kernel each: inferred.
_LAYER_KERNELS = 12
# The casting path of a multiplication of mixed dtypes, to a copy: inferred.
_CASTING = 0.67


@dataclass(frozen=True)
class Rates:
    """Of a device: a copy (bytes read and written), and dense products of bfloat16."""

    name: str
    bytes_per_second: float
    flops_per_second: float
    instructions_per_second: float = models.INSTRUCTIONS_PER_SECOND


# The H200's were measured elsewhere.
DEVICES = (Rates("H200", 4.3e12, 7.75e14), Rates("H100", 3.0e12, 7.0e14))


@dataclass(frozen=True)
class Piece:
    """A part of a call that overlaps with no other.

    Attributes:
        name: what bounds the call where this is the longest part.
        share: of the device's rates that it reaches.
        host: seconds that the host takes to issue it, while the device works.
        waits: seconds beside them.
    """

    name: str
    bytes: float = 0.0
    flops: float = 0.0
    instructions: float = 0.0
    share: float = 1.0
    host: float = 0.0
    waits: float = 0.0

    def seconds(self, rates: Rates) -> float:
        """The longest of these at the rates, and what it waits for."""
        times = (
            self.bytes / rates.bytes_per_second,
            self.flops / rates.flops_per_second,
            self.instructions / rates.instructions_per_second,
        )
        return max(max(times) / self.share, self.host) + self.waits


@dataclass(frozen=True)
class Prediction:
    """Of one fact."""

    fact: str
    pieces: tuple[Piece, ...]

    @property
    def bytes(self) -> float:
        return sum(piece.bytes for piece in self.pieces)

    @property
    def flops(self) -> float:
        return sum(piece.flops for piece in self.pieces)

    def seconds(self, rates: Rates) -> float:
        """Of a call."""
        return sum(piece.seconds(rates) for piece in self.pieces)

    def bound(self, rates: Rates) -> str:
        """The longest piece."""
        return max(self.pieces, key=lambda piece: piece.seconds(rates)).name


def predictions(sizes: Sizes = REAL) -> Iterator[Prediction]:
    """All of them, in the order of the facts."""
    yield Prediction("copy", (Piece("memory", 2.0 * sizes.copied),))
    yield from _products(sizes)
    yield from _rows(sizes)
    for width in sizes.widths:
        yield from _loss(sizes, width)
    yield _odd_head(sizes)
    for rows in sizes.batches:
        moved = 2.0 * rows * (sizes.vocab + KEPT * sizes.widths[0])
        pieces = (Piece("the read", moved), Piece("latency", waits=_STEP_LATENCY))
        yield Prediction(f"latent_step, N {rows}", pieces)
    yield from _mixtures(sizes)
    # The device waits for the host, which is the longer of the two.
    weights = float(sizes.model.bytes(torch.bfloat16))
    step = Piece("launches", weights, host=_DECODE_OPS * _ISSUE)
    yield Prediction(f"decoding step, {sizes.model.name}", (step,))
    yield _compiled_step(sizes)


def _compiled_step(sizes: Sizes) -> Prediction:
    """Of a rollout's latent phase: one replayed graph, on a few of the model's layers."""
    few = replace(sizes.model, layers=min(LAYERS, sizes.model.layers))
    weights = Piece("the weights", float(few.bytes(torch.bfloat16)))
    waits = few.layers * _LAYER_KERNELS * _SMALL + _STEP_LATENCY
    pieces = (weights, Piece("latency", waits=waits))
    return Prediction(f"compiled rollout, {sizes.model.name}", pieces)


def _products(sizes: Sizes) -> Iterator[Prediction]:
    rows, vocab, width = sizes.product_rows, sizes.vocab, sizes.widths[1]
    inputs = 2.0 * width * (rows + vocab)
    logits = 2.0 * rows * vocab
    bare = Piece("the product", inputs + logits, product(rows, width, vocab))
    # Twice the bytes leave the registers of a tile, where nothing is multiplied meanwhile.
    wider = Piece("the float32 epilogue", logits)
    yield Prediction("product, bfloat16", (bare,))
    yield Prediction("product, float32", (bare, wider))
    # Rows that begin at 4 bytes only: stores entry by entry, all of them, at half the rate.
    slow = Piece("the unaligned epilogue", 2 * logits, share=0.5)
    aligned = Piece("the product", inputs, product(rows, width, vocab))
    yield Prediction("product, float32, odd vocabulary", (aligned, slow))
    yield Prediction("product, float32, odd vocabulary, padded rows", (bare, wider))
    # The sum is read and written; half of that hides behind the products of other tiles.
    moved = 8.0 * vocab * width
    pieces = (
        Piece("the product", logits + moved / 2, product(rows, width, vocab)),
        Piece("the sum's epilogue", moved / 2),
    )
    yield Prediction("product added to a float32 head", pieces)


def _rows(sizes: Sizes) -> Iterator[Prediction]:
    logits = 4.0 * sizes.product_rows * sizes.vocab
    calls = Piece("small ops", waits=_CALL)
    yield Prediction("row statistics", (Piece("the read", logits), calls))
    yield Prediction("row gradients", (Piece("read and write", 2 * logits), calls))
    yield Prediction("scaling of the gradients", (_scaling(sizes, sizes.widths[1]),))


def _scaling(sizes: Sizes, width: int) -> Piece:
    moved = 4.0 * (sizes.loss_rows + sizes.vocab) * width
    return Piece("the casting path", moved, share=_CASTING)


def _loss(sizes: Sizes, width: int) -> Iterator[Prediction]:
    """Three products; for the loss, with float32 logits that are read twice, and their gradient."""
    rows, vocab = sizes.loss_rows, sizes.vocab
    logits = 2.0 * rows * vocab
    moved = 3 * 2.0 * width * (rows + vocab) + 3 * logits
    products = Piece("the products", moved, 3 * product(rows, width, vocab))
    yield Prediction(f"three products, D {width}", (products,))
    blocks = rows / 1024
    pieces = (
        products,
        Piece("the float32 epilogue", logits),
        Piece("the row kernels", 5 * logits),
        _scaling(sizes, width),
        Piece("small ops", waits=(_LOSS_OPS + blocks * _BLOCK_OPS) * _SMALL),
    )
    yield Prediction(f"lepo_loss, D {width}", pieces)


def _odd_head(sizes: Sizes) -> Prediction:
    """Four products with float32 logits twice; hidden gradients are summed over parts."""
    rows, vocab, width = sizes.loss_rows, sizes.vocab + 1, sizes.widths[1]
    logits = 2.0 * rows * vocab
    # Of 256 MiB of logits.
    parts = -(-vocab // ((256 << 20) // (4 * rows)))
    moved = 4 * 2.0 * width * (rows + vocab) + 4 * logits
    pieces = (
        Piece("the products", moved, 4 * product(rows, width, vocab)),
        Piece("the float32 epilogues", 2 * logits),
        Piece("the row kernels", 5 * logits),
        Piece("sums of the hidden gradient", 8.0 * rows * width * parts),
        Piece("small ops", waits=parts * _PART_OPS * _SMALL),
    )
    return Prediction(f"linear_log_probs, odd vocabulary, D {width}", pieces)


def _mixtures(sizes: Sizes) -> Iterator[Prediction]:
    """What `tools/triton_report/models.py` has for the kernels of a forward pass."""
    rows = sizes.batches[1]
    call = models.Sizes(rows, sizes.vocab, width=sizes.widths[0])
    mix = _kernel("the table", models.mix_beside_peak_kernel(call))
    rest = Piece("small ops", waits=_CALL)
    op = "gumbel_softmax_embedding"
    noise = _kernel("the noise", models.noisy_scores_kernel(call))
    yield Prediction(f"{op}, N {rows}", (noise, mix, rest))
    scores = _kernel("the head", models.linear_noisy_scores_kernel(call))
    yield Prediction(f"linear_{op}, N {rows}", (scores, mix, rest))


def _kernel(name: str, work: models.Work) -> Piece:
    return Piece(name, float(work.bytes), float(work.flops), float(work.instructions))


def table() -> str:
    """The predictions, in Markdown."""
    names = " | ".join(f"{rates.name}: ms" for rates in DEVICES)
    lines = [f"| fact | GB | TFLOP | {names} | what bounds it |", "|---" * 6 + "|"]
    for each in predictions():
        times = [f"{1e3 * each.seconds(rates):.3g}" for rates in DEVICES]
        cells = [each.fact, f"{each.bytes / 1e9:.3g}", f"{each.flops / 1e12:.3g}", *times]
        lines.append(f"| {' | '.join(cells)} | {each.bound(DEVICES[0])} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(table(), end="")
