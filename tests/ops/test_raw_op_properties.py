"""The torch ops below the public ones, called with arguments that contradict each other.

A public op checks shapes before it calls its torch op, but anyone can call ``torch.ops`` too, and
a graph can. Whatever the arguments, such a call returns or raises: it may not bring the process
down, and no kernel may take a size from one tensor for the size of another without a check. What a
wrong read returns is not seen here: native kernels run these tests under a sanitizer, too.
"""

from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor

from lepo_kernels import dispatch
from lepo_kernels.validation import FLOAT_DTYPES
from tests.ops.argument_strategies import ALL_DTYPES, LAYOUTS, lay_out
from tests.ops.helpers import backends_of

EVERYDAY = settings(
    derandomize=True,
    deadline=None,
    max_examples=150,
    suppress_health_check=[HealthCheck.too_slow],
)
DEEP = settings(EVERYDAY, max_examples=1000)
# Triton's interpreter looks at every access of every call, and takes some ten milliseconds for one.
INTERPRETED = settings(EVERYDAY, max_examples=50)
INT64 = torch.iinfo(torch.int64)
# A letter is a size that the op's tensors share; a digit is itself, "" a 0-d tensor.
SIZES = {
    "N": (0, 1, 3, 9),
    "V": (1, 2, 19, 130),
    "D": (0, 1, 3, 33),
    "K": (0, 1, 3, 9),
    "M": (0, 2),
}
# FLOAT is the dtype of a call's big tensors, REAL what is computed in: float32, unless that is
# float64.
FLOAT, REAL, FLOAT64, IDS, INT64S, BOOLS = "float", "real", "float64", "ids", "int64", "bool"


def tensor(kind: str, *shapes: str, optional: bool = False) -> tuple[str, str, tuple[str, ...]]:
    return ("optional" if optional else "tensor", kind, shapes)


def one_of(*values: Any) -> tuple[Any, ...]:
    return ("one of", *values)


