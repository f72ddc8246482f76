"""The plain implementation computes what ours does, on tiny models: the same mixtures, ids, loss
and gradients. Else a comparison of their speed would say nothing.
"""

import pytest
import torch

from benchmarks.baselines.rollout import Settings, generate
from benchmarks.baselines.training import lepo_loss
from benchmarks.end_to_end.training import as_samples
from lepo_kernels.formulas.lepo_objective import lepo_objective
from lepo_kernels.rollout.config import LatentGenerationConfig
from lepo_kernels.rollout.latent_generate import latent_generate
from lepo_kernels.rollout.policy_log_probs import policy_log_probs
from tests.rollout.models import EOS, PAD, VOCAB, prompts, tiny_model

# What both implementations are told.
TOPK_FIRST = pytest.mark.parametrize("topk_first", [False, True])
SHARED = {"latent_length": 4, "max_new_tokens": 9, "top_k": 12, "top_p": 0.9, "temperature": 0.8}


def both(model, num_generations=2, eos=EOS, topk_first=False, **changes):
    """Our rollout and the plain one, of the same prompts."""
    ids, mask = prompts()
    shared = SHARED | changes
    config = LatentGenerationConfig(eos_token_ids=(eos,), pad_token_id=PAD, **shared)
    settings = Settings(
        eos_token_id=eos,
        pad_token_id=PAD,
        num_generations=num_generations,
        topk_first=topk_first,
        **shared,
    )
    ours = latent_generate(model, ids, mask, config, num_return_sequences=num_generations)
    return as_samples(ours), generate(model, ids, mask, settings)


def dense(samples):
    shape = (*samples.soft_ids.shape[:2], VOCAB)
    return torch.zeros(shape).scatter_add(-1, samples.soft_ids, samples.soft_weights)


# Qwen2 has biases, Llama has none: the families that the baseline serves.
@pytest.mark.parametrize("family", ["llama", "qwen2"])
@TOPK_FIRST
def test_mixtures_without_noise_are_those_of_ours(family, topk_first):
    ours, plain = both(tiny_model(family), topk_first=topk_first, noise="none", max_new_tokens=4)
    assert torch.equal(plain.ids, ours.ids)
    assert torch.equal(plain.mask, ours.mask)
    # Rounding of four float32 forwards through random layers.
    torch.testing.assert_close(dense(plain), dense(ours), rtol=0, atol=1e-5)
    assert 1 < (plain.soft_weights > 0).sum(-1).max() < 12, "top-p must drop something"


@TOPK_FIRST
def test_discrete_steps_and_ends_of_rows_are_those_of_ours(topk_first):
    model = tiny_model("llama")
    # One kept entry leaves nothing to chance.
    ours, _ = both(model, top_k=1)
    lengths = set()
    for eos in ours.ids[:, ours.prompt_length + 4 :].unique().tolist():
        ours, plain = both(model, num_generations=1, top_k=1, eos=eos, topk_first=topk_first)
        assert torch.equal(plain.ids, ours.ids)
        assert torch.equal(plain.mask, ours.mask)
        lengths.add(tuple(plain.mask[:, plain.prompt_length :].sum(-1).tolist()))
    assert any(len(set(some)) > 1 for some in lengths), "no two rows of a batch ended apart"


@TOPK_FIRST
def test_gumbel_noise_weighs_the_entries_that_the_filters_keep(topk_first):
    torch.manual_seed(0)
    model = tiny_model("llama")
    _, calm = both(model, noise="none", max_new_tokens=4)
    _, noisy = both(model, max_new_tokens=4, topk_first=topk_first)
    first_kept, first_used = dense(calm)[:, 0] > 0, dense(noisy)[:, 0]
    assert not (first_used[~first_kept] > 0).any()
    torch.testing.assert_close(noisy.soft_weights.sum(-1), torch.ones(6, 4))
    assert not torch.equal(first_used[0], first_used[1]), "samples of a prompt differ"


@pytest.mark.parametrize("off_policy", [False, True])
def test_loss_and_gradients_are_those_of_ours(off_policy):
    # Without a padding id: nn.Embedding gives the row of one no gradient, a matrix product does.
    model = tiny_model("llama", pad_token_id=None, tie_word_embeddings=True).double()
    ids, mask = prompts()
    config = LatentGenerationConfig(eos_token_ids=(EOS,), pad_token_id=PAD, **SHARED)
    rollout = latent_generate(model, ids, mask, config, num_return_sequences=2)
    # Rows of different lengths.
    rollout.completion_mask[1, 6:] = False
    rollout.action_mask[1, 6:] = False
    rows = rollout.action_mask
    advantages = torch.tensor([1.0, -0.5, 0.3, 0.0, -1.2, 0.7], dtype=torch.float64)
    generator = torch.Generator().manual_seed(2)
    # Far enough off that some ratios are clipped.
    old = torch.randn(rows.shape, generator=generator, dtype=torch.float64) * 0.2
    old = old + rollout.log_probs if off_policy else None

    scored = policy_log_probs(model, rollout, rows, temperature=config.temperature)
    ours = lepo_objective(
        scored.logits,
        scored.lse,
        scored.weights,
        rollout.latent_mask[rows],
        advantages[:, None].expand(rows.shape)[rows],
        (rows / rows.sum())[rows],
        old_log_prob=None if old is None else old[rows],
    )
    plain, cross_entropy = lepo_loss(
        model,
        as_samples(rollout),
        advantages,
        temperature=config.temperature,
        old_log_probs=old,
    )
    assert (ours.clipped != 0).any() == off_policy
    # The plain one takes float32 logits: 1e-7 of terms of about 5.
    torch.testing.assert_close(plain.double(), ours.loss, rtol=0, atol=1e-6)
    assert float(cross_entropy) > 0
    names, parameters = zip(*model.named_parameters(), strict=True)
    got = torch.autograd.grad(plain, parameters)
    wanted = torch.autograd.grad(ours.loss, parameters)
    for name, one, other in zip(names, got, wanted, strict=True):
        assert float(other.abs().max()) > 1e-3, name
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
