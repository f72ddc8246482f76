"""The noise inside Triton kernels: the reference's words, and numbers right in the tail."""

import pytest
import torch

from lepo_kernels import philox_words
from lepo_kernels.backends.reference.philox import exponential_from_words
from tests import triton_backend
from tests.seeds import seeded

pytestmark = pytest.mark.skipif(triton_backend.why_not() is not None, reason="no triton")
DEVICE = "cuda" if triton_backend.has_gpu() else "cpu"


@pytest.fixture(autouse=True)
def on_triton(monkeypatch):
    with triton_backend.serving(monkeypatch):
        yield


def run(kernel, *arguments, **options):
    moved = [x.to(DEVICE) if isinstance(x, torch.Tensor) else x for x in arguments]
    kernel[(1,)](*moved, **options, enable_fp_fusion=False)
    return [x.cpu() if isinstance(x, torch.Tensor) else x for x in moved]


# Seeds, keys and steps with the highest bits set, and ids up to the last block of the largest
# vocabulary.
@pytest.mark.parametrize("seed", [0, 5, -1, 1 << 62, -(1 << 63)])
@pytest.mark.parametrize("first", [0, 64, (1 << 26) - 32])
def test_words_are_the_reference_s(seed, first):
    from tests.triton_sim import noise

    keys = torch.tensor([0, -1, 1 << 40, -(1 << 63)])
    steps = torch.tensor([0, 1, (1 << 32) - 1, 7])
    out = torch.zeros(4, 32, dtype=torch.int64)
    *_, out, _ = run(noise.words, torch.tensor(seed), keys, steps, out, first, IDS=32)
    ids = torch.arange(first, first + 32)
    assert torch.equal(out, philox_words(seed, keys, steps, ids, backend="reference"))


# The smallest words and the largest, where float32 rounds, all powers of two, and any.
def words():
    edge = torch.arange(64)
    powers = 2 ** torch.arange(32)
    torch.manual_seed(seeded(0))
    anywhere = torch.randint(1 << 32, (1 << 14,))
    small = torch.cat([torch.randint(1 << bits, (64,)) for bits in range(1, 32)])
    all_words = torch.cat([edge, (1 << 32) - 1 - edge, powers, powers - 1, anywhere, small])
    return all_words[all_words < 1 << 32]


def test_exponential_and_gumbel_numbers():
    from tests.triton_sim import noise

    given = words()
    count = len(given)
    outputs = torch.zeros(2, count)
    _, e, g, *_ = run(noise.numbers, given, *outputs, count, BLOCK=1 << 15)
    # Of the same uniform number, which is float32's: log1p and log in float64.
    v = ((given.float() + 0.5) * 2.0**-32).clamp_max(1 - 2.0**-24).double()
    expected = -torch.log1p(-v)
    # Two logarithms of at most an ulp each, a product and a quotient.
    torch.testing.assert_close(e.double(), expected, rtol=4 * 2.0**-23, atol=0)
    torch.testing.assert_close(g.double(), -expected.log(), rtol=1e-6, atol=1e-6)
    assert g.isfinite().all()
    assert g.max() > 22.8
    plain = exponential_from_words(given, torch.float32)
    torch.testing.assert_close(e, plain, rtol=4 * 2.0**-23, atol=0)
