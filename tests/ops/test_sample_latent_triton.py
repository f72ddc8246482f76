"""What the Triton kernels of the latent draw promise beyond the contract."""

import importlib.util
import math
from pathlib import Path

import pytest
import torch

from lepo_kernels import sample_latent
from lepo_kernels.backends import checks
from tests import triton_backend
from tests.ops.test_sample_latent_cpu import assert_same_draw
from tests.seeds import seeded

pytestmark = pytest.mark.skipif(triton_backend.why_not() is not None, reason="no triton")

NOISES = ("none", "gumbel", "gaussian", "dirichlet", "categorical")
# As row_scan_kernels.py cuts rows.
GROUP, TILE = 2048, 4096


@pytest.fixture(autouse=True)
def on_triton(monkeypatch):
    with triton_backend.serving(monkeypatch):
        yield


def draw(logits, **arguments):
    return sample_latent(logits, backend="triton", **arguments)


def assert_same_bits(ours, expected):
    for name, x, y in zip(ours._fields, ours, expected, strict=True):
        assert torch.equal(x, y), name


# Less than a block; a group, and an entry more; a tile, and an entry more; and more groups than are
# kept. K: the least and the most of the narrow kernel, one more than its smallest size, and the
# first that is wide.
@pytest.mark.parametrize("vocab", [2, GROUP, GROUP + 1, TILE, TILE + 1, 20 * GROUP - 60])
@pytest.mark.parametrize("top_k", [1, 17, 64, 65])
def test_draw_is_the_references(vocab, top_k):
    torch.manual_seed(seeded(vocab))
    logits = 3 * torch.randn(3, vocab)
    excluded = torch.unique(logits.argmax(-1))[: vocab - 1]
    arguments = {
        "top_k": top_k,
        "top_p": 0.95,
        "temperature": 0.8,
        "tau": 0.3,
        "exclude_ids": excluded,
        "seed": 3,
        "step": 5,
    }
    reference = sample_latent(logits, backend="reference", **arguments)
    assert_same_draw(draw(logits, **arguments), reference)


# Narrow and wide; blocks of 128 entries, of which the last one is cut, in the wide kernels.
@pytest.mark.parametrize("top_k", [40, 200])
@pytest.mark.parametrize("noise", NOISES)
def test_every_noise_is_the_references(noise, top_k, monkeypatch):
    from lepo_kernels.backends.triton.latent import launching

    for table in (launching._WIDE, launching._PERTURB):
        monkeypatch.setitem(table, "ENTRIES", 128)
    torch.manual_seed(seeded(1))
    logits, draws = 2 * torch.randn(5, 700), 5 if noise == "categorical" else 1
    arguments = {
        "top_k": top_k,
        "min_p": 1e-3,
        "noise": noise,
        "noise_scale": 3.0,
        "num_draws": draws,
        "tau": torch.tensor([0.5, 1.0, 0.0, 2.0, 1e-38]),
        "temperature": torch.tensor([0.5, 1.0, 1.5, 0.7, 2.0]),
        "row_keys": torch.tensor([7, -1, 2**50, 0, 7]),
        "step": torch.tensor([3, 1, 2**32 - 1, 0, 9]),
    }
    reference = sample_latent(logits, backend="reference", **arguments)
    assert_same_draw(draw(logits, **arguments), reference)


