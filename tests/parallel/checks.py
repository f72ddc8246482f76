"""What holds on every rank of ops over a shared vocabulary; run by ranks.py, with three processes.

The whole op is the oracle: in float64 on ``reference``, its tests hold it to the dense expression.
"""

import math
from collections.abc import Callable
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

import lepo_kernels as lk
from lepo_kernels import dispatch
from tests.ops.head_magnitudes import head_magnitudes
from tests.parallel.team import Team
from tests.seeds import seeded
from tests.tolerances import assert_within

CHECKS: list[Callable[[str], None]] = []


def check(function: Callable[[str], None]) -> Callable[[str], None]:
    CHECKS.append(function)
    return function


def check_of(op: str) -> Callable[[Callable[[str], None]], Callable[[str], None]]:
    """A check on backends that have a kernel for the op."""

    def decorate(function: Callable[[str], None]) -> Callable[[str], None]:
        def where_served(backend: str) -> None:
            if backend in dispatch.KERNELS[op][1]:
                function(backend)

        where_served.__name__ = function.__name__
        return check(where_served)

    return decorate


log_probs_check = check_of("linear_log_probs")
mixtures_check = check_of("gumbel_softmax_embedding")
linear_mixtures_check = check_of("linear_gumbel_softmax_embedding")


def real(backend: str) -> torch.dtype:
    return torch.float64 if backend == "reference" else torch.float32


def weighted_sum(outputs: tuple[Tensor, ...]) -> Tensor:
    """A scalar that gives every output an upstream gradient of its own."""
    generator = torch.Generator().manual_seed(seeded(1))
    return sum(
        (x.double() * torch.randn(x.shape, generator=generator, dtype=torch.float64)).sum()
        for x in outputs
    )


def assert_close(ours: Tensor, whole: Tensor, scale: float = 1.0) -> None:
    """``whole`` is float64; float32 sums of a few dozen terms lose some units of 1e-7 of them."""
    assert ours.shape == whole.shape
    unit = 1e-13 if ours.dtype == torch.float64 else 2e-6
    torch.testing.assert_close(ours.double(), whole, rtol=10 * unit, atol=10 * unit * scale)


def compare_log_probs(
    team: Team,
    hidden: Tensor,  # [N, D]
    lm_head: Tensor,  # [V + padding, D]
    ids: Tensor,  # [N, K]
    bias: Tensor | None = None,  # [V + padding]
    *,
    vocab_size: int | None = None,
    located: bool = False,
    **options,
) -> None:
    """Values and gradients on this rank against those of the whole head."""
    if not team.is_member:
        return
    inputs = [hidden.detach().requires_grad_(), team.part(lm_head.requires_grad_())]
    if bias is not None:
        inputs.append(team.part(bias.requires_grad_()))
    where = {"first_id": team.first_id, "vocab_size": vocab_size or len(lm_head)}
    ours = lk.vocab_parallel_linear_log_probs(
        *inputs[:2],
        ids,
        bias=inputs[2] if bias is not None else None,
        group=team.group,
        **(where if located else {"vocab_size": vocab_size}),
        **options,
    )
    grads = torch.autograd.grad(weighted_sum(ours), inputs)
    team.assert_same_on_all([*ours, grads[0]])

    exact = [x.detach().double().requires_grad_() for x in (hidden, lm_head, bias) if x is not None]
    whole = lk.linear_log_probs(
        exact[0],
        exact[1][:vocab_size],
        ids,
        bias=exact[2][:vocab_size] if bias is not None else None,
        **options,
        backend="reference",
    )
    whole_grads = torch.autograd.grad(weighted_sum(whole), exact)
    leaves = [x.detach().requires_grad_() for x in whole]
    upstream = torch.autograd.grad(weighted_sum(leaves), leaves)
    sizes = head_magnitudes(
        exact[0],
        exact[1][:vocab_size],
        ids,
        upstream,
        bias=exact[2][:vocab_size] if bias is not None else None,
        softcap=options.get("softcap"),
        inv_temperature=options.get("inv_temperature", 1.0),
    )
    terms = max(len(lm_head), len(hidden))
    for x, y, size in zip(ours, whole, sizes[:3], strict=True):
        assert_within(x, y, terms, size)
    assert_within(grads[0], whole_grads[0], terms, sizes.dhidden)
    for x, y, size in zip(grads[1:], whole_grads[1:], sizes[4:6], strict=False):
        # Padding has no gradient, nor an error.
        padded = torch.zeros_like(y)
        padded[:vocab_size] = size
        assert_within(x, y[team.rows], terms, padded[team.rows])


