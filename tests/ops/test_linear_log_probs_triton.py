"""What the Triton kernels of the loss head promise beyond the contract, in both strategies."""

import json
import math

import pytest
import torch

import lepo_kernels
from lepo_kernels import gather_log_probs, lepo_loss, linear_log_probs
from tests import triton_backend
from tests.ops import test_linear_log_probs as contract
from tests.ops.helpers import LOW_DTYPES, LargestTensor, kernel_of
from tests.ops.test_linear_log_probs import OpNames, plain
from tests.seeds import seeded
from tests.tolerances import assert_no_worse_than_plain

pytestmark = pytest.mark.skipif(triton_backend.why_not() is not None, reason="no triton")

STRATEGIES = ["chunks", "tiles"]
# A state of the row kernels; parts of the vocabulary begin at multiples of it.
UNIT = 512


@pytest.fixture(params=[True])
def serve(request, monkeypatch):
    """Lets the backend serve all ops by one strategy; the parameter is ``large_tiles``."""
    serving = triton_backend.serving(monkeypatch, large_tiles=request.param)
    with serving, lepo_kernels.backend("triton"):
        from lepo_kernels.backends.triton.head import strategies

        def by(strategy):
            monkeypatch.setattr(strategies, "choice", lambda *shape: strategy)

        yield by


real_tiles = pytest.mark.parametrize("serve", [False], indirect=True, ids=["real_tiles"])


def make(rows, width, vocab, kept=3, dtype=torch.float32, seed=0):
    chance = torch.Generator().manual_seed(seeded(seed))
    hidden = torch.randn(rows, width, generator=chance).to(dtype)
    lm_head = (2 * torch.randn(vocab, width, generator=chance) / width**0.5).to(dtype)
    bias = torch.randn(vocab, generator=chance).to(dtype)
    ids = torch.randint(0, vocab, (rows, kept), generator=chance)
    return hidden, lm_head, bias, ids


def everything(function, hidden, lm_head, bias, ids, **options):
    """All outputs, and the gradients of the first three arguments."""
    inputs = [x.detach().clone().requires_grad_() for x in (hidden, lm_head, bias)]
    outputs = function(*inputs[:2], ids, bias=inputs[2], **options)
    chance = torch.Generator().manual_seed(seeded(1))
    upstream = [torch.randn(x.shape, generator=chance) for x in outputs]
    upstream = [x.to(y.dtype) for x, y in zip(upstream, outputs, strict=True)]
    return *outputs, *torch.autograd.grad(outputs, inputs, upstream)


def in_float64(hidden, lm_head, bias, ids):
    return hidden.double(), lm_head.double(), bias.double(), ids


def assert_as_good_as_plain(arguments, **options):
    ours = everything(linear_log_probs, *arguments, **options)
    rest = {name: x for name, x in options.items() if name != "chunk_size"}
    rounded = everything(plain, *arguments, **rest)
    exact = everything(plain, *in_float64(*arguments), **rest)
    for x, y, z in zip(ours, rounded, exact, strict=True):
        assert x.shape == z.shape
        if x.numel() == 0:
            continue
        assert_no_worse_than_plain(x, y, z, x.dtype, len(arguments[1]))


# The contract's tests run on the strategy that the table has for these shapes: here on the other.
@pytest.mark.parametrize(
    "test",
    [
        contract.test_minus_infinities_never_make_nan,
        contract.test_rows_without_coefficients_are_not_computed_in_backward,
        contract.test_gradient_of_the_head_is_rounded_once,
        contract.test_opcheck_of_transposed_inputs,
        lambda _: contract.test_bad_rows_raise_with_their_index(),
        lambda _: contract.test_no_grad_and_double_backward(),
        lambda _: contract.test_autocast_casts_the_inputs_and_nothing_else(),
        lambda _: contract.test_same_bits_run_to_run_and_for_any_layout(),
        lambda _: contract.test_compiled_is_eager_bitwise(),
        lambda b: contract.test_values_and_gradients_match_the_dense_expression(3, 2.0, True, b),
        lambda b: contract.test_values_and_gradients_match_the_dense_expression(7, None, False, b),
        lambda b: contract.test_empty_sizes(0, 3, b),
        lambda b: contract.test_empty_sizes(4, 0, b),
        lambda _: contract.test_error_is_no_worse_than_plain_torch(torch.float32),
        lambda _: contract.test_error_is_no_worse_than_plain_torch(torch.bfloat16),
        lambda _: contract.test_error_is_no_worse_than_plain_torch(torch.float16),
    ],
)
def test_the_contract_holds_for_the_other_strategy(test, serve):
    from lepo_kernels.backends.triton.head import strategies

    usual = {strategies.choice(torch.device("cpu"), dtype, 64, 97) for dtype in LOW_DTYPES}
    assert usual == {"tiles"}
    serve("chunks")
    test("triton")


