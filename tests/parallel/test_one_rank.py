"""The ops as torch ops, on a group of this process alone, which holds the whole vocabulary."""

import math
import re
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

import lepo_kernels as lk
from lepo_kernels.parallel import linear_log_probs as log_probs_file
from tests.seeds import seeded


@pytest.fixture(scope="module")
def group():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


def head(dtype=torch.float64):
    torch.manual_seed(seeded(0))
    hidden, lm_head, bias = (torch.randn(*n, dtype=dtype) for n in ((5, 3), (9, 3), (9,)))
    return hidden.requires_grad_(), lm_head.requires_grad_(), torch.randint(0, 9, (5, 2)), bias


def vocabulary(dtype=torch.float64):
    torch.manual_seed(seeded(0))
    return tuple(torch.randn(*n, dtype=dtype, requires_grad=True) for n in ((5, 9), (9, 3)))


def weighted_sum(outputs):
    return sum((x * (n + 1)).sum() for n, x in enumerate(outputs))


def test_one_rank_is_the_whole_bitwise(group):
    hidden, lm_head, ids, bias = head()
    ours = lk.vocab_parallel_linear_log_probs(hidden, lm_head, ids, bias=bias, softcap=3.0)
    whole = lk.linear_log_probs(hidden, lm_head, ids, bias=bias, softcap=3.0)
    grads = [torch.autograd.grad(weighted_sum(x), (hidden, lm_head)) for x in (ours, whole)]
    for x, y in zip((*ours, *grads[0]), (*whole, *grads[1]), strict=True):
        assert torch.equal(x, y)


def test_gradcheck(group):
    hidden, lm_head, ids, bias = head()

    def log_probs(hidden, lm_head, bias):
        return tuple(
            lk.vocab_parallel_linear_log_probs(hidden, lm_head, ids, bias=bias, vocab_size=9)
        )

    assert torch.autograd.gradcheck(log_probs, (hidden, lm_head, bias.requires_grad_()))

    def mixture(logits, embedding):
        return lk.vocab_parallel_gumbel_softmax_embedding(logits, embedding, 0.7).embedding

    assert torch.autograd.gradcheck(mixture, vocabulary())

    def linear_mixture(hidden, lm_head, embedding, bias):
        return lk.vocab_parallel_linear_gumbel_softmax_embedding(
            hidden, lm_head, embedding, 0.7, bias=bias, softcap=3.0
        ).embedding

    assert torch.autograd.gradcheck(linear_mixture, (hidden, lm_head, vocabulary()[1], bias))


def test_opcheck(group):
    ops, name = torch.ops.lepo_kernels, group.group_name
    hidden, lm_head, ids, bias = head()
    scale = torch.ones(1, dtype=torch.float64)
    rest = (2, 0, 9, name, "reference")
    torch.library.opcheck(
        ops.vocab_parallel_linear_log_probs.default,
        (hidden, lm_head, bias.requires_grad_(), 2.0, ids, scale, *rest),
    )
    torch.library.opcheck(ops.sum_over_ranks.default, (hidden.detach(), name))
    for need_deviation in (False, True):
        logits, embedding = (x.requires_grad_(need_deviation) for x in vocabulary())
        torch.library.opcheck(
            ops.vocab_parallel_linear_gumbel_softmax_embedding.default,
            (hidden, lm_head, bias, 2.0, embedding, scale, scale, torch.tensor(0), torch.arange(5),
             torch.tensor([3]), 0, 2, name, True, "reference"),
        )  # fmt: skip
        torch.library.opcheck(
            ops.vocab_parallel_gumbel_softmax_embedding.default,
            (logits, embedding, scale, scale, torch.tensor(0), torch.arange(5), torch.tensor([3]),
             0, name, need_deviation, "reference"),
        )  # fmt: skip


def test_compiled_is_eager_bitwise(group):
    where = {"group": group, "first_id": 0, "vocab_size": 8}

    def log_probs(hidden, lm_head, ids):
        return tuple(lk.vocab_parallel_linear_log_probs(hidden, lm_head, ids, **where))

    def mixture(logits, embedding, ids):
        return tuple(lk.vocab_parallel_gumbel_softmax_embedding(logits, embedding, 0.5, **where))

    def tied_mixture(hidden, lm_head, ids):
        return tuple(
            lk.vocab_parallel_linear_gumbel_softmax_embedding(hidden, lm_head, None, 0.5, **where)
        )

    ids = head()[2] % 8
    for function, inputs in (
        (log_probs, head()[:2]),
        (mixture, vocabulary()),
        (tied_mixture, head()[:2]),
    ):
        results = []
        for run in (function, torch.compile(function, fullgraph=True, backend="aot_eager")):
            outputs = run(*inputs, ids)
            results.append((*outputs, *torch.autograd.grad(weighted_sum(outputs), inputs)))
        for x, y in zip(*results, strict=True):
            assert torch.equal(x, y)