def head(
    backend: str, rows: int = 7, width: int = 3, vocab: int = 23, kept: int = 4, seed: int = 0
):
    torch.manual_seed(seeded(seed))
    dtype = real(backend)
    ids = torch.randint(0, vocab, (rows, kept))
    if kept > 1:
        ids[:, 1] = ids[:, 0]  # duplicates
    return (
        torch.randn(rows, width, dtype=dtype),
        torch.randn(vocab, width, dtype=dtype),
        ids,
        torch.randn(vocab, dtype=dtype),
    )


def teams() -> list[Team]:
    """23 rows: three uneven parts, one of one row; two, of which the ranks are not the world's."""
    return [Team([0, 1, 2], [14, 1, 8]), Team([1, 2], [11, 12])]


@log_probs_check
def log_probs_equal_the_whole(backend):
    scale = torch.linspace(0.5, 1.5, 7, dtype=torch.float64)
    for team in teams():
        compare_log_probs(team, *head(backend))
        compare_log_probs(team, *head(backend)[:3], located=True)
        compare_log_probs(
            team, *head(backend), softcap=2.0, inv_temperature=scale, chunk_size=3, located=True
        )


@log_probs_check
def log_probs_of_no_ids_and_no_rows(backend):
    for team in teams():
        compare_log_probs(team, *head(backend, kept=0))
        compare_log_probs(team, *head(backend, rows=0), located=True)


@log_probs_check
def log_probs_of_ids_in_one_part(backend):
    for team in teams():
        for first, size in ((0, 11), (15, 8)):
            hidden, lm_head, ids, bias = head(backend)
            compare_log_probs(team, hidden, lm_head, first + ids % size, bias)


# The peak's logit is about 1000 above all others, in each of the parts.
@log_probs_check
def log_probs_of_peaked_rows(backend):
    for team in teams():
        for peak in (3, 14, 22):
            hidden, lm_head, ids, _ = head(backend)
            hidden = hidden.abs() + 1
            lm_head[peak] += 300
            ids[:, 0] = peak
            compare_log_probs(team, hidden, lm_head, ids)


@log_probs_check
def log_probs_over_padding_and_empty_parts(backend):
    for team, vocab_size in (
        (Team([0, 1, 2], [8, 8, 8]), 21),
        (Team([0, 1, 2], [8, 8, 8]), 15),  # the last rank holds nothing but padding
        (Team([0, 1, 2], [12, 12, 0]), 23),
        (Team([1, 2], [0, 24]), 24),
    ):
        for located in (False, True):
            hidden, lm_head, ids, bias = head(backend, vocab=24)
            lm_head[vocab_size:] = math.nan  # whatever padding holds
            compare_log_probs(
                team,
                hidden,
                lm_head,
                ids % vocab_size,
                bias,
                vocab_size=vocab_size,
                located=located,
            )


@log_probs_check
def log_probs_where_a_part_has_no_mass(backend):
    for team in teams():
        for dead in (slice(0, 14), slice(11, 23)):
            hidden, lm_head, ids, bias = head(backend)
            bias[dead] = -math.inf
            alive = torch.tensor([i for i in range(23) if bias[i] > -math.inf])
            compare_log_probs(team, hidden, lm_head, alive[ids % len(alive)], bias)