@pytest.mark.parametrize("trained", [{0}, {1}, {2}, {0, 2}, {1, 2}])
def test_frozen_inputs_for_the_other_strategy(trained, serve, monkeypatch):
    serve("chunks")
    contract.test_frozen_inputs_get_no_gradient_and_cost_nothing(trained, "triton", monkeypatch)


# Rows, ids and columns in cut tiles: of 64 or 128 rows, 128 ids (in pieces), 512 in a unit, 32 or
# 64 columns, and 128 of a product. A softcap would turn the -inf behind the end into a number.
@real_tiles
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("dtype", LOW_DTYPES)
def test_ragged_shapes(strategy, dtype, serve):
    serve(strategy)
    # A program of the row kernels has one row.
    rows = 131 if strategy == "tiles" else 9
    arguments = make(rows, 139, 147, dtype=dtype)
    assert_as_good_as_plain(arguments, softcap=4.0, inv_temperature=torch.linspace(0.5, 2, rows))


# Peaks at the first id, in a later piece of a tile, and at the last id, whose logits stand in for
# those behind the end in a tile: they would outweigh all, were they not left out.
@real_tiles
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("peak", [0, 40, 149])
def test_peaked_rows_beside_cut_tiles(strategy, peak, serve):
    serve(strategy)
    hidden, lm_head, bias, ids = make(3, 5, 150)
    bias[peak] += 20
    arguments = (hidden, lm_head, bias - 50, ids)
    ours = everything(linear_log_probs, *arguments)
    for x, y in zip(ours, everything(plain, *in_float64(*arguments)), strict=True):
        # Sums of numbers near 50, and differences of numbers near 1, in float32.
        torch.testing.assert_close(x.double(), y, rtol=1e-5, atol=2e-6)


# One number in memory for all of them, or with gaps.
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_bias_of_any_layout(strategy, serve):
    serve(strategy)
    hidden, lm_head, bias, ids = make(3, 4, 23)
    for laid_out in (bias[:1].expand(23), torch.stack((bias, bias), 1)[:, 0]):
        ours = linear_log_probs(hidden, lm_head, ids, bias=laid_out)
        expected = linear_log_probs(hidden, lm_head, ids, bias=laid_out.clone().contiguous())
        for x, y in zip(ours, expected, strict=True):
            assert torch.equal(x, y)


# Cut into both blocks of rows and parts of the vocabulary; into parts only; not at all.
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(
    ("chunk_size", "dtype"), [(1, torch.float32), (4, torch.bfloat16), (100, torch.float16)]
)
def test_blocks_make_a_whole(strategy, chunk_size, dtype, serve):
    serve(strategy)
    vocab = 2 * UNIT + 7
    arguments = make(5, 8, vocab, dtype=dtype)
    with LargestTensor() as largest:
        assert_as_good_as_plain(arguments, chunk_size=chunk_size)
    # Plain torch's own logits, and the inputs.
    assert largest.numel == 8 * vocab


# Long sums, that no tile divides.
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_wide_hidden_states(strategy, serve):
    serve(strategy)
    assert_as_good_as_plain(make(2, 8200, 5, dtype=torch.bfloat16))


# More ids than are looked at together, most of them more than once.
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("kept", [0, 40])
def test_many_duplicates_and_no_ids(strategy, kept, serve):
    serve(strategy)
    assert_as_good_as_plain(make(3, 4, 23, kept))


def upstream_of(rows, kept, active):
    chance = torch.Generator().manual_seed(seeded(2))
    upstream = [torch.randn(shape, generator=chance) for shape in ((rows, kept), (rows,), (rows,))]
    idle = torch.ones(rows, dtype=torch.bool)
    idle[active] = False
    for x in upstream:
        x[idle] = 0
    return idle, upstream


# 140 rows are two or three tiles: none active, all of them, the first and the last, every other.
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(
    "active", [[], list(range(140)), [0, 139], list(range(0, 140, 2))], ids=len
)
@pytest.mark.parametrize("chunk_size", [30, 1000])
def test_idle_rows_are_left_out(strategy, active, chunk_size, serve):
    serve(strategy)
    hidden, lm_head, bias, ids = make(140, 3, 40)
    idle, upstream = upstream_of(140, 3, active)
    scale = torch.linspace(0.5, 2, 140)
    shared = (hidden, lm_head, bias, None, ids, scale)
    _, *saved = kernel_of("linear_log_probs", "reference")(*shared, 1000, False)
    hidden[idle] = math.nan  # would spread into the gradient of the head
    arguments = (*upstream, *shared, *saved, chunk_size, True, True, True)
    ours, expected = (
        kernel_of("linear_log_probs_backward", name)(*arguments) for name in ("triton", "reference")
    )
    for x, y in zip(ours, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-5)
    assert ours[0][idle].eq(0).all()