def hard_rows(vocab):
    """Rows that are ordered, or have few values, or all that counts at one place."""
    torch.manual_seed(seeded(vocab))
    rising = torch.arange(vocab) / 64
    ties = torch.randint(-2, 2, (vocab,)).float()
    peaks = torch.zeros(4, vocab)
    peaks[0, -1] = peaks[1, 0] = 9.0
    peaks[2, -70:], peaks[3, vocab // 2 :: 97] = 5.0, 5.0
    sparse = torch.randn(vocab).masked_fill(torch.rand(vocab) < 0.995, -math.inf)
    sparse[-1] = 0
    # The best block of each group is its last one, and cut in the last group.
    saw = (torch.arange(vocab) % GROUP).float()
    rows = (rising, -rising, ties, torch.zeros(vocab), sparse, saw)
    return torch.cat([torch.stack(rows), peaks])


# Of ties, the lowest ids: within a block, across blocks, groups and tiles. The last vocabularies
# end with a block of one entry, and one entry before a tile's end.
@pytest.mark.parametrize("vocab", [700, 3 * TILE + 1, 3 * TILE - 1])
@pytest.mark.parametrize("top_k", [1, 30, 64, 65])
def test_selection_is_exact(vocab, top_k):
    logits = hard_rows(vocab)
    sample = draw(logits, top_k=top_k, noise="none")
    expected = logits.sort(dim=-1, descending=True, stable=True)
    for row in range(len(logits)):
        count = min(top_k, int(expected.values[row].isfinite().sum()))
        assert int(sample.count[row]) == count
        assert torch.equal(sample.ids[row, :count], expected.indices[row, :count])
        assert torch.equal(sample.logits[row, :count], expected.values[row, :count])


# Groups and units are read in several goes where a vocabulary is huge: here, where it is not.
def test_many_groups_and_units_are_merged(monkeypatch):
    from lepo_kernels.backends.triton.latent import launching

    logits = hard_rows(40 * GROUP - 5)
    whole = draw(logits, top_k=10, tau=0.5)
    monkeypatch.setattr(launching, "_GROUPS", 16)
    monkeypatch.setattr(launching, "_UNITS", 32)
    parts = draw(logits, top_k=10, tau=0.5)
    # The order of the sums over the row is another.
    torch.testing.assert_close(parts.lse, whole.lse)
    torch.testing.assert_close(parts.entropy, whole.entropy)
    for name in ("ids", "weights", "scores", "logits", "count", "kept_lse", "shadow", "token"):
        assert torch.equal(getattr(parts, name), getattr(whole, name)), name


# K = 64 and 65 are selected in different ways.
def test_both_selections_agree():
    torch.manual_seed(seeded(2))
    logits = torch.randint(-40, 40, (4, 5000)) / 8
    narrow, wide = (draw(logits, top_k=k, seed=3) for k in (64, 65))
    for name in ("ids", "scores", "logits"):
        assert torch.equal(getattr(narrow, name), getattr(wide, name)[:, :64]), name
    for name in ("lse", "entropy", "shadow"):
        assert torch.equal(getattr(narrow, name), getattr(wide, name)), name


# Narrow and wide. Tiles of one row and of many, rows in another order and alone.
@pytest.mark.parametrize("top_k", [30, 70])
@pytest.mark.parametrize("noise", ["gumbel", "gaussian", "categorical"])
def test_the_batch_changes_no_bit(noise, top_k, monkeypatch):
    from lepo_kernels.backends.triton.latent import launching

    torch.manual_seed(seeded(5))
    logits, keys = 3 * torch.randn(9, TILE + 300), torch.arange(100, 109)

    def run(rows):
        return draw(logits[rows], top_k=top_k, top_p=0.9, noise=noise, row_keys=keys[rows], tau=0.3)

    whole, rows = run(torch.arange(9)), torch.tensor([8, 2, 5])
    expected = type(whole)(*(x[rows] for x in whole))
    assert_same_bits(run(rows), expected)
    assert_same_bits(run(rows[:1]), type(whole)(*(x[:1] for x in expected)))
    for table in (
        launching._SCAN,
        launching._NARROW,
        launching._KEYS,
        launching._WIDE,
        launching._PERTURB,
    ):
        monkeypatch.setitem(table, "ROWS", 1)
    assert_same_bits(run(rows), expected)


# Chunks of two rows; rows number themselves, across chunks.
@pytest.mark.parametrize("noise", ["gumbel", "categorical"])
def test_chunks_of_rows_change_no_bit(noise, monkeypatch):
    from lepo_kernels.backends.triton import sample_latent as kernels

    torch.manual_seed(seeded(6))
    logits, tau = torch.randn(5, 300), torch.tensor([0.5, 1.0, 0.0, 2.0, 0.1])
    steps = torch.arange(5)
    whole = draw(logits, noise=noise, tau=tau, step=steps)
    monkeypatch.setattr(kernels, "_CHUNK_ENTRIES", 650)
    assert_same_bits(draw(logits, noise=noise, tau=tau, step=steps), whole)


# 1001 columns of 1003: neither rows nor blocks begin at a multiple of anything. NaN beside the rows
# must not be read.
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("top_k", [9, 1001])
def test_rows_may_lie_anywhere(dtype, top_k):
    torch.manual_seed(seeded(6))
    wide = torch.full((6, 1003), math.nan, dtype=dtype)
    wide[:, 1:1002] = torch.randn(6, 1001).to(dtype)
    view = wide[:, 1:1002]
    for logits in (view, view[:1].expand(6, 1001), view.contiguous().T.contiguous().T, view[::2]):
        assert_same_bits(draw(logits, top_k=top_k), draw(logits.float().contiguous(), top_k=top_k))


# Wide, flat, shifted, huge, single peaks and masks; entropy near 0 and near log V.
@pytest.mark.parametrize(
    ("scale", "shift"), [(1, 0), (0, 0), (30, 0), (1, 1000), (1e4, -1e4), (1, -3e4)]
)
def test_statistics_are_as_good_as_plain_torch(scale, shift):
    torch.manual_seed(seeded(3))
    logits = scale * torch.randn(4, 10001) + shift
    logits[1, 7:] = -math.inf
    logits[2, 13] = logits[2].max() + 40
    logits[3, ::2] = -3e38
    sample = draw(logits, temperature=0.3, top_k=2)
    a = logits * (1 / torch.tensor(0.3))
    exact = a.double().log_softmax(-1)
    lse = a.double().logsumexp(-1)
    entropy = -(exact.exp() * exact.masked_fill(exact == -math.inf, 0)).sum(-1)
    # Rounding the result is half a unit; a unit's sums are within 1e-7.
    torch.testing.assert_close(sample.lse.double(), lse, rtol=2e-7, atol=4e-7)
    torch.testing.assert_close(sample.entropy.double(), entropy, rtol=2e-6, atol=1e-6)


# Whole blocks, ids at both ends of the row, repeated and unordered ids, and all but one entry.
@pytest.mark.parametrize("top_k", [20, 100])
@pytest.mark.parametrize(
    "excluded",
    [[0], [999], [500, 3, 3, 999], list(range(128)), list(range(100, 900)), list(range(1, 1000))],
)
def test_exclusion_is_exact(excluded, top_k):
    torch.manual_seed(seeded(2))
    logits = torch.randn(4, 1000)
    logits[:, excluded] += 5
    sample = draw(logits, top_k=top_k, noise="none", exclude_ids=torch.tensor(excluded))
    masked = logits.clone()
    masked[:, excluded] = -math.inf
    count = min(top_k, 1000 - len(set(excluded)))
    assert sample.count.eq(count).all()
    assert torch.equal(sample.ids[:, :count], masked.topk(count).indices)
    torch.testing.assert_close(sample.lse, logits.logsumexp(-1))


@pytest.mark.parametrize("top_k", [3, 100])
def test_unchecked_ids_out_of_range_exclude_nothing(top_k, monkeypatch):
    monkeypatch.setattr(checks, "checks_enabled", lambda device: False)
    torch.manual_seed(seeded(4))
    logits = torch.randn(2, 300)
    far = torch.tensor([-1, -300, 300, 2**40, 7])
    expected = draw(logits, top_k=top_k, exclude_ids=torch.tensor([7]))
    assert_same_bits(draw(logits, top_k=top_k, exclude_ids=far), expected)


# Rows without anything to keep; narrow ones are tests of the contract.
@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("tau", [0.0, 0.5])
def test_unchecked_bad_wide_rows_spoil_themselves_only(noise, tau, monkeypatch):
    monkeypatch.setattr(checks, "checks_enabled", lambda device: False)
    torch.manual_seed(seeded(12))
    logits = torch.randn(6, 300)
    arguments = {"noise": noise, "tau": tau, "exclude_ids": torch.tensor([7])}
    good = draw(logits, **arguments)
    bad = torch.tensor([1, 2, 3, 4])
    logits[bad] = -math.inf
    logits[2, 7] = 1.5
    logits[3], logits[3, 5] = 0, math.nan
    logits[4], logits[4, 9] = 0, math.inf
    sample = draw(logits, **arguments)
    for ours, expected in zip(sample, good, strict=True):
        assert torch.equal(ours[[0, 5]], expected[[0, 5]])
    for name in ("weights", "scores", "logits", "kept_lse"):
        assert getattr(sample, name)[bad].isnan().all(), name
    for name in ("ids", "shadow", "token", "count"):
        assert getattr(sample, name)[bad].eq(0).all(), name
    assert sample.lse[2] == 1.5
    assert sample.entropy[2] == 0


def masks_and_ties():
    test_rows_may_lie_anywhere(torch.float32, 9)
    test_selection_is_exact(3 * TILE + 1, 30)


# What a lost mask, or a lost rule, does is seen by a test above: in the scan and where the best
# blocks are read again, ids behind the row's end; groups that are not there; ties.
@pytest.mark.parametrize(
    ("name", "found", "planted"),
    [
        ("row_scan_kernel", "inside = ids < vocab", "inside = ids < vocab + 9"),
        ("best_of_rows", "inside = ids < vocab", "inside = ids < vocab + 9"),
        ("best_of_rows", "tl.minimum(place_of(best), group_count)", "0 * place_of(best)"),
        ("best_of_rows", "key_of(peaks, group)", "key_of(peaks, 4096 - group)"),
    ],
)
def test_planted_bugs_are_seen(name, found, planted, tmp_path, monkeypatch):
    from lepo_kernels.backends.triton.latent import launching, narrow_kernels, row_scan_kernels

    if triton_backend.has_gpu():
        pytest.skip("reads where nothing may be")
    source = Path(row_scan_kernels.__file__).read_text()
    assert found in source
    spec = importlib.util.spec_from_file_location("planted_scan", tmp_path / "planted_scan.py")
    Path(spec.origin).write_text(source.replace(found, planted))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    owner = launching if name == "row_scan_kernel" else narrow_kernels
    monkeypatch.setattr(owner, name, getattr(module, name))
    with pytest.raises(AssertionError):
        masks_and_ties()