@log_probs_check
def log_probs_of_bad_rows_raise_on_all(backend):
    for team in teams():
        hidden, lm_head, ids, bias = head(backend)
        if not team.is_member:
            continue

        def call(lm_head, bias, ids=ids, hidden=hidden, team=team):
            lk.vocab_parallel_linear_log_probs(
                hidden, team.part(lm_head), ids, bias=team.part(bias), group=team.group
            )

        with pytest.raises(ValueError, match="logits of hidden: row 0 is all -inf, or holds NaN"):
            call(lm_head, torch.full_like(bias, -math.inf))
        spoilt = lm_head.clone()
        spoilt[2] = math.nan  # on one rank alone
        with pytest.raises(ValueError, match="logits of hidden: row 0 is all -inf, or holds NaN"):
            call(spoilt, bias)
        for bad in (-1, 23):
            with pytest.raises(IndexError, match=rf"ids: expected values in \[0, 23\), got {bad}"):
                call(lm_head, bias, ids.index_fill(0, torch.tensor([3]), bad))


@log_probs_check
def log_probs_of_frozen_inputs(backend):
    for team in teams():
        hidden, lm_head, ids, _ = head(backend)
        if not team.is_member:
            continue
        for free in (0, 1):
            inputs = [hidden.clone(), team.part(lm_head)]
            inputs[free].requires_grad_()
            scored = lk.vocab_parallel_linear_log_probs(*inputs, ids, group=team.group)
            with mock.patch.object(dist, "all_reduce", wraps=dist.all_reduce) as reduced:
                scored.lse.sum().backward()
            assert reduced.call_count == 1 - free
            assert inputs[1 - free].grad is None
        with torch.no_grad():
            again = lk.vocab_parallel_linear_log_probs(*inputs, ids, group=team.group)
        team.assert_same_on_all(list(again))
        for x, y in zip(again, scored, strict=True):
            assert torch.equal(x, y)


@log_probs_check
def log_probs_in_low_precision(backend):
    for team in teams():
        for dtype in (torch.bfloat16, torch.float16):
            hidden, lm_head, ids, _ = (
                x if x.dtype == torch.int64 else x.to(dtype) for x in head(backend)
            )
            if not team.is_member:
                continue
            inputs = [hidden.clone().requires_grad_(), team.part(lm_head.requires_grad_())]
            ours = lk.vocab_parallel_linear_log_probs(*inputs, ids, group=team.group)
            grads = torch.autograd.grad(weighted_sum(ours), inputs)
            assert [x.dtype for x in (*ours, *grads)] == [torch.float32] * 3 + [dtype] * 2
            team.assert_same_on_all([*ours, grads[0]])
            exact = [x.detach().double().requires_grad_() for x in (hidden, lm_head)]
            whole = lk.linear_log_probs(*exact, ids, backend="reference")
            whole_grads = torch.autograd.grad(weighted_sum(whole), exact)
            # Logits of about 3 are products in the low dtype on the reference. Each rank rounds its
            # part of the gradient, and so does each addition: parts are up to 10.
            unit = torch.finfo(dtype).eps
            for x, y in zip((*ours, *grads), (*whole, *whole_grads), strict=True):
                y = y[team.rows] if len(y) == 23 else y
                assert (x.double() - y).abs().max() <= 20 * unit


@log_probs_check
def log_probs_talk_as_little_as_they_say(backend):
    for team in teams():
        hidden, lm_head, ids, _ = head(backend)
        if not team.is_member:
            continue
        inputs = [hidden.requires_grad_(), team.part(lm_head.requires_grad_())]
        ranks = len(team.sizes)
        with (
            mock.patch.object(dist, "all_reduce", wraps=dist.all_reduce) as reduced,
            mock.patch.object(dist, "all_gather_object", side_effect=AssertionError),
        ):
            scored = lk.vocab_parallel_linear_log_probs(
                *inputs, ids, group=team.group, first_id=team.first_id, vocab_size=23
            )
            weighted_sum(scored).backward()
        assert [call.args[0].numel() for call in reduced.call_args_list] == [
            7 * (2 * ranks + 4),
            7 * 3,
        ]