def test_a_compiled_call_must_say_where_its_rows_are(group):
    hidden, lm_head, ids, _ = head()

    def log_probs(hidden, lm_head, ids):
        return lk.vocab_parallel_linear_log_probs(hidden, lm_head, ids).lse

    compiled = torch.compile(log_probs, fullgraph=True, backend="aot_eager")
    with pytest.raises(Exception, match="first_id, vocab_size: expected both"):
        compiled(hidden, lm_head, ids)


def test_double_backward_is_refused(group):
    hidden, lm_head, ids, _ = head()
    lse = lk.vocab_parallel_linear_log_probs(hidden, lm_head, ids).lse
    (dhidden,) = torch.autograd.grad(lse.sum(), hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives are not offered"):
        dhidden.sum().backward()
    logits, embedding = vocabulary()
    mixed = lk.vocab_parallel_gumbel_softmax_embedding(logits, embedding, 0.5).embedding
    (dlogits,) = torch.autograd.grad(mixed.sum(), logits, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives are not offered"):
        dlogits.sum().backward()
    mixed = lk.vocab_parallel_linear_gumbel_softmax_embedding(hidden, lm_head, None, 0.5).embedding
    (dhidden,) = torch.autograd.grad(mixed.sum(), hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives are not offered"):
        dhidden.sum().backward()


def test_autocast_casts_as_it_does_for_the_whole(group):
    hidden, lm_head, ids, bias = head(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = lk.vocab_parallel_linear_log_probs(hidden, lm_head, ids, bias=bias)
        whole = lk.linear_log_probs(hidden, lm_head, ids, bias=bias)
    for x, y in zip(ours, whole, strict=True):
        assert torch.equal(x, y)
    grads = [torch.autograd.grad(weighted_sum(x), (hidden, lm_head)) for x in (ours, whole)]
    for x, y in zip(*grads, strict=True):
        assert x.dtype == torch.float32
        assert torch.equal(x, y)


def test_padding_has_gradients_of_zero(group):
    hidden, lm_head, ids, bias = head()
    logits, embedding = vocabulary()
    ours = lk.vocab_parallel_linear_log_probs(
        hidden, lm_head, ids % 7, bias=bias.requires_grad_(), vocab_size=7
    )
    mixture = lk.vocab_parallel_gumbel_softmax_embedding(logits, embedding, 0.5, vocab_size=7)
    inputs = (lm_head, bias, embedding, logits)
    for grad in torch.autograd.grad(weighted_sum((*ours, *mixture[:2])), inputs):
        kept, padding = (grad if len(grad) == 9 else grad.T).split((7, 2))
        assert kept.ne(0).all()
        assert padding.eq(0).all()


# What the table's dtype is rounded to stays in the logits' way.
@pytest.mark.parametrize("table_dtype", [torch.float32, torch.bfloat16])
def test_dtypes_of_mixtures(table_dtype, group):
    logits = torch.randn(5, 9, dtype=torch.float16, requires_grad=True)
    embedding = torch.randn(9, 3).to(table_dtype).requires_grad_()
    ours = lk.vocab_parallel_gumbel_softmax_embedding(logits, embedding, 0.5, backend="reference")
    whole = lk.gumbel_softmax_embedding(logits, embedding, 0.5, backend="reference")
    for x, y in zip(ours, whole, strict=True):
        assert x.dtype == y.dtype
        torch.testing.assert_close(x, y)
    grads = [torch.autograd.grad(weighted_sum(x), (logits, embedding)) for x in (ours, whole)]
    for x, y in zip(*grads, strict=True):
        assert x.dtype == y.dtype
        torch.testing.assert_close(x, y)


def test_unchecked_bad_rows_spoil_themselves_only(group, monkeypatch):
    hidden, lm_head, ids, _ = head()
    lm_head.detach().abs_()
    logits, embedding = vocabulary()
    good = lk.vocab_parallel_linear_log_probs(hidden, lm_head, ids)
    mixed = lk.vocab_parallel_gumbel_softmax_embedding(logits, embedding, 0.5)
    monkeypatch.setattr("lepo_kernels.backends.checks.checks_enabled", lambda _: False)
    others = [0, 2, 3, 4]
    # With a head that is positive, so that the last is a row of -inf.
    for bad in (math.nan, math.inf, -math.inf):
        with torch.no_grad():
            hidden[1] = bad
        ours = lk.vocab_parallel_linear_log_probs(hidden, lm_head, ids)
        assert ours.lse[1].isnan()
        assert ours.entropy[1].isnan()
        for x, y in zip(ours, good, strict=True):
            assert torch.equal(x[others], y[others])
    for tau in (0.5, 0.0):
        for bad in (math.nan, math.inf, -math.inf):
            spoilt = logits.detach().clone()
            spoilt[1] = bad
            ours = lk.vocab_parallel_gumbel_softmax_embedding(spoilt, embedding, tau)
            assert ours.log_prob[1].isnan()
            assert ours.embedding[1].isnan().all()
            assert ours.log_density[1].isnan()
            if tau:
                for x, y in zip(ours, mixed, strict=True):
                    assert torch.equal(x[others], y[others])


def test_arguments_that_no_rank_could_mean(group):
    hidden, lm_head, ids, _ = head()
    for options, error, message in (
        ({"first_id": -1, "vocab_size": 9}, ValueError, r"first_id: expected an int in \[0"),
        ({"first_id": 0.0}, TypeError, "first_id: expected an int, got float"),
        ({"vocab_size": 0}, ValueError, r"vocab_size: expected an int in \[1"),
        ({"vocab_size": 10}, ValueError, r"vocab_size: expected an int in \[1, 9\], got 10"),
        ({"first_id": 3}, ValueError, "first_id: rank 0 of the group has 3, but the ranks before"),
        ({"group": "tensor"}, TypeError, "group: expected a ProcessGroup, got str"),
        ({"softcap": 0.0}, ValueError, "softcap: expected a number in"),
        ({"chunk_size": 0}, ValueError, "chunk_size: expected an int in"),
        ({"inv_temperature": torch.zeros(5)}, ValueError, "inv_temperature: expected finite"),
    ):
        with pytest.raises(error, match=message):
            lk.vocab_parallel_linear_log_probs(hidden, lm_head, ids, **options)
    logits, embedding = vocabulary()
    for options, error, message in (
        ({"first_id": 2, "vocab_size": 9}, ValueError, "first_id: expected a multiple of 4, got 2"),
        ({"tau": -1.0}, ValueError, "tau: expected a number in"),
        ({"tau": torch.tensor(-1.0)}, ValueError, "tau: expected finite numbers"),
        ({"step": torch.tensor(-1)}, ValueError, "step: expected values in"),
        ({"vocab_size": (1 << 26) + 1, "first_id": 0}, ValueError, "vocab_size: expected an int"),
    ):
        with pytest.raises(error, match=message):
            lk.vocab_parallel_gumbel_softmax_embedding(logits, embedding, **{"tau": 0.5, **options})


def test_without_a_process_group(monkeypatch):
    monkeypatch.setattr(dist, "is_initialized", lambda: False)
    hidden, lm_head, ids, _ = head()
    with pytest.raises(ValueError, match="group: there is no process group"):
        lk.vocab_parallel_linear_log_probs(hidden, lm_head, ids)
    logits, embedding = vocabulary()
    with pytest.raises(ValueError, match="group: there is no process group"):
        lk.vocab_parallel_gumbel_softmax_embedding(logits, embedding, 0.5)


# Three logarithms of sums in the ratios 1 : 2 : 5, one of them of nothing.
def test_log_sum_exps_and_entropies_are_joined():
    weights = torch.tensor([[1.0, 2.0, 5.0], [4.0, 0.0, 4.0]], dtype=torch.float64).T
    lse, entropy = log_probs_file._joined(weights.log() + 700, torch.zeros_like(weights))
    torch.testing.assert_close(lse, torch.full((2,), 700 + math.log(8), dtype=torch.float64))
    shares = weights.T / 8
    torch.testing.assert_close(entropy, -torch.xlogy(shares, shares).sum(1))


def test_the_example_runs_and_ends_its_group(group, monkeypatch):
    ended = []
    monkeypatch.setattr(dist, "destroy_process_group", lambda: ended.append(True))
    code = (Path(__file__).parents[2] / "docs" / "vocab-parallel.md").read_text()
    (example,) = re.findall(r"^```python\n(.*?)^```", code, re.DOTALL | re.MULTILINE)
    exec(compile(example, "vocab-parallel.md", "exec"), {})
    assert ended