NOISE_KEY = (tensor(INT64S, ""), tensor(INT64S, "N"), tensor(INT64S, "N", "1"))
PER_ROW = tensor(FLOAT64, "N", "1")
SCALE = tensor(REAL, "N", "1")
ROW = tensor(REAL, "N")
ENTRIES = tensor(REAL, "NK")
BOOL = one_of(True, False)
CHUNK = one_of(1, 2, 100, 0, -1, INT64.max, INT64.min)
HEAD = (
    tensor(FLOAT, "ND"),
    tensor(FLOAT, "VD"),
    tensor(FLOAT, "V", optional=True),
    one_of(None, 2.0, 0.0, -1.0, float("nan")),
)
SELECTION = (tensor(IDS, "NK"), SCALE)
FIRST_ID = one_of(0, 8, 1 << 26, 2, -4, INT64.max, INT64.min)
MIXTURE_GRADIENTS = (tensor(FLOAT, "ND"), ROW, ROW)
MIXTURE_KNOWN = (tensor(REAL, "ND"), tensor(REAL, "ND"), tensor(FLOAT64, "N8"))
# The hidden states as wide as the embedding, so that a table may be missing.
MIXTURE_HEAD = (
    *HEAD,
    tensor(FLOAT, "VD", optional=True),
    PER_ROW,
    PER_ROW,
    *NOISE_KEY,
    FIRST_ID,
    CHUNK,
)
DRAW = (
    PER_ROW,
    PER_ROW,
    # No size between what fits in memory and what surely does not.
    one_of(1, 2, 5, 30, 0, -1, 1 << 45, INT64.min),
    one_of(1.0, 0.5, 0.0, -1.0, float("nan")),
    one_of(0.0, 0.1, 1.0, -1.0, float("nan")),
    one_of("none", "gumbel", "gaussian", "dirichlet", "categorical", "laplace", ""),
    one_of(1.0, 0.0, -1.0, float("nan")),
    one_of(float("-inf"), -1.0, 3.0, float("nan")),
    one_of(float("inf"), 1.0, -3.0, float("nan")),
    one_of(1, 3, 64, 0, -1, INT64.min),
    tensor(IDS, "M", optional=True),
    *NOISE_KEY,
    # Numbers in place of tensors.
    one_of(1.0, 0.0, -1.0, float("nan")),
    one_of(1.0, 0.0, -1.0, float("nan")),
    one_of(0, INT64.max, INT64.min),
    one_of(0, 1 << 32, INT64.min),
)
SIGNATURES: dict[str, tuple[Any, ...]] = {
    "philox_words": (
        *NOISE_KEY,
        tensor(IDS, "NK", "1K"),
        one_of(0, 1, 63, -1, 64, INT64.max, INT64.min),
    ),
    "sample_latent": (tensor(FLOAT, "NV"), *DRAW),
    "latent_step": (tensor(FLOAT, "NV"), tensor(FLOAT, "VD"), *DRAW),
    "mix_embeddings": (tensor(IDS, "NK"), ENTRIES, tensor(FLOAT, "VD")),
    "mix_embeddings_backward": (
        tensor(FLOAT, "ND"),
        tensor(IDS, "NK"),
        ENTRIES,
        tensor(FLOAT, "VD"),
        BOOL,
        BOOL,
    ),
    "linear_log_probs": (*HEAD, *SELECTION, CHUNK, BOOL),
    "linear_log_probs_backward": (
        *(ENTRIES, ROW, ROW),
        *HEAD,
        *SELECTION,
        *(ROW, ROW, CHUNK, BOOL, BOOL, BOOL),
    ),
    "gather_log_probs": (tensor(FLOAT, "NV"), *SELECTION),
    "gather_log_probs_backward": (
        ENTRIES,
        ROW,
        ROW,
        tensor(FLOAT, "NV"),
        *SELECTION,
        ROW,
        ROW,
    ),
    "gumbel_softmax_embedding": (
        tensor(FLOAT, "NV"),
        tensor(FLOAT, "VD"),
        PER_ROW,
        PER_ROW,
        *NOISE_KEY,
        FIRST_ID,
        BOOL,
    ),
    "gumbel_softmax_embedding_backward": (
        *MIXTURE_GRADIENTS,
        tensor(FLOAT, "NV"),
        tensor(FLOAT, "VD"),
        PER_ROW,
        PER_ROW,
        *NOISE_KEY,
        FIRST_ID,
        *MIXTURE_KNOWN,
        BOOL,
        BOOL,
    ),
    "linear_gumbel_softmax_embedding": (*MIXTURE_HEAD, BOOL),
    "linear_gumbel_softmax_embedding_backward": (
        *MIXTURE_GRADIENTS,
        *MIXTURE_HEAD,
        *MIXTURE_KNOWN,
        BOOL,
        BOOL,
        BOOL,
        one_of(False, True),
    ),
    "lepo_loss": (
        *HEAD,
        *SELECTION,
        ENTRIES,
        tensor(BOOLS, "N"),
        ROW,
        ROW,
        tensor(REAL, "N", optional=True),
        tensor(REAL, "NK", optional=True),
        tensor(REAL, "NK", optional=True),
        tensor(INT64S, "N", optional=True),
        one_of(0.0, 0.1, -1.0, float("nan")),
        one_of(0.2, 0.0, 2.0, float("nan")),
        one_of(0.2, 0.0, -1.0, float("nan")),
        one_of(None, 1.5, 0.0, float("nan")),
        one_of("k3", "exact", "score", "", "kl"),
        one_of("soft_log_prob", "latent_grpo_log_density", "multiplex_log_probs", "", "score"),
        one_of(False, True),
        one_of("ppo", "cispo", ""),
        one_of(False, True),
        BOOL,
        BOOL,
        BOOL,
    ),
    "lepo_loss_backward": (
        tensor(REAL, ""),
        tensor(FLOAT, "ND"),
        tensor(FLOAT, "VD"),
        tensor(FLOAT, "V"),
        *HEAD,
    ),
}
OPS_AND_BACKENDS = [
    pytest.param(op, b, marks=[pytest.mark.large] if b == "triton" else [])
    for op in dispatch.KERNELS
    for b in backends_of(op)
]
each_op_and_backend = pytest.mark.parametrize(
    ("op", "backend"), OPS_AND_BACKENDS, indirect=["backend"]
)
at_length = pytest.mark.parametrize(
    ("op", "backend"),
    [pair for pair in OPS_AND_BACKENDS if pair.values[1] != "triton"],
    indirect=["backend"],
)