@log_probs_check
def lepo_loss_equals_the_whole(backend):
    for team in teams():
        hidden, lm_head, ids, _ = head(backend)
        if not team.is_member:
            continue
        generator = torch.Generator().manual_seed(seeded(2))
        weights = torch.rand(7, 4, generator=generator).softmax(-1)
        latent = torch.tensor([True, False, True, False, True, False, True])
        advantages = torch.tensor([1.0, -0.5, 0.0, 2.0, -1.0, 0.3, 0.7])
        row_weights = torch.full((7,), 1 / 7)
        row_weights[6] = 0
        rows = (weights, latent, advantages, row_weights)
        options = {
            "old_log_prob": -torch.rand(7, generator=generator),
            "ref_log_probs": -torch.rand(7, 4, generator=generator),
            "beta": 0.1,
            "softcap": 5.0,
            "inv_temperature": 0.8,
        }
        inputs = [hidden.clone().requires_grad_(), team.part(lm_head.requires_grad_())]
        ours = lk.vocab_parallel_lepo_loss(*inputs, ids, *rows, group=team.group, **options)
        grads = torch.autograd.grad(ours.loss, inputs)
        team.assert_same_on_all([*ours, grads[0]])
        exact = [x.detach().double().requires_grad_() for x in (hidden, lm_head)]
        whole = lk.lepo_loss(*exact, ids, *rows, backend="reference", **options)
        whole_grads = torch.autograd.grad(whole.loss, exact)
        for x, y in zip((*ours[:4], grads[0]), (*whole[:4], whole_grads[0]), strict=True):
            assert_close(x, y.double())
        assert torch.equal(ours.clipped, whole.clipped)
        assert_close(grads[1], whole_grads[1][team.rows])
        wrong = {**options, "beta": -1.0 if team.rank == 1 else 0.1}
        with pytest.raises(ValueError, match=r"beta: .*got -1|refuses its arguments: .*got -1"):
            lk.vocab_parallel_lepo_loss(*inputs, ids, *rows, group=team.group, **wrong)


@log_probs_check
def calls_that_do_not_fit_raise_on_all(backend):
    for team in teams():
        hidden, lm_head, ids, _ = head(backend)
        if not team.is_member:
            continue
        part, is_bad = team.part(lm_head), team.rank == 1

        def call(*arguments, team=team, **options):
            lk.vocab_parallel_linear_log_probs(*arguments, group=team.group, **options)

        # One rank's arguments are wrong: it says so, and so do the others.
        expected = (
            "ids: expected dtype"
            if is_bad
            else "rank 1 of the group refuses its arguments: TypeError: ids: expected dtype"
        )
        with pytest.raises(TypeError if is_bad else ValueError, match=expected):
            call(hidden, part, ids.double() if is_bad else ids)
        # Right in itself, but not what the others call.
        for mine, message in (
            (
                (hidden[:5], part, ids[:5]),
                r"hidden.shape: rank 0 of the group has \(7, 3\), rank 1",
            ),
            ((hidden, part, ids[:, :2]), r"ids.shape: rank 0 of the group has \(7, 4\), rank 1"),
            ((hidden.half(), part.half(), ids), "hidden.dtype: rank 0"),
            ((hidden.clone().requires_grad_(), part, ids), "hidden takes a gradient: rank 0"),
        ):
            with pytest.raises(ValueError, match=message):
                call(*(mine if is_bad else (hidden, part, ids)))
        with pytest.raises(ValueError, match="vocab_size: rank 0 of the group has 23, rank 1 has"):
            call(hidden, part, ids, vocab_size=22 if is_bad else 23)
        with pytest.raises(ValueError, match=r"vocab_size: expected an int in \[1, 23\], got 24"):
            call(hidden, part, ids, vocab_size=24)
        with pytest.raises(ValueError, match="first_id: rank 1 of the group has"):
            call(hidden, part, ids, first_id=team.first_id + is_bad)
        # The group is as good as before.
        call(hidden, part, ids, first_id=team.first_id)


