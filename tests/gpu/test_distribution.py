"""Gumbel-max tokens follow the softmax of the logits, at the size of a real vocabulary."""

import pytest
import torch

import lepo_kernels
from tests.gpu.calls import needs


def counts_and_expected(device, vocab, bins, draws, rows_at_once):
    """Tokens in each of ``bins`` sets of ids of nearly the same probability, and as expected."""
    generator = torch.Generator().manual_seed(1)
    logits = 2 * torch.randn(vocab, generator=generator)
    probabilities = logits.double().softmax(0)
    # The bin of an id is where the sum before it falls: sets of neighbours.
    before = probabilities.cumsum(0) - probabilities
    bin_of_id = (before * bins).long().clamp(max=bins - 1)
    expected = torch.zeros(bins, dtype=torch.float64).index_add(0, bin_of_id, probabilities)
    same = logits.to(device).expand(rows_at_once, vocab).contiguous()
    tokens = [
        lepo_kernels.sample_latent(same, tau=0.0, seed=11, row_keys=keys).token.cpu()
        for keys in torch.arange(draws, device=device).split(rows_at_once)
    ]
    counts = torch.bincount(bin_of_id[torch.cat(tokens)], minlength=bins)
    # An id of more than a bin's share leaves the next one empty.
    filled = expected > 0
    assert counts[~filled].sum() == 0
    return counts[filled], expected[filled] * draws


# Some 30 and more are expected in each bin, where the chi-square distribution is a good fit. The
# seed is fixed: the verdict is the same every time; 1e-4 is the bad luck a right sampler may have.
@needs("sample_latent")
@pytest.mark.parametrize(
    ("vocab", "bins", "draws"),
    [
        pytest.param(131072, 64, 16384, marks=pytest.mark.gpu),
        # What the simulator does in seconds.
        pytest.param(67, 8, 512),
    ],
)
def test_tokens_follow_the_softmax(vocab, bins, draws, device):
    counts, expected = counts_and_expected(device, vocab, bins, draws, rows_at_once=256)
    assert counts.sum() == draws
    statistic = ((counts - expected).square() / expected).sum()
    # The upper tail of chi-square with one degree of freedom less than there are bins.
    half = torch.tensor((len(counts) - 1) / 2, dtype=torch.float64)
    assert torch.special.gammaincc(half, statistic / 2) > 1e-4