def test_tiles_never_wait_for_the_device(serve):
    serve("tiles")
    hidden, lm_head, bias, ids = make(6, 3, 40)
    _, upstream = upstream_of(6, 3, [1, 4])
    row = torch.ones(6)
    arguments = (*upstream, hidden, lm_head, bias, 2.0, ids, row, row, row, 3, True, True, True)
    with OpNames() as ops:
        kernel_of("linear_log_probs_backward", "triton")(*arguments)
    waiting = ("nonzero", "_local_scalar_dense", "is_nonzero", "equal", "_to_copy_to_host")
    assert not {f"aten::{name}" for name in waiting} & ops.names


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_rows_bits_do_not_depend_on_its_batch_or_place(strategy, serve):
    serve(strategy)
    hidden, lm_head, bias, ids = make(70, 40, 2 * UNIT + 9)
    logits = hidden @ lm_head.T
    together = linear_log_probs(hidden, lm_head, ids, bias=bias)
    at_hand = gather_log_probs(logits, ids)
    for n in (0, 13, 69):
        row = slice(n, n + 1)
        alone = linear_log_probs(hidden[row], lm_head, ids[row], bias=bias)
        if strategy == "tiles":  # the products are torch's else
            for x, y in zip(alone, together, strict=True):
                assert torch.equal(x[0], y[n])
        # A row with a gap before it, at another address.
        wide = torch.zeros(1, logits.shape[1] + n + 1)
        wide[:, n + 1 :] = logits[n]
        for x, y in zip(gather_log_probs(wide[:, n + 1 :], ids[row]), at_hand, strict=True):
            assert torch.equal(x[0], y[n])


def test_an_id_out_of_range_is_in_no_tile(serve, monkeypatch):
    serve("tiles")
    hidden, lm_head, bias, ids = make(3, 4, 23)
    good = linear_log_probs(hidden, lm_head, ids, bias=bias)
    # 2^32 above a good one: the kernels take int32.
    ids[0, 0], ids[1, 1], ids[2, 2] = -1, 23, (1 << 32) + 5
    from lepo_kernels.backends import checks

    monkeypatch.setattr(checks, "checks_enabled", lambda device: False)
    ours = linear_log_probs(hidden, lm_head, ids, bias=bias)
    assert torch.equal(ours.logits.isnan(), torch.eye(3, dtype=torch.bool))
    assert torch.equal(ours.logits[~torch.eye(3).bool()], good.logits[~torch.eye(3).bool()])
    assert torch.equal(ours.lse, good.lse)


class TinyModel(torch.nn.Module):
    """An embedding, a layer and a head, whose loss has both ops."""

    def __init__(self):
        super().__init__()
        self.embedding = torch.nn.Embedding(23, 8)
        self.layer = torch.nn.Linear(8, 8)
        self.head = torch.nn.Linear(8, 23)

    def forward(self, tokens, ids, weights):
        hidden = torch.tanh(self.layer(self.embedding(tokens)))
        scored = linear_log_probs(hidden, self.head.weight, ids, bias=self.head.bias)
        ones = torch.ones_like(weights[:, 0])
        fused = lepo_loss(hidden, self.head.weight, ids, weights, ones > 0, ones, ones)
        return scored.logits.sum() - scored.lse.sum() + 0.1 * scored.entropy.sum() + fused.loss


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_model_with_both_losses_compiles_as_one_graph(strategy, serve):
    serve(strategy)
    torch.manual_seed(seeded(0))
    model, tokens = TinyModel(), torch.arange(5)
    arguments = (tokens, torch.randint(0, 23, (5, 3)), torch.full((5, 3), 1 / 3))
    # A cached graph would carry the choices of another test.
    with torch._inductor.config.patch(fx_graph_cache=False):
        compiled = torch.compile(model, fullgraph=True)(*arguments)
        ours = torch.autograd.grad(compiled, list(model.parameters()))
    eager = model(*arguments)
    torch.testing.assert_close(compiled, eager)
    for x, y in zip(ours, torch.autograd.grad(eager, list(model.parameters())), strict=True):
        torch.testing.assert_close(x, y)


def test_the_table_of_strategies_is_complete():
    from lepo_kernels.backends.triton import linear_log_probs as backend
    from lepo_kernels.backends.triton.head import products, strategies, tiles

    table = json.loads(strategies.TABLE.read_text())
    assert set(table) == set(tiles._TILES) == set(products._TILES)
    widths = [*(f"D <= {x}" for x in strategies.WIDTHS), f"D > {strategies.WIDTHS[-1]}"]
    vocabs = [*(f"V <= {x}" for x in strategies.VOCABS), f"V > {strategies.VOCABS[-1]}"]
    for family in table.values():
        assert set(family) == {"basis", "half", "float"}
        for size in ("half", "float"):
            assert list(family[size]) == widths
            for row in family[size].values():
                assert list(row) == vocabs
                assert set(row.values()) <= set(backend.STRATEGIES)


# The last of a class, and the first of the next.
@pytest.mark.parametrize(
    ("width", "name"), [(1, "D <= 1024"), (1024, "D <= 1024"), (1025, "D <= 2048"), (4097, None)]
)
def test_classes_of_sizes(width, name):
    from lepo_kernels.backends.triton.head import strategies

    assert strategies.class_of("D", width, strategies.WIDTHS) == (name or "D > 4096")