@log_probs_check
def a_process_outside_of_the_group_is_told(backend):
    team = Team([1, 2], [11, 12])
    if not team.is_member:
        with pytest.raises(ValueError, match=r"group: .*not a member"):
            lk.vocab_parallel_linear_log_probs(*head(backend)[:3], group=team.group)


def compare_mixtures(
    team: Team,
    logits: Tensor,  # [N, V + padding]
    embedding: Tensor,  # [V + padding, D]
    tau: float | Tensor,
    *,
    vocab_size: int | None = None,
    located: bool = False,
    scale: float = 1.0,
    **options,
) -> None:
    """Values and gradients on this rank against those of the whole vocabulary."""
    if not team.is_member:
        return
    inputs = team.part(logits.requires_grad_(), 1), team.part(embedding.requires_grad_())
    where = {"first_id": team.first_id, "vocab_size": vocab_size or len(embedding)}
    where = where if located else {"vocab_size": vocab_size}
    ours = lk.vocab_parallel_gumbel_softmax_embedding(
        *inputs, tau, group=team.group, **where, **options
    )
    grads = torch.autograd.grad(mixture_loss(ours), inputs)
    team.assert_same_on_all(list(ours))
    with torch.no_grad():
        again = lk.vocab_parallel_gumbel_softmax_embedding(
            *inputs, tau, group=team.group, **where, **options
        )
    for x, y in zip(again, ours, strict=True):
        assert torch.equal(x, y)

    exact = [x.detach().double().requires_grad_() for x in (logits, embedding)]
    whole = lk.gumbel_softmax_embedding(
        exact[0][:, :vocab_size], exact[1][:vocab_size], tau, **options, backend="reference"
    )
    whole_grads = torch.autograd.grad(mixture_loss(whole), exact)
    for x, y in zip(ours, whole, strict=True):
        assert_close(x, y, scale)
    assert_close(grads[0], whole_grads[0][:, team.rows], scale)
    assert_close(grads[1], whole_grads[1][team.rows], scale)


def mixture_loss(outputs: lk.GumbelSoftmaxEmbedding) -> Tensor:
    """Log-densities at tau = 0 are -inf, and have no gradient."""
    finite = outputs.log_density.clamp_min(-1e6)
    return weighted_sum((outputs.embedding, outputs.log_prob, finite))


def compare_linear_mixtures(
    team: Team,
    hidden: Tensor,  # [N, Dh]
    lm_head: Tensor,  # [V + padding, Dh]
    embedding: Tensor | None,  # [V + padding, D]
    tau: float | Tensor,
    bias: Tensor | None = None,  # [V + padding]
    *,
    vocab_size: int | None = None,
    located: bool = False,
    scale: float = 1.0,
    **options,
) -> None:
    """Values and gradients on this rank against those of the whole vocabulary."""
    if not team.is_member:
        return
    wholes = (lm_head, embedding, bias)
    parts = [team.part(None if x is None else x.requires_grad_()) for x in wholes]
    hidden = hidden.detach().requires_grad_()
    where = {"first_id": team.first_id, "vocab_size": vocab_size or len(lm_head)}
    ours = lk.vocab_parallel_linear_gumbel_softmax_embedding(
        hidden,
        *parts[:2],
        tau,
        bias=parts[2],
        group=team.group,
        **(where if located else {"vocab_size": vocab_size}),
        **options,
    )
    inputs = [hidden, *(x for x in parts if x is not None)]
    grads = torch.autograd.grad(mixture_loss(ours), inputs)
    team.assert_same_on_all([*ours, grads[0]])

    exact = [None if x is None else x.detach().double().requires_grad_() for x in (hidden, *wholes)]
    cut = [None if x is None else x[:vocab_size] for x in exact[1:]]
    whole = lk.linear_gumbel_softmax_embedding(
        exact[0], *cut[:2], tau, bias=cut[2], **options, backend="reference"
    )
    whole_grads = torch.autograd.grad(mixture_loss(whole), [x for x in exact if x is not None])
    for x, y in zip(ours, whole, strict=True):
        assert_close(x, y, scale)
    assert_close(grads[0], whole_grads[0], scale)
    for x, y in zip(grads[1:], whole_grads[1:], strict=True):
        assert_close(x, y[team.rows], scale)


