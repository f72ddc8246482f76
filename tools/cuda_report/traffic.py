"""The bytes that each op must move through a GPU's memory: one function per op.

A model counts every input that is read from memory and every output that is written, once per pass
that the op's kernels make. What is read again while it is in a cache is not counted, nor are launch
and latency: at small shapes a call takes longer than its bytes.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

# What a good copy reaches on an H100, of 3.35 TB/s.
BYTES_PER_SECOND = 3.0e12
# What a warp of the row kernels takes at once (kStateEntries in csrc/cuda/linear_log_probs.h), and
# leaves of it for the join.
UNIT_ENTRIES = 512
UNIT_BYTES = 12


@dataclass(frozen=True)
class Sizes:
    """A call: N rows; V, K, D and E where the op has them."""

    rows: int  # N
    vocab: int = 0  # V
    kept: int = 0  # K
    width: int = 0  # D
    element: int = 2  # E, bytes of an element of logits, table and gradients


@dataclass(frozen=True)
class Traffic:
    """Term -> bytes, of each row and of a call as a whole."""

    per_row: dict[str, int]
    per_call: dict[str, int] = field(default_factory=dict)


Model = Callable[[Sizes], Traffic]


def philox_words(s: Sizes) -> Traffic:
    """Ids are read and words written, int64 both; of a row, its key and step."""
    return Traffic({"16 K": 16 * s.kept, "16": 16})


def sample_latent(s: Sizes) -> Traffic:
    """The logits once. Of an entry, id, weight, score and logit are written; of a row, two ids, the
    count and three float32, and its key and step are read. What blocks of one row leave for each
    other is not counted: it depends on how many there are."""
    return Traffic({"V E": s.vocab * s.element, "20 K": 20 * s.kept, "48": 48})


def mix_embeddings(s: Sizes) -> Traffic:
    """K rows of the table and their ids and weights (int64, float32) are read, a row written."""
    return Traffic({"(K + 1) D E": (s.kept + 1) * s.width * s.element, "12 K": 12 * s.kept})


def mix_embeddings_backward(s: Sizes) -> Traffic:
    """For the weights, K rows of the table and the row's gradient are read; for the table, the
    gradient once more, and at most K of its rows are written. Ids are read for both, weights for
    one and their gradient written. The table's gradient is dense: it is filled with zeros first.
    Sorting the ids is not counted: some tens of bytes for each."""
    row = s.width * s.element
    return Traffic(
        {"(2 K + 2) D E": (2 * s.kept + 2) * row, "24 K": 24 * s.kept},
        {"V D E": s.vocab * row},
    )


def latent_step(s: Sizes) -> Traffic:
    """`sample_latent`, then `mix_embeddings` of what it kept."""
    return Traffic(sample_latent(s).per_row | mix_embeddings(s).per_row)


def row_statistics(s: Sizes) -> Traffic:
    """The logits once; units of 512 entries leave 12 bytes, which are read again. Of a selected
    entry the id is read and the logit written; of a row, two statistics are written."""
    units = -(-s.vocab // UNIT_ENTRIES) * 2 * UNIT_BYTES
    return Traffic(
        {"V E": s.vocab * s.element, "24 ceil(V / 512)": units, "12 K": 12 * s.kept, "8": 8}
    )


def row_gradients(s: Sizes) -> Traffic:
    """The logits are read and their gradient is written, in their place or elsewhere. Of a selected
    entry the id and a coefficient are read; of a row, two statistics and their coefficients."""
    return Traffic({"2 V E": 2 * s.vocab * s.element, "12 K": 12 * s.kept, "16": 16})


def loss_rows(s: Sizes) -> Traffic:
    """Float32 logits are read for the statistics, and again for their gradient, which is written:
    `row_statistics` and `row_gradients` of logits of four bytes."""
    statistics = row_statistics(Sizes(s.rows, s.vocab, s.kept, element=4)).per_row
    return Traffic(
        {
            "V (8 + E)": s.vocab * (8 + s.element),
            "24 ceil(V / 512)": statistics["24 ceil(V / 512)"],
            "24 K": 24 * s.kept,
            "24": 24,
        }
    )


def scaled_gradients(s: Sizes) -> Traffic:
    """The gradients of states and head are read, multiplied and written."""
    row = s.width * s.element
    return Traffic({"2 D E": 2 * row}, {"2 V D E": 2 * s.vocab * row})


# Of the ops with matrix products, this is what their row kernels move beside the products.
MODELS: dict[str, Model] = {
    "philox_words": philox_words,
    "sample_latent": sample_latent,
    "mix_embeddings": mix_embeddings,
    "mix_embeddings_backward": mix_embeddings_backward,
    "latent_step": latent_step,
    "gather_log_probs": row_statistics,
    "gather_log_probs_backward": row_gradients,
    "linear_log_probs": row_statistics,
    "linear_log_probs_backward": row_gradients,
    "lepo_loss": loss_rows,
    "lepo_loss_backward": scaled_gradients,
}

# Qwen2.5's vocabulary, the paper's top_k, and the widths of the 3B and of an 8B model.
VOCAB, KEPT = 151936, 30
CASES: tuple[tuple[str, Sizes], ...] = (
    ("philox_words", Sizes(32, kept=VOCAB)),
    ("sample_latent", Sizes(8, VOCAB, KEPT)),
    ("sample_latent", Sizes(512, VOCAB, KEPT)),
    ("mix_embeddings", Sizes(32, VOCAB, KEPT, 2048)),
    ("mix_embeddings", Sizes(32, VOCAB, KEPT, 4096)),
    ("mix_embeddings_backward", Sizes(32, VOCAB, KEPT, 2048)),
    ("mix_embeddings_backward", Sizes(32, VOCAB, KEPT, 4096)),
    ("latent_step", Sizes(32, VOCAB, KEPT, 2048)),
    ("gather_log_probs", Sizes(1024, VOCAB, KEPT)),
    ("gather_log_probs_backward", Sizes(1024, VOCAB, KEPT)),
)


def formula(traffic: Traffic) -> str:
    """Bytes of a row, and of the call, in words."""
    of_rows = " + ".join(traffic.per_row)
    return " + ".join([of_rows, *(f"{term} per call" for term in traffic.per_call)])


def total(op: str, sizes: Sizes) -> int:
    """Bytes of a call."""
    traffic = MODELS[op](sizes)
    return sizes.rows * sum(traffic.per_row.values()) + sum(traffic.per_call.values())


def seconds(count: int) -> float:
    """How long ``count`` bytes take."""
    return count / BYTES_PER_SECOND
