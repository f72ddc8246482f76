"""Every public op, called with arguments of all kinds: it keeps its promises or refuses by name.

A call without a bad argument returns what the docstring says. A call with one raises TypeError,
ValueError or IndexError (BackendUnavailableError where a backend cannot serve), and the message
opens with the argument. Nothing else may be raised. To see the calls, also the last one before a
crash: ``pytest -s -o addopts= --hypothesis-verbosity=verbose -p no:xdist``.
"""

import inspect
import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor
from torch.utils._pytree import tree_leaves

import lepo_kernels
from lepo_kernels import BackendUnavailableError
from lepo_kernels.formulas.latent_scores import LATENT_SCORES, LatentScore
from lepo_kernels.formulas.loss_rows import LATENT_KL, SURROGATES
from lepo_kernels.methods import methods
from lepo_kernels.validation import FLOAT_DTYPES, INDEX_DTYPES
from tests.ops.argument_strategies import HUGE, NOT_CHOICES, NOT_TENSORS, Draft, Skip
from tests.ops.helpers import backends_of

CPU = torch.device("cpu")
EVERYDAY = settings(
    derandomize=True,
    deadline=None,
    max_examples=20,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
DEEP = settings(EVERYDAY, max_examples=150)
# Sizes: none, one, and a few that no vector register divides.
SIZES = st.sampled_from((0, 1, 2, 3, 5))
VOCABS = st.sampled_from((1, 2, 5, 17, 70))


# The calls: each function draws the arguments of one op.


def put_logits(draft: Draft, rows: int, vocab: int, dtype: torch.dtype) -> Tensor:
    def good() -> Tensor:
        # The first entry stays finite, so that no row is all -inf.
        logits = draft.tensor((rows, vocab), dtype, scale=draft.pick(1, 1e-3, 30))
        if vocab > 1 and draft.pick(True, False):
            logits = logits.clone()
            logits[:, draft.draw(st.integers(1, vocab - 1)) :] = -torch.inf
        return logits

    def bad() -> Any:
        logits = draft.tensor((rows, vocab), dtype)
        kind = draft.pick("value", "row", "tensor", "vocab")
        if kind == "vocab":
            return torch.zeros(rows, 0, dtype=dtype)
        if kind == "tensor":
            return draft.bad_tensor(logits, FLOAT_DTYPES, anchor=True)
        if kind == "row" and rows > 0:
            logits = logits.clone()
            logits[draft.draw(st.integers(0, rows - 1))] = -torch.inf
            return logits
        return draft.with_value(logits, draft.pick(torch.nan, torch.inf))

    def edge() -> Tensor:
        return draft.tensor((rows, vocab), dtype, scale=1e30 if dtype != torch.float16 else 1e4)

    return draft.put("logits", good, bad, edge)


# Those of the methods are there once these are.
SCORES = sorted({*LATENT_SCORES, *(method.latent_score for method in methods())})


def put_float(
    draft: Draft,
    name: str,
    shape: tuple[int, ...],
    dtypes: tuple[torch.dtype, ...] = FLOAT_DTYPES,
    *,
    optional: bool = False,
    bound: tuple[int, ...] | None = None,
    anchor: bool = False,
    any_rank: bool = False,
    good: Callable[[], Any] | None = None,
) -> Any:
    """A floating-point tensor; NaN, infinite and huge entries are its edge."""

    def normal() -> Any:
        return draft.tensor(shape, draft.pick(*dtypes))

    def bad() -> Any:
        like = draft.tensor(shape, dtypes[0])
        sizes = tuple(range(len(shape))) if bound is None else bound
        return draft.bad_tensor(
            like, dtypes, bound=sizes, optional=optional, anchor=anchor, any_rank=any_rank
        )

    def edge() -> Any:
        value = draft.pick(torch.nan, torch.inf, -torch.inf, 6e4, 1e-40)
        return draft.with_value(draft.tensor(shape, dtypes[0]), value)

    return draft.put(name, good or normal, bad, edge)


def put_ids(
    draft: Draft,
    shape: tuple[int, ...],
    vocab: int,
    bound: tuple[int, ...],
    *,
    full_shape: tuple[int, ...] | None = None,
) -> None:
    """Ids; where one rank is short for another, only those of ``full_shape`` are spoiled."""

    def bad() -> Any:
        ids = draft.ids(full_shape or shape, vocab)
        if draft.pick(True, False):
            return draft.bad_ids(ids, vocab)
        return draft.bad_tensor(ids, INDEX_DTYPES, bound=bound)

    draft.put("ids", lambda: draft.ids(shape, vocab), bad)


def sample_latent(draft: Draft, backend: str) -> None:
    rows, vocab = draft.draw(SIZES), draft.draw(VOCABS)
    put_logits(draft, rows, vocab, draft.pick(*FLOAT_DTYPES))
    draft.put_per_row("tau", rows, zero_included=True)
    draft.put_per_row("temperature", rows)
    draft.put(
        "top_k",
        lambda: draft.pick(None, 1, 2, vocab, vocab + 1, 1 << 40, 10**30),
        lambda: draft.bad_integer(0, -1, -(1 << 63), optional=True),
    )
    share = (0.5, 0.95, 1, 1.0, 5e-324, 1e-30)
    draft.put("top_p", lambda: draft.pick(*share), lambda: draft.bad_number(0, -0.1, 1.01))
    draft.put("min_p", lambda: draft.pick(0, *share), lambda: draft.bad_number(-0.1, 1.01))
    noise = draft.put(
        "noise",
        lambda: draft.pick("none", "gumbel", "gaussian", "dirichlet", "categorical"),
        lambda: draft.pick(*NOT_CHOICES),
    )
    noise = noise if isinstance(noise, str) else "gumbel"
    draft.put(
        "noise_scale",
        lambda: draft.number(1e-3, 1e3),
        lambda: draft.bad_number(0, -1, 1e39, 1e-39, math.inf),
        lambda: draft.pick(2e-38, 3e38),
    )
    pairs = ((-1.5, 3.0), [0, 0], (-math.inf, 1), (0, math.inf), (-HUGE, 0))
    draft.put(
        "noise_clamp",
        lambda: draft.pick(None, *pairs) if noise == "gumbel" else None,
        lambda: draft.pick(
            *((1, 0), (math.nan, 1), (0, math.nan), (0,), (0, 1, 2), 3, "ab", ("0", 1)),
            *((math.inf, math.inf), (0, HUGE), torch.zeros(2)),
            *(() if noise == "gumbel" else pairs),
        ),
        lambda: draft.pick((3e38, 3e38), (-math.inf, -1e38)) if noise == "gumbel" else Skip,
    )
    draft.put(
        "num_draws",
        lambda: draft.pick(1, 2, 64) if noise == "categorical" else 1,
        lambda: draft.bad_integer(0, 65, 1 << 31, *(() if noise == "categorical" else (2,))),
    )
    put_exclude_ids(draft, rows, vocab)
    draft.put_seed()
    draft.put_row_keys(rows)
    draft.put_step(rows, used=noise != "none")
    draft.put_backend(backend)


def put_exclude_ids(draft: Draft, rows: int, vocab: int) -> None:
    def good() -> Any:
        # The first entry stays, which every row of logits holds.
        ids = torch.arange(1, vocab)
        return draft.pick(None, ids[:0], draft.laid_out(ids.flip(0)), ids[-1:].repeat(3))

    def bad() -> Any:
        kind = draft.pick("value", "all", "tensor")
        if kind == "all":
            return torch.arange(vocab) if rows > 0 else Skip
        if kind == "value":
            return draft.bad_ids(torch.zeros(2, dtype=torch.int64), vocab)
        return draft.bad_tensor(torch.arange(1), (torch.int64,), optional=True)

    draft.put("exclude_ids", good, bad)


def latent_step(draft: Draft, backend: str) -> None:
    sample_latent(draft, backend)
    logits = draft.arguments["logits"]
    vocab = logits.shape[-1] if isinstance(logits, Tensor) and logits.dim() == 2 else 5
    # The table may have rows that no column of the logits names, but not the other way round.
    shape = (vocab + draft.pick(0, 0, 3), draft.draw(SIZES))

    def bad() -> Any:
        like = draft.tensor(shape, torch.float32)
        if vocab > 1 and draft.pick(True, False):
            return like[: vocab - 1]
        return draft.bad_tensor(like, FLOAT_DTYPES)

    def edge() -> Any:
        return draft.with_value(draft.tensor(shape, torch.float32), draft.pick(torch.nan, 1e38))

    draft.put("embedding", lambda: draft.tensor(shape, draft.pick(*FLOAT_DTYPES)), bad, edge)


def mix_embeddings(draft: Draft, backend: str) -> None:
    lead = draft.draw(st.sampled_from(((), (0,), (3,), (2, 2), (1, 0, 2))))
    kept, vocab, width = draft.draw(SIZES), draft.draw(VOCABS), draft.draw(SIZES)
    put_ids(draft, (*lead, kept), vocab, bound=(-1,))
    put_float(draft, "weights", (*lead, kept), any_rank=True)
    put_float(draft, "embedding", (vocab, width), bound=(), anchor=True)
    draft.put_backend(backend)


def linear_log_probs(draft: Draft, backend: str) -> None:
    rows, vocab = draft.draw(SIZES), draft.draw(VOCABS)
    put_head(draft, rows, vocab)
    put_rows(draft, rows, draft.draw(SIZES), vocab)
    put_chunk_size(draft)
    draft.put_backend(backend)


def put_chunk_size(draft: Draft) -> None:
    draft.put(
        "chunk_size",
        lambda: draft.pick(None, 1, 2, 100, (1 << 31) - 1),
        lambda: draft.bad_integer(0, -1, 1 << 31, optional=True),
    )


def put_rows(draft: Draft, rows: int, kept: int, vocab: int) -> None:
    put_ids(draft, (rows, kept), vocab, bound=(0,))
    draft.put_per_row("inv_temperature", rows)


def put_head(
    draft: Draft, rows: int, vocab: int, bound: tuple[int, ...] | None = None
) -> torch.dtype:
    """Hidden states, of which other arguments fix the dimensions ``bound`` (all), and a head."""
    width = draft.draw(SIZES)
    dtype = draft.pick(*FLOAT_DTYPES)
    # Another floating-point dtype than that of the hidden states is wrong, too.
    put_float(draft, "hidden", (rows, width), (dtype,), bound=bound, anchor=True)
    put_float(draft, "lm_head", (vocab, width), (dtype,), bound=(1,))
    put_float(
        draft,
        "bias",
        (vocab,),
        (dtype,),
        optional=True,
        good=lambda: draft.pick(None, draft.tensor((vocab,), dtype)),
    )
    draft.put(
        "softcap",
        lambda: draft.pick(None, draft.number(0.1, 100)),
        lambda: draft.bad_number(0, -1, 1e39, 1e-39, math.inf, optional=True),
        lambda: draft.pick(2e-38, 3e38),
    )
    return dtype


def gather_log_probs(draft: Draft, backend: str) -> None:
    rows, vocab, kept = draft.draw(SIZES), draft.draw(VOCABS), draft.draw(SIZES)
    put_logits(draft, rows, vocab, draft.pick(*FLOAT_DTYPES))
    put_ids(draft, (rows, kept), vocab, bound=(0,))
    draft.put_per_row("inv_temperature", rows)
    draft.put_backend(backend)


def gumbel_softmax_embedding(draft: Draft, backend: str) -> None:
    rows, vocab, width = draft.draw(SIZES), draft.draw(VOCABS), draft.draw(SIZES)
    put_logits(draft, rows, vocab, draft.pick(*FLOAT_DTYPES))
    put_float(draft, "embedding", (vocab, width), bound=(0,))
    draft.put_per_row("tau", rows, zero_included=True)
    draft.put_per_row("temperature", rows)
    put_noise_of_columns(draft, rows, vocab)
    draft.put_backend(backend)


def put_noise_of_columns(draft: Draft, rows: int, vocab: int) -> None:
    draft.put_seed()
    draft.put_row_keys(rows)
    draft.put_step(rows)
    last = ((1 << 26) - vocab) // 4 * 4
    draft.put(
        "first_id",
        lambda: draft.pick(0, 4, 1024, last),
        lambda: draft.bad_integer(-4, 2, last + 2, last + 4, 1 << 63),
    )


def linear_gumbel_softmax_embedding(draft: Draft, backend: str) -> None:
    rows, vocab, width = draft.draw(SIZES), draft.draw(VOCABS), draft.draw(SIZES)
    # Any number of rows is right where nothing else comes by the row.
    put_head(draft, rows, vocab, bound=(1,))
    put_float(
        draft,
        "embedding",
        (vocab, width),
        optional=True,
        bound=(0,),
        good=lambda: draft.pick(None, draft.tensor((vocab, width), draft.pick(*FLOAT_DTYPES))),
    )
    draft.put_per_row("tau", rows, zero_included=True)
    draft.put_per_row("temperature", rows)
    put_noise_of_columns(draft, rows, vocab)
    put_chunk_size(draft)
    draft.put_backend(backend)


def lepo_loss(draft: Draft, backend: str) -> None:
    rows, kept, vocab = draft.draw(SIZES), draft.draw(SIZES), draft.draw(VOCABS)
    put_head(draft, rows, vocab)
    put_rows(draft, rows, kept, vocab)
    put_float(draft, "weights", (rows, kept))
    latent = torch.arange(rows) % 2 == 0
    draft.put(
        "latent",
        lambda: draft.laid_out(latent),
        lambda: draft.bad_tensor(latent, (torch.bool,), bound=(0,)),
    )
    put_float(draft, "advantages", (rows,))
    put_float(draft, "row_weights", (rows,))
    score = put_latent_score(draft, rows, kept)
    of_each = (rows, kept) if score is not None and score.slots else (rows,)
    put_float(
        draft,
        "old_log_prob",
        of_each,
        optional=True,
        good=lambda: draft.pick(None, draft.tensor(of_each, torch.float32)),
    )
    beta = draft.put("beta", lambda: draft.pick(0, 0.04), lambda: draft.bad_number(-1, math.inf))
    needs_reference = isinstance(beta, float) and beta > 0
    # Whether it may be None depends on beta, so it is never spoiled by None.
    put_float(
        draft,
        "ref_log_probs",
        (rows, kept),
        optional=True,
        good=lambda: draft.pick(
            draft.tensor((rows, kept), torch.float32), *(() if needs_reference else (None,))
        ),
    )
    draft.put(
        "epsilon", lambda: draft.number(0.01, 1), lambda: draft.bad_number(0, -0.1, 1.01, math.inf)
    )
    draft.put(
        "epsilon_high",
        lambda: draft.pick(None, draft.number(0.01, 1)),
        lambda: draft.bad_number(0, -0.1, math.inf, optional=True),
    )
    draft.put(
        "delta",
        lambda: draft.pick(None, draft.number(2.5, 9)),
        lambda: draft.bad_number(0, 1, -1, math.inf, optional=True),
    )
    draft.put("latent_kl", lambda: draft.pick(*LATENT_KL), lambda: draft.pick(*NOT_CHOICES))
    draft.put_backend(backend)


def put_latent_score(draft: Draft, rows: int, kept: int) -> LatentScore | None:
    """The score's name, and what it reads; None where it has no known name."""
    name = draft.put("latent_score", lambda: draft.pick(*SCORES), lambda: draft.pick(*NOT_CHOICES))
    draft.put(
        "latent_ratio", lambda: draft.pick(False, True), lambda: draft.pick(None, 1, "true", 0.5)
    )
    score = LATENT_SCORES.get(name) if isinstance(name, str) else None
    reads_record = score is not None and score.reads_record
    # Whether it may be None depends on the score, so it is never spoiled by None.
    is_slotted = score is not None and score.slots
    in_pairs = torch.arange(rows) // 2
    draft.put(
        "sequences",
        lambda: None if is_slotted else draft.pick(None, in_pairs),
        lambda: draft.pick(
            draft.bad_tensor(in_pairs, (torch.int64,), bound=(0,), optional=True),
            *((in_pairs + rows, in_pairs - 1) if rows else ()),
        ),
    )
    draft.put("surrogate", lambda: draft.pick(*SURROGATES), lambda: draft.pick(*NOT_CHOICES))
    draft.put("kl_times_ratio", lambda: draft.pick(False, True), lambda: draft.pick(None, 1, "x"))
    put_float(
        draft,
        "recorded",
        (rows, kept),
        optional=True,
        good=lambda: draft.pick(
            draft.tensor((rows, kept), torch.float32), *(() if reads_record else (None,))
        ),
    )
    return score


def philox_words(draft: Draft, backend: str, *, noise: bool = False) -> None:
    rows, kept = draft.draw(SIZES), draft.draw(SIZES)
    draft.put_seed()
    draft.put_row_keys(rows, optional=False)
    draft.put_step(rows)
    shape = (rows, kept)
    put_ids(draft, draft.pick(shape, (kept,)), 1 << 26, bound=(0,), full_shape=shape)
    draft.put("draw", lambda: draft.pick(0, 1, 63), lambda: draft.bad_integer(-1, 64, 10**30))
    if noise:
        draft.put(
            "dtype",
            lambda: draft.pick(torch.float32, torch.float64),
            lambda: draft.pick(torch.float16, torch.int64, float, "float32", None, 3, NOT_TENSORS),
        )
    draft.put_backend(backend)


def noise_numbers(draft: Draft, backend: str) -> None:
    philox_words(draft, backend, noise=True)


# What the docstrings promise of a call that was served.


def check_sample(arguments: dict[str, Any], out: Any, clean: bool) -> None:
    logits = arguments["logits"]
    rows, vocab = logits.shape
    categorical = arguments["noise"] == "categorical"
    top_k = min(arguments["top_k"] or vocab, vocab)
    width = arguments["num_draws"] if categorical else top_k
    real = torch.float64 if logits.dtype == torch.float64 else torch.float32
    for name in ("ids", "weights", "scores", "logits"):
        expect(getattr(out, name), (rows, width), torch.int64 if name == "ids" else real)
    expect(out.count, (rows,), torch.int32)
    for name in ("lse", "kept_lse", "entropy"):
        expect(getattr(out, name), (rows,), real)
    for name in ("shadow", "token"):
        expect(getattr(out, name), (rows,), torch.int64)
    for ids in (out.ids, out.shadow, out.token):
        assert ((ids >= 0) & (ids < vocab)).all()
    assert ((out.count >= 1) & (out.count <= max(width, 1))).all()
    if clean:
        check_values_of_sample(arguments, out)


def check_values_of_sample(arguments: dict[str, Any], out: Any) -> None:
    rows, width = out.ids.shape
    padding = torch.arange(width) >= out.count[:, None]
    torch.testing.assert_close(out.weights.sum(-1), torch.ones_like(out.lse))
    assert (out.weights >= 0).all()
    assert (out.weights[padding] == 0).all()
    for x in (out.scores, out.logits):
        assert (x[padding] == -torch.inf).all()
        assert x[~padding].isfinite().all()
    assert (out.ids[padding] == out.ids[:, :1].expand(rows, width)[padding]).all()
    for x in (out.lse, out.kept_lse, out.entropy):
        assert x.isfinite().all()
    slack = 1e-5 * (1 + out.lse.abs())
    assert (out.kept_lse <= out.lse + slack).all()
    vocab = arguments["logits"].shape[1]
    assert ((out.entropy >= -slack) & (out.entropy <= math.log(vocab) + slack)).all()
    for token in (out.shadow, out.token):
        assert (
            (out.ids == token[:, None]).any(-1) | categorical_shadow(arguments, token, out)
        ).all()
    if arguments["exclude_ids"] is not None:
        for ids in (out.ids, out.shadow, out.token):
            assert not torch.isin(ids, arguments["exclude_ids"]).any()


def categorical_shadow(arguments: dict[str, Any], token: Tensor, out: Any) -> bool:
    """The shadow need not be among the draws."""
    return arguments["noise"] == "categorical" and token is out.shadow


def check_step(arguments: dict[str, Any], out: Any, clean: bool) -> None:
    check_sample(arguments, out.sample, clean)
    assert not any(field.requires_grad for field in out.sample)
    table = arguments["embedding"]
    expect(out.embedding, (len(arguments["logits"]), table.shape[1]), table.dtype)
    if clean:
        assert out.embedding.isfinite().all()


def check_mixture(arguments: dict[str, Any], out: Any, clean: bool) -> None:
    ids, table = arguments["ids"], arguments["embedding"]
    expect(out, (*ids.shape[:-1], table.shape[1]), table.dtype)
    if clean:
        assert out.isfinite().all()


def check_log_probs(arguments: dict[str, Any], out: Any, clean: bool) -> None:
    like = arguments.get("hidden", arguments.get("logits"))
    real = torch.float64 if like.dtype == torch.float64 else torch.float32
    expect(out.logits, tuple(arguments["ids"].shape), real)
    expect(out.lse, (len(like),), real)
    expect(out.entropy, (len(like),), real)
    if clean:
        assert out.lse.isfinite().all()
        assert out.entropy.isfinite().all()
        # An unnormalised entry may be -inf, but no log-probability is above 0.
        slack = 1e-4 * (1 + out.lse.abs())
        assert (out.logits - out.lse[:, None] <= slack[:, None]).all()


def check_dense_mixture(arguments: dict[str, Any], out: Any, clean: bool) -> None:
    like = arguments.get("hidden", arguments.get("logits"))
    table = arguments["embedding"]
    table = arguments["lm_head"] if table is None else table
    expect(out.embedding, (len(like), table.shape[1]), table.dtype)
    real = torch.float64 if like.dtype == torch.float64 else torch.float32
    expect(out.log_prob, (len(like),), real)
    expect(out.log_density, (len(like),), real)
    if clean:
        assert out.embedding.isfinite().all()
        assert out.log_prob.isfinite().all()
        # Of a one-hot row it is -inf.
        assert (out.log_density < torch.inf).all()


def check_loss(arguments: dict[str, Any], out: Any, clean: bool) -> None:
    hidden = arguments["hidden"]
    real = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    expect(out.loss, (), real)
    for x in (out.log_prob, out.kl, out.ratio):
        expect(x, (len(hidden),), real)
        assert not x.requires_grad
    expect(out.clipped, (len(hidden),), torch.int8)
    if clean:
        assert out.loss.isfinite()


def check_words(arguments: dict[str, Any], out: Any, clean: bool) -> None:
    expect(out, (len(arguments["row_keys"]), arguments["ids"].shape[-1]), torch.int64)
    assert ((out >= 0) & (out < 1 << 32)).all()


def check_noise(arguments: dict[str, Any], out: Any, clean: bool) -> None:
    shape = (len(arguments["row_keys"]), arguments["ids"].shape[-1])
    expect(out, shape, arguments["dtype"])
    assert out.isfinite().all()


def expect(x: Any, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    assert isinstance(x, Tensor)
    assert (tuple(x.shape), x.dtype, x.device) == (shape, dtype, CPU)


class Op(NamedTuple):
    """A public op: what serves it, its calls, its promises, what it is differentiable in.

    ``anchors`` are the arguments that others are measured against.
    """

    kernel: str
    put_arguments: Callable[[Draft, str], None]
    check: Callable[[dict[str, Any], Any, bool], None]
    anchors: tuple[str, ...]
    differentiable: tuple[str, ...] = ()


HEAD = ("hidden", "lm_head")
OPS = {
    "sample_latent": Op("sample_latent", sample_latent, check_sample, ("logits",)),
    "latent_step": Op("latent_step", latent_step, check_step, ("logits",), ("embedding",)),
    "mix_embeddings": Op(
        "mix_embeddings",
        mix_embeddings,
        check_mixture,
        ("embedding", "ids"),
        ("weights", "embedding"),
    ),
    "linear_log_probs": Op(
        "linear_log_probs", linear_log_probs, check_log_probs, HEAD, (*HEAD, "bias")
    ),
    "gather_log_probs": Op(
        "gather_log_probs", gather_log_probs, check_log_probs, ("logits",), ("logits",)
    ),
    "gumbel_softmax_embedding": Op(
        "gumbel_softmax_embedding",
        gumbel_softmax_embedding,
        check_dense_mixture,
        ("logits",),
        ("logits", "embedding"),
    ),
    "linear_gumbel_softmax_embedding": Op(
        "linear_gumbel_softmax_embedding",
        linear_gumbel_softmax_embedding,
        check_dense_mixture,
        HEAD,
        (*HEAD, "bias", "embedding"),
    ),
    "lepo_loss": Op("linear_log_probs", lepo_loss, check_loss, HEAD, (*HEAD, "bias")),
    "philox_words": Op("philox_words", philox_words, check_words, ("row_keys",)),
    "gumbel_noise": Op("philox_words", noise_numbers, check_noise, ("row_keys",)),
    "normal_noise": Op("philox_words", noise_numbers, check_noise, ("row_keys",)),
}
OPS_AND_BACKENDS = [(name, b) for name, op in OPS.items() for b in backends_of(op.kernel)]
# What Triton's interpreter takes long for is left to the slow tests: all backends share validation.
each_op_and_backend = pytest.mark.parametrize(
    ("name", "backend"),
    [
        pytest.param(*pair, marks=pytest.mark.slow if pair[1] == "triton" else ())
        for pair in OPS_AND_BACKENDS
    ],
    indirect=["backend"],
)
# Not by Triton's interpreter, which takes some ten milliseconds for each of thousands of calls.
at_length = pytest.mark.parametrize(
    ("name", "backend"),
    [pair for pair in OPS_AND_BACKENDS if pair[1] != "triton"],
    indirect=["backend"],
)


def parameters_of(name: str) -> tuple[str, ...]:
    return tuple(inspect.signature(getattr(lepo_kernels, name)).parameters)


# Every argument in turn is the one that is spoiled: left to chance, some never are.
@each_op_and_backend
def test_an_op_serves_or_refuses_by_name(name, backend):
    for first in (None, *parameters_of(name)):
        settings(EVERYDAY)(serves_or_refuses(name, backend, first))()


@pytest.mark.slow
@at_length
def test_an_op_serves_or_refuses_by_name_at_length(name, backend):
    for first in (None, *parameters_of(name)):
        settings(DEEP)(serves_or_refuses(name, backend, first))()


def serves_or_refuses(name: str, backend: str, first: str | None) -> Callable[[], None]:
    """The property, with argument ``first`` spoiled, and at times another one."""
    op, public, parameters = OPS[name], getattr(lepo_kernels, name), parameters_of(name)

    @st.composite
    def calls(draw: Callable[[st.SearchStrategy], Any]) -> Draft:
        second = draw(st.sampled_from((None, None, *parameters))) if first else None
        draft = Draft(draw, frozenset(op.anchors), (first, second))
        op.put_arguments(draft, backend)
        assert set(draft.arguments) == set(parameters)
        return draft

    @given(calls())
    def run(draft: Draft) -> None:
        leaves = make_leaves(draft.arguments, op.differentiable)
        try:
            out = public(**draft.arguments)
        except BackendUnavailableError:
            # Only the reference serves everything.
            assert "backend" in draft.bad or backend != "reference"
            return
        except (TypeError, ValueError, IndexError) as refusal:
            check_blame(draft, refusal)
            return
        assert not draft.bad, f"{sorted(draft.bad)} should have been refused"
        clean = not draft.edge
        op.check(draft.arguments, out, clean)
        check_gradients(draft, leaves, out, clean)

    return run


def check_blame(draft: Draft, refusal: Exception) -> None:
    """The message opens with an argument, one that is to blame."""
    assert draft.bad or draft.edge, f"good arguments were refused: {refusal!r}"
    message = str(refusal)
    named = set(re.findall(r"\w+", message.split(":")[0])) & set(draft.arguments)
    assert named, f"no argument is named in {message!r}"
    suspects = draft.bad | draft.edge
    if not suspects & draft.anchors:
        # A number that makes logits overflow is told by their row.
        suspects |= draft.anchors if draft.edge else set()
        assert named & suspects, f"{sorted(suspects)} are to blame, not {message!r}"


def make_leaves(arguments: dict[str, Any], names: tuple[str, ...]) -> list[Tensor]:
    """Let autograd follow the arguments an op is differentiable in."""
    leaves = []
    for name in names:
        x = arguments[name]
        if isinstance(x, Tensor) and x.is_floating_point() and not x.is_sparse:
            arguments[name] = x.detach().requires_grad_()
            leaves.append(arguments[name])
    return leaves


def check_gradients(draft: Draft, leaves: list[Tensor], out: Any, clean: bool) -> None:
    outputs = [x for x in tree_leaves(out) if x.requires_grad]
    if not outputs or not leaves:
        return
    # The first rows get no gradient, so that both kinds of row occur.
    upstream = [
        torch.arange(x.numel()).reshape(x.shape).to(x.dtype) / max(x.numel(), 1) for x in outputs
    ]
    grads = torch.autograd.grad(outputs, leaves, upstream, allow_unused=True)
    tau = draft.arguments.get("tau", 1.0)
    # A tau near 0 has gradients beyond float32.
    steep = not isinstance(tau, Tensor) and 0 < tau < 1e-3
    for leaf, grad in zip(leaves, grads, strict=True):
        if grad is None:
            continue
        assert (grad.shape, grad.dtype, grad.device) == (leaf.shape, leaf.dtype, leaf.device)
        if clean and not steep and leaf.dtype != torch.float16:
            assert grad.isfinite().all()