@st.composite
def calls(draw: Callable[[st.SearchStrategy], Any], op: str) -> list[Any]:
    """Arguments of one call, of which up to three contradict the rest."""
    sizes = {letter: draw(st.sampled_from(some)) for letter, some in SIZES.items()}
    dtype = draw(st.sampled_from(FLOAT_DTYPES))
    signature = SIGNATURES[op]
    places = st.integers(0, len(signature) - 1)
    wrong = draw(st.lists(places, max_size=3, unique=True))
    return [
        draw_argument(draw, spec, sizes, dtype, at in wrong) for at, spec in enumerate(signature)
    ]


def draw_argument(draw: Any, spec: Any, sizes: Any, dtype: torch.dtype, wrong: bool) -> Any:
    if spec[0] == "one of":
        return draw(st.sampled_from(spec[1:])) if wrong else spec[1]
    how, kind, shapes = spec
    if how == "optional" and draw(st.booleans()):
        return None
    letters = draw(st.sampled_from(shapes))
    shape = [int(letter) if letter.isdigit() else sizes[letter] for letter in letters]
    limit = sizes["V"]
    if wrong:
        what = draw(st.sampled_from(("size", "rank", "dtype", "value")))
        if what == "size" and shape:
            at = draw(st.integers(0, len(shape) - 1))
            shape[at] = max(0, shape[at] + draw(st.sampled_from((-1, 1, 7))))
        if what in ("size", "rank") and (what == "rank" or not shape):
            shape = draw(st.sampled_from(([], [2], [2, 3], [1, 2, 3], [0])))
        x = values(draw, kind, shape, dtype, limit)
        if what == "dtype":
            x = x.to(draw(st.sampled_from(ALL_DTYPES)))
        if what == "value":
            x = torch.full(shape, draw(st.sampled_from(extremes(x.dtype, limit))), dtype=x.dtype)
    else:
        x = values(draw, kind, shape, dtype, limit)
    return lay_out(x, draw(st.sampled_from(LAYOUTS)))


def extremes(dtype: torch.dtype, limit: int) -> tuple[float, ...]:
    if dtype == torch.bool:
        return (0, 1)
    if dtype.is_floating_point:
        return (float("nan"), float("inf"), float("-inf"), 0.0, -1.0)
    return (-1, limit, torch.iinfo(dtype).min, torch.iinfo(dtype).max)


def values(draw: Any, kind: str, shape: list[int], dtype: torch.dtype, limit: int) -> Tensor:
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    real = torch.float64 if dtype == torch.float64 else torch.float32
    floating = {FLOAT: dtype, REAL: real, FLOAT64: torch.float64}
    if kind in floating:
        # Positive, as temperatures are.
        return (torch.rand(shape, generator=generator) + 0.1).to(floating[kind])
    if kind == BOOLS:
        return torch.rand(shape, generator=generator) < 0.5
    ids = torch.randint(limit, shape, generator=generator)
    return ids.to(draw(st.sampled_from((torch.int64, torch.int32)))) if kind == IDS else ids


def survives(op: str, backend: str) -> Callable[[], None]:
    @given(calls(op))
    def run(arguments: list[Any]) -> None:
        try:
            result = getattr(torch.ops.lepo_kernels, op)(*arguments, backend)
        except Exception:  # any refusal is fine: the process lives
            return
        for x in result if isinstance(result, tuple) else (result,):
            # Reads all of what came back.
            assert x.clone().shape == x.shape

    return run


def examples(backend: str) -> settings:
    return settings(INTERPRETED if backend == "triton" else EVERYDAY)


def test_every_torch_op_is_called():
    assert set(SIGNATURES) == set(dispatch.KERNELS)


@each_op_and_backend
def test_contradictory_arguments_do_not_crash(op, backend):
    examples(backend)(survives(op, backend))()


@pytest.mark.slow
@at_length
def test_contradictory_arguments_do_not_crash_at_length(op, backend):
    settings(DEEP)(survives(op, backend))()


@each_op_and_backend
def test_consistent_arguments_are_served(op, backend):
    """Else the tests above would exercise nothing but refusals."""

    @given(calls(op))
    def run(arguments: list[Any]) -> None:
        served.append(serves(op, arguments, backend))

    served: list[bool] = []
    examples(backend)(run)()
    assert sum(served) > len(served) / 10


def serves(op: str, arguments: list[Any], backend: str) -> bool:
    try:
        getattr(torch.ops.lepo_kernels, op)(*arguments, backend)
    except Exception:
        return False
    return True
