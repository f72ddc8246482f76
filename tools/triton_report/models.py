"""What each Triton kernel must move and compute, and how long that takes on an H100.

A model is a function of a call's sizes, one per kernel. Bytes are those of inputs that memory gives
and of outputs that it takes; what is read again from a cache is not counted. ``flops`` are of the
products on tensor cores, ``instructions`` those of all lanes where they may be the bound: of the
noise, mostly. A prediction is the largest of the three times; launches and latency come on top.
"""

from collections.abc import Callable
from dataclasses import dataclass

# What a good copy reaches on an H100, of 3.35 TB/s.
BYTES_PER_SECOND = 3.0e12
# Dense products of bfloat16, as cuBLAS reaches them.
FLOPS_PER_SECOND = 7.0e14
# 132 multiprocessors that issue for 128 lanes a clock, at 1.6 GHz.
INSTRUCTIONS_PER_SECOND = 132 * 128 * 1.6e9


@dataclass(frozen=True)
class Sizes:
    """A call: N rows; V, K and D where the kernel has them."""

    rows: int  # N
    vocab: int = 0  # V
    kept: int = 0  # K
    width: int = 0  # D
    element: int = 2  # bytes of an element of logits, table and gradients


@dataclass(frozen=True)
class Work:
    """Of one launch, or of all launches of the kernel that a call makes."""

    bytes: int
    flops: int = 0
    instructions: int = 0

    def seconds(self) -> dict[str, float]:
        """The three times."""
        return {
            "bytes": self.bytes / BYTES_PER_SECOND,
            "flops": self.flops / FLOPS_PER_SECOND,
            "instructions": self.instructions / INSTRUCTIONS_PER_SECOND,
        }

    def bound(self) -> str:
        """Which of them is the largest."""
        times = self.seconds()
        return max(times, key=lambda name: times[name])


Model = Callable[[Sizes], Work]


def mix_kernel(s: Sizes) -> Work:
    """K rows of the table and their ids and weights (int64, float32) are read, a row written."""
    return Work(s.rows * ((s.kept + 1) * s.width * s.element + 12 * s.kept))


def weights_gradient_kernel(s: Sizes) -> Work:
    """K rows of the table, their ids, and the row's gradient are read, K numbers written."""
    return Work(s.rows * ((s.kept + 1) * s.width * s.element + 12 * s.kept))


def table_gradient_kernel(s: Sizes) -> Work:
    """Of an entry, the row's gradient is read and at most a row of the table written, beside the
    zeros of the whole table."""
    row = s.width * s.element
    return Work(s.rows * s.kept * (2 * row + 12) + s.vocab * row)


def philox_words_kernel(s: Sizes) -> Work:
    """Ids are read and words written, int64 both; 40 instructions a word, a fourth of a block."""
    words = s.rows * s.kept
    return Work(16 * words, instructions=40 * words)


# --- The latent draw ----------------------------------------------------------------------------