def vocabulary(backend: str, rows: int = 5, vocab: int = 23, width: int = 3):
    torch.manual_seed(seeded(3))
    return torch.randn(rows, vocab, dtype=real(backend)), torch.randn(
        vocab, width, dtype=real(backend)
    )


def noise_teams() -> list[Team]:
    """As `teams`, cut at multiples of 4."""
    return [Team([0, 1, 2], [12, 4, 7]), Team([1, 2], [8, 15])]


@mixtures_check
def mixtures_equal_the_whole(backend):
    options = {
        "temperature": torch.tensor([1.4, 1.0, 0.3, 2.0, 1.0], dtype=torch.float64),
        "seed": 5,
        "row_keys": torch.tensor([3, -1, 2**40, 8, 0]),
        "step": torch.tensor([1, 2, 3, 4, 5]),
    }
    taus = torch.tensor([0.6, 0.0, 3.0, 0.1, 0.5], dtype=torch.float64)
    for team in noise_teams():
        compare_mixtures(team, *vocabulary(backend), 0.5)
        compare_mixtures(team, *vocabulary(backend), taus, located=True, **options)


@mixtures_check
def mixtures_of_no_rows(backend):
    for team in noise_teams():
        compare_mixtures(team, *vocabulary(backend, rows=0), 0.5)


# The weight of all but the peak is far below what 1 can be told from; in each of the parts.
@mixtures_check
def mixtures_of_peaked_rows(backend):
    for team in noise_teams():
        for peak in (3, 14, 22):
            logits, embedding = vocabulary(backend)
            logits[:, peak] += 30
            compare_mixtures(team, logits, embedding, 0.5, scale=10)


# All but the peak weigh about 1e-8. The pull of the peak is as small, and float32 holds its digits,
# though e.de and E_peak.de differ in their last ones at most. The reference has float64 for that.
@mixtures_check
def mixtures_of_peaked_rows_keep_their_digits(backend):
    for team in noise_teams():
        for peak in (3, 14, 22):
            logits, embedding = vocabulary(backend)
            logits[:, peak] += 11
            if not team.is_member or backend == "reference":
                continue
            part, table = team.part(logits.requires_grad_(), 1), team.part(embedding)
            ours = lk.vocab_parallel_gumbel_softmax_embedding(part, table, 0.5, group=team.group)
            (dlogits,) = torch.autograd.grad(ours.embedding.sum(), part)
            exact = logits.detach().double().requires_grad_()
            whole = lk.gumbel_softmax_embedding(exact, embedding.double(), 0.5, backend="reference")
            (expected,) = torch.autograd.grad(whole.embedding.sum(), exact)
            expected = expected[:, team.rows]
            assert ((dlogits - expected).abs() <= 1e-3 * expected.abs()).all()


@mixtures_check
def mixtures_over_padding_and_empty_parts(backend):
    for team, vocab_size in (
        (Team([0, 1, 2], [8, 8, 8]), 21),
        (Team([0, 1, 2], [8, 8, 8]), 15),
        (Team([0, 1, 2], [12, 12, 0]), 23),
    ):
        for located in (False, True):
            logits, embedding = vocabulary(backend, vocab=24)
            logits[:, vocab_size:] = math.nan
            embedding[vocab_size:] = math.inf
            compare_mixtures(team, logits, embedding, 0.5, vocab_size=vocab_size, located=located)


