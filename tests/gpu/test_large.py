"""Tensors of more than 2^31 elements: rows beyond the limit are those rows alone."""

import pytest
import torch

import lepo_kernels
from tests.gpu.calls import needs

# The least rows of this width that pass 2^31; on a simulated device, some rows of a small one.
VOCAB = 131072
ROWS = 2**31 // VOCAB + 2


def large(device, copies):
    """Rows and columns for bfloat16, of which ``copies`` must find room."""
    if device.type == "cpu":
        return 5, 1031
    free, _ = torch.cuda.mem_get_info()
    if free < copies * 2 * ROWS * VOCAB:
        pytest.skip(f"{free / 2**30:.1f} GiB of memory are free: not enough for {copies} tensors")
    return ROWS, VOCAB


def edges(rows):
    """The first, and the last two of which lie beyond the limit."""
    return [0, rows - 2, rows - 1]


def logits_of(rows, columns, device):
    logits = torch.empty(rows, columns, dtype=torch.bfloat16, device=device)
    return logits.normal_(generator=torch.Generator(device).manual_seed(0))


@needs("sample_latent")
def test_sample_latent(device):
    rows, vocab = large(device, 2)
    logits, keys = logits_of(rows, vocab, device), torch.arange(rows, device=device)
    whole = lepo_kernels.sample_latent(logits, top_k=8, seed=3, row_keys=keys)
    some = edges(rows)
    alone = lepo_kernels.sample_latent(logits[some], top_k=8, seed=3, row_keys=keys[some])
    for a, b in zip(whole, alone, strict=True):
        assert torch.equal(a[some], b)


@needs("gather_log_probs", "gather_log_probs_backward")
def test_gather_log_probs_and_its_gradient(device):
    rows, vocab = large(device, 4)
    logits = logits_of(rows, vocab, device)
    ids = torch.tensor([0, vocab - 1], device=device).expand(rows, 2).contiguous()
    some = edges(rows)
    results = []
    for x, its_ids in ((logits, ids), (logits[some], ids[some])):
        x = x.detach().requires_grad_()
        chosen, lse, entropy = lepo_kernels.gather_log_probs(x, its_ids)
        (grad,) = torch.autograd.grad(chosen.sum() - lse.sum(), x)
        picked = (t[some] if len(t) == rows else t for t in (chosen, lse, entropy, grad))
        results.append([t.clone() for t in picked])
        del x, chosen, lse, entropy, grad
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


@needs("mix_embeddings", "mix_embeddings_backward")
def test_mix_embeddings_and_its_gradients(device):
    # The roles are exchanged: a table with more elements than 2^31, of which rows at the end count.
    vocab, width = large(device, 3)
    table = logits_of(vocab, width, device)
    ids = torch.tensor([edges(vocab)], device=device)
    weights = torch.tensor([[0.5, 0.25, 0.125]], device=device)
    few = torch.arange(3, device=device)[None]
    results = []
    for x, its_ids in ((table, ids), (table[ids[0]], few)):
        x, its_weights = x.detach().requires_grad_(), weights.clone().requires_grad_()
        mixed = lepo_kernels.mix_embeddings(its_ids, its_weights, x)
        dweights, dtable = torch.autograd.grad(mixed.sum(), (its_weights, x))
        results.append((mixed.detach(), dweights, dtable[its_ids[0]].clone()))
        del x, dtable
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)