def row_scan_kernel(s: Sizes) -> Work:
    """The logits once; units of 512 entries leave 12 bytes, blocks of 64 and groups of 32 blocks
    4 each. 36 instructions an entry."""
    entries = s.rows * s.vocab
    left = s.rows * (-(-s.vocab // 512) * 12 + -(-s.vocab // 64) * 4 + -(-s.vocab // 2048) * 4)
    return Work(entries * s.element + left, instructions=36 * entries)


def narrow_latent_kernel(s: Sizes) -> Work:
    """What the scan left, the best groups' and blocks' entries (4 and 2 bytes), and 20 bytes for
    each entry that is kept. Some 10000 instructions of 128 lanes a row."""
    scanned = -(-s.vocab // 512) * 12 + -(-s.vocab // 2048) * 4
    gathered = s.kept * (32 * 4 + 64 * s.element)
    row = scanned + gathered + 20 * s.kept
    return Work(s.rows * row, instructions=s.rows * 128 * 10000)


def wide_keys_kernel(s: Sizes) -> Work:
    """The logits are read, a key of 8 bytes is written for each. 12 instructions an entry."""
    entries = s.rows * s.vocab
    return Work(entries * (s.element + 8), instructions=12 * entries)


def wide_filter_kernel(s: Sizes) -> Work:
    """The keys that are kept, twice. 30 instructions an entry and pass."""
    return Work(16 * s.rows * s.kept, instructions=60 * s.rows * s.kept)


def wide_perturb_kernel(s: Sizes) -> Work:
    """A key is read; id, logit and score are written (16 bytes). 150 instructions an entry."""
    return Work(24 * s.rows * s.kept, instructions=150 * s.rows * s.kept)


def wide_weigh_kernel(s: Sizes) -> Work:
    """Scores are read twice, weights written. 20 instructions an entry."""
    return Work(12 * s.rows * s.kept, instructions=20 * s.rows * s.kept)


def wide_draws_kernel(s: Sizes) -> Work:
    """One draw: the keys that are kept. 150 instructions an entry."""
    return Work(8 * s.rows * s.kept, instructions=150 * s.rows * s.kept)


# --- The loss head ------------------------------------------------------------------------------


def summarise_kernel(s: Sizes) -> Work:
    """Float32 logits of a part of the vocabulary once; a unit of 512 leaves 12 bytes. 12
    instructions an entry."""
    entries = s.rows * s.vocab
    return Work(4 * entries + s.rows * -(-s.vocab // 512) * 12, instructions=12 * entries)


def merge_states_kernel(s: Sizes) -> Work:
    """The states of a row's units."""
    return Work(s.rows * -(-s.vocab // 512) * 12)


def row_gradient_kernel(s: Sizes) -> Work:
    """Float32 logits are read, their gradient is written. 15 instructions an entry."""
    entries = s.rows * s.vocab
    return Work(entries * (4 + s.element), instructions=15 * entries)


def _product(s: Sizes, *shapes: int) -> Work:
    return Work(s.element * sum(shapes), flops=2 * s.rows * s.vocab * s.width)


def head_states_kernel(s: Sizes) -> Work:
    """States and head once, and a product; its logits are not written. 12 instructions a logit."""
    product = _product(s, s.rows * s.width, s.vocab * s.width)
    states = s.rows * -(-s.vocab // 512) * 12
    return Work(product.bytes + states, product.flops, 12 * s.rows * s.vocab)


def head_logit_gradient_kernel(s: Sizes) -> Work:
    """The same product once more, and the gradient of its logits written. 15 instructions each."""
    product = _product(s, s.rows * s.width, s.vocab * s.width, s.rows * s.vocab)
    return Work(product.bytes, product.flops, 15 * s.rows * s.vocab)


def rows_product_kernel(s: Sizes) -> Work:
    """Gradient of the logits times head; the gradient of the states, in float32 until the last."""
    return _product(s, s.rows * s.vocab, s.vocab * s.width, s.rows * s.width)


def head_product_kernel(s: Sizes) -> Work:
    """Gradient of the logits times states: the gradient of the head."""
    return _product(s, s.rows * s.vocab, s.rows * s.width, s.vocab * s.width)


# --- The Gumbel-softmax mixtures ----------------------------------------------------------------

# Philox, two logarithms and the statistics of an entry.
_NOISE = 150
# Scores that are held at a time: 256 MiB, as the form that takes hidden states has them on CUDA.
_HELD = 1 << 26


def _parts(s: Sizes) -> int:
    """Parts of a sum over the vocabulary: 132 multiprocessors share blocks of 64 rows and 256
    columns."""
    return max(1, 132 // (-(-s.rows // 64) * -(-s.width // 256)))


def _carried(s: Sizes) -> int:
    """Bytes of the parts, which each chunk but the first one reads, and all of them write."""
    chunks = -(-s.vocab // max(128, _HELD // s.rows // 128 * 128))
    return (2 * chunks - 1) * _parts(s) * s.rows * s.width * 4


def noisy_scores_kernel(s: Sizes) -> Work:
    """Logits are read, scores written; the noise is drawn."""
    entries = s.rows * s.vocab
    return Work(entries * (s.element + 4), instructions=_NOISE * entries)


def linear_noisy_scores_kernel(s: Sizes) -> Work:
    """The head once, and a product; scores are written, the noise is drawn."""
    entries = s.rows * s.vocab
    return Work(
        s.element * s.width * (s.vocab + s.rows) + 4 * entries,
        2 * entries * s.width,
        _NOISE * entries,
    )


def fold_statistics_kernel(s: Sizes) -> Work:
    """40 bytes of a tile of 2048 ids."""
    return Work(s.rows * -(-s.vocab // 2048) * 40)


def mix_beside_peak_kernel(s: Sizes) -> Work:
    """The table and the scores, and parts of sums, which are carried from chunk to chunk; a product
    with both halves of the weights. An exponential, some 20 instructions, for each entry and block
    of 256 columns."""
    entries = s.rows * s.vocab
    again = -(-s.width // 256)
    return Work(
        s.element * s.vocab * s.width + 4 * entries + _carried(s),
        4 * entries * s.width,
        20 * entries * again,
    )


def combine_mixtures_kernel(s: Sizes) -> Work:
    """The parts of a sum (here 16: 132 multiprocessors, 8 blocks of columns), and what comes of
    them."""
    return Work(s.rows * s.width * (_parts(s) * 4 + 8 + s.element))


def upstream_kernel(s: Sizes) -> Work:
    """Gradient, mixture and deviation; the gradient is written in two halves."""
    return Work(s.rows * s.width * (12 + 4))


def logits_gradient_kernel(s: Sizes) -> Work:
    """The table and the logits; gradients and weights are written. A product with both halves of
    the upstream gradient; the noise is drawn."""
    entries = s.rows * s.vocab
    return Work(
        s.element * s.vocab * s.width + entries * (2 * s.element + 4),
        4 * entries * s.width,
        _NOISE * entries,
    )


def weights_kernel(s: Sizes) -> Work:
    """Logits are read, weights written; the noise is drawn."""
    entries = s.rows * s.vocab
    return Work(entries * (s.element + 4), instructions=_NOISE * entries)


def dense_table_gradient_kernel(s: Sizes) -> Work:
    """Weights are read, the table's gradient is written; three products of halves."""
    entries = s.rows * s.vocab
    return Work(4 * entries + s.element * s.vocab * s.width, 6 * entries * s.width)


def linear_logits_gradient_kernel(s: Sizes) -> Work:
    """A tied head once; gradients and weights are written. A product for the logits, two for the
    pull; the noise is drawn."""
    entries = s.rows * s.vocab
    return Work(
        s.element * s.vocab * s.width + entries * (s.element + 4),
        6 * entries * s.width,
        _NOISE * entries,
    )


def hidden_gradient_kernel(s: Sizes) -> Work:
    """The head and the gradient of the logits, and parts of sums, as for mixtures; a product."""
    entries = s.rows * s.vocab
    moved = s.element * (s.vocab * s.width + entries) + _carried(s)
    return Work(moved, 2 * entries * s.width)


def combine_hidden_gradients_kernel(s: Sizes) -> Work:
    """The parts of a sum, and the gradient."""
    return Work(s.rows * s.width * (_parts(s) * 4 + s.element))


def head_gradient_kernel(s: Sizes) -> Work:
    """The gradient of the logits is read, that of the head written; a product."""
    entries = s.rows * s.vocab
    return Work(s.element * (entries + s.vocab * s.width), 2 * entries * s.width)


def tied_gradient_kernel(s: Sizes) -> Work:
    """Gradient of the logits and weights are read, the head's gradient is written; four
    products."""
    entries = s.rows * s.vocab
    return Work((s.element + 4) * entries + s.element * s.vocab * s.width, 8 * entries * s.width)


def bias_gradient_kernel(s: Sizes) -> Work:
    """The gradient of the logits."""
    return Work(s.element * s.vocab * (s.rows + 1))


# Qwen2.5's vocabulary, the paper's top_k, and the width of the 3B model.
VOCAB, KEPT, WIDTH = 151936, 30, 2048
_STEP = Sizes(32, VOCAB, KEPT, WIDTH)
_DRAW = Sizes(512, VOCAB, KEPT)
# All entries are kept.
_WIDE = Sizes(32, VOCAB, VOCAB)
# A chunk of 256 MiB.
_CHUNK = Sizes(8192, 8192, KEPT)
_LOSS = Sizes(8192, VOCAB, KEPT, 4096)
_MIXTURE = Sizes(64, VOCAB, width=WIDTH)
# Of each call, the kernels whose times are predicted for it.
_KERNELS: dict[Sizes, tuple[Model, ...]] = {
    _STEP: (mix_kernel, weights_gradient_kernel, table_gradient_kernel),
    Sizes(32, kept=VOCAB): (philox_words_kernel,),
    _DRAW: (row_scan_kernel, narrow_latent_kernel),
    _WIDE: (
        wide_keys_kernel,
        wide_filter_kernel,
        wide_perturb_kernel,
        wide_weigh_kernel,
        wide_draws_kernel,
    ),
    _CHUNK: (summarise_kernel, merge_states_kernel, row_gradient_kernel),
    _LOSS: (
        head_states_kernel,
        head_logit_gradient_kernel,
        rows_product_kernel,
        head_product_kernel,
    ),
    _MIXTURE: (
        noisy_scores_kernel,
        linear_noisy_scores_kernel,
        fold_statistics_kernel,
        mix_beside_peak_kernel,
        combine_mixtures_kernel,
        upstream_kernel,
        logits_gradient_kernel,
        weights_kernel,
        dense_table_gradient_kernel,
        linear_logits_gradient_kernel,
        hidden_gradient_kernel,
        combine_hidden_gradients_kernel,
        head_gradient_kernel,
        tied_gradient_kernel,
        bias_gradient_kernel,
    ),
}
MODELS: dict[str, Model] = {
    model.__name__: model for models in _KERNELS.values() for model in models
}
CALLS: dict[str, Sizes] = {
    model.__name__: sizes for sizes, models in _KERNELS.items() for model in models
}