@mixtures_check
def mixtures_where_a_part_has_no_mass(backend):
    taus = torch.tensor([0.6, 0.0, 3.0, 0.1, 0.0], dtype=torch.float64)
    for team in noise_teams():
        for dead in (slice(0, 12), slice(8, 23)):
            logits, embedding = vocabulary(backend)
            logits[:3, dead] = -math.inf
            compare_mixtures(team, logits, embedding, taus)
        # A single survivor.
        logits, embedding = vocabulary(backend)
        logits[1, :22] = -math.inf
        compare_mixtures(team, logits, embedding, taus)


@mixtures_check
def mixtures_of_bad_rows_raise_on_all(backend):
    for team in noise_teams():
        if not team.is_member:
            continue
        for bad in (math.nan, math.inf, None):
            logits, embedding = vocabulary(backend)
            logits[2, 21] = bad or 0
            if bad is None:
                logits[2] = -math.inf
            with pytest.raises(ValueError, match="logits: row 2 is all -inf, or holds NaN"):
                lk.vocab_parallel_gumbel_softmax_embedding(
                    team.part(logits, 1), team.part(embedding), 0.5, group=team.group
                )


@mixtures_check
def mixtures_of_frozen_inputs(backend):
    for team in noise_teams():
        if not team.is_member:
            continue
        logits, embedding = vocabulary(backend)
        parts = team.part(logits.requires_grad_(), 1), team.part(embedding.requires_grad_())
        whole = lk.gumbel_softmax_embedding(logits, embedding, 0.5)
        expected = torch.autograd.grad(mixture_loss(whole), (logits, embedding))
        for free in (0, 1):
            inputs = [x.detach() for x in parts]
            inputs[free].requires_grad_()
            ours = lk.vocab_parallel_gumbel_softmax_embedding(*inputs, 0.5, group=team.group)
            (grad,) = torch.autograd.grad(mixture_loss(ours), inputs[free])
            own = expected[free].narrow(1 - free, team.first_id, team.sizes[team.rank])
            assert_close(grad, own.double())


@mixtures_check
def mixtures_talk_as_little_as_they_say(backend):
    for team in noise_teams():
        if not team.is_member:
            continue
        logits, embedding = vocabulary(backend)
        inputs = team.part(logits, 1), team.part(embedding)
        ranks = len(team.sizes)
        for differentiable in (False, True):
            inputs[0].requires_grad_(differentiable)
            with (
                mock.patch.object(dist, "all_reduce", wraps=dist.all_reduce) as reduced,
                mock.patch.object(dist, "all_gather_object", side_effect=AssertionError),
            ):
                ours = lk.vocab_parallel_gumbel_softmax_embedding(
                    *inputs, 0.5, group=team.group, first_id=team.first_id, vocab_size=23
                )
                if differentiable:
                    mixture_loss(ours).backward()
            sizes = [call.args[0].numel() for call in reduced.call_args_list]
            assert sizes == [5 * 9 * ranks, *[5 * 3] * (1 + differentiable)]


@mixtures_check
def mixtures_are_cut_where_the_noise_can_be(backend):
    for team in (Team([0, 1, 2], [8, 9, 6]), Team([1, 2], [11, 12])):
        if not team.is_member:
            continue
        logits, embedding = vocabulary(backend)
        parts = team.part(logits, 1), team.part(embedding)
        with pytest.raises(ValueError, match="first_id: expected a multiple of 4 on every rank"):
            lk.vocab_parallel_gumbel_softmax_embedding(*parts, 0.5, group=team.group)
        if team.first_id % 4:
            with pytest.raises(ValueError, match="first_id: expected a multiple of 4, got 1"):
                lk.vocab_parallel_gumbel_softmax_embedding(
                    *parts, 0.5, group=team.group, first_id=team.first_id, vocab_size=23
                )


def noisy_head(backend: str, rows: int = 5, vocab: int = 23):
    """Hidden states, head, table and bias."""
    torch.manual_seed(seeded(4))
    shapes = ((rows, 4), (vocab, 4), (vocab, 3), (vocab,))
    return [torch.randn(shape, dtype=real(backend)) for shape in shapes]


@linear_mixtures_check
def linear_mixtures_equal_the_whole(backend):
    taus = torch.tensor([0.6, 0.0, 3.0, 0.1, 0.5], dtype=torch.float64)
    options = {"softcap": 4.0, "temperature": 0.7, "seed": 5, "step": 2, "chunk_size": 2}
    for team in noise_teams():
        hidden, lm_head, embedding, bias = noisy_head(backend)
        compare_linear_mixtures(team, hidden, lm_head, embedding, 0.5)
        compare_linear_mixtures(team, hidden, lm_head, None, 0.5, bias)  # tied
        compare_linear_mixtures(
            team, hidden, lm_head, embedding, taus, bias, located=True, **options
        )
        compare_linear_mixtures(team, hidden[:0], lm_head, embedding, 0.5)


@linear_mixtures_check
def linear_mixtures_of_peaked_rows(backend):
    for team in noise_teams():
        for peak in (3, 14, 22):
            hidden, lm_head, embedding, bias = noisy_head(backend)
            bias[peak] += 30
            compare_linear_mixtures(team, hidden, lm_head, embedding, 0.5, bias, scale=10)


@linear_mixtures_check
def linear_mixtures_over_padding_and_empty_parts(backend):
    for team, vocab_size in ((Team([0, 1, 2], [8, 8, 8]), 15), (Team([0, 1, 2], [12, 12, 0]), 24)):
        for located in (False, True):
            hidden, lm_head, embedding, bias = noisy_head(backend, vocab=24)
            lm_head[vocab_size:] = math.nan
            compare_linear_mixtures(
                team, hidden, lm_head, embedding, 0.5, bias, vocab_size=vocab_size, located=located
            )


@linear_mixtures_check
def linear_mixtures_where_a_part_has_no_mass(backend):
    for team in noise_teams():
        for dead in (slice(0, 12), slice(8, 23)):
            hidden, lm_head, embedding, bias = noisy_head(backend)
            bias[dead] = -math.inf
            compare_linear_mixtures(team, hidden, lm_head, embedding, 0.5, bias)


@linear_mixtures_check
def linear_mixtures_reduce_what_takes_a_gradient(backend):
    for team in noise_teams():
        hidden, lm_head, embedding, _ = noisy_head(backend)
        if not team.is_member:
            continue
        inputs = [hidden, team.part(lm_head), team.part(embedding)]
        # Hidden states, head, table: deviations go with the first two, and a sum with the first.
        for free, forward, backward in ((0, 3, 1), (1, 3, 0), (2, 2, 0)):
            mine = [x.detach().requires_grad_(n == free) for n, x in enumerate(inputs)]
            with mock.patch.object(dist, "all_reduce", wraps=dist.all_reduce) as reduced:
                ours = lk.vocab_parallel_linear_gumbel_softmax_embedding(
                    *mine, 0.5, group=team.group, first_id=team.first_id, vocab_size=23
                )
                assert reduced.call_count == forward
                (grad,) = torch.autograd.grad(mixture_loss(ours), mine[free])
                assert reduced.call_count == forward + backward
            whole = [
                x.detach().requires_grad_(n == free)
                for n, x in enumerate((hidden, lm_head, embedding))
            ]
            expected = lk.linear_gumbel_softmax_embedding(*whole, 0.5)
            (expected,) = torch.autograd.grad(mixture_loss(expected), whole[free])
            assert_close(grad, (expected if free == 0 else expected[team.rows]).double())
