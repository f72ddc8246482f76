"""What methods make of a latent step's draw, in rollouts on either cache."""

import pytest
import torch

from lepo_kernels.rollout.latent_generate import latent_generate
from tests.rollout.models import CACHES, prompts, settings, tiny_model


@pytest.fixture(scope="module")
def llama():
    return tiny_model("llama")


def rollout(llama, **changes):
    ids, mask = prompts()
    return latent_generate(llama, ids, mask, settings(**changes), seed=5)


@pytest.mark.parametrize("cache", CACHES)
def test_a_mixture_keeps_its_largest_perturbed_logits(llama, cache):
    changes = {"top_k": 12, "tau": 0.7, "record_scores": "kept", "cache_implementation": cache}
    every, few = rollout(llama, **changes), rollout(llama, mixture_top_k=3, **changes)
    # The first step is drawn from the same logits.
    scores, ids = every.latent_scores[:, 0], every.latent_ids[:, 0]
    best = scores.topk(3).indices.sort().values
    assert torch.equal(few.latent_ids[:, 0], ids.gather(1, best))
    torch.testing.assert_close(few.latent_scores[:, 0], scores.gather(1, best))
    weights = (scores.gather(1, best) / 0.7).softmax(-1)
    torch.testing.assert_close(few.latent_weights[:, 0], weights, rtol=0, atol=1e-5)
    assert int(few.latent_count.max()) == 3


@pytest.mark.parametrize("cache", CACHES)
def test_draws_are_weighed_by_probability(llama, cache):
    changes = {"noise": "categorical", "num_draws": 4, "tau": 0.5, "cache_implementation": cache}
    alike = rollout(llama, **changes)
    weighed = rollout(llama, draw_weights="probability", **changes)
    assert torch.equal(weighed.latent_ids[:, 0], alike.latent_ids[:, 0])
    assert alike.latent_weights[:, 0].eq(0.25).all()
    ids, mask = prompts()
    logits = llama(ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0)).logits[
        :, -1
    ]
    expected = logits.gather(1, weighed.latent_ids[:, 0]).softmax(-1)
    torch.testing.assert_close(weighed.latent_weights[:, 0], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("cache", CACHES)
def test_an_id_ends_the_latent_phase_where_it_is_likeliest(llama, cache):
    plain = rollout(llama, cache_implementation=cache)
    # The shadow ids of the second latent step of a row, one of which thus ends its phase.
    end = int(plain.completion_ids[0, 1])
    ended = rollout(llama, latent_end_ids=(end,), cache_implementation=cache)
    length = plain.latent_mask.sum(1)
    for row in range(len(plain)):
        steps = plain.completion_ids[row, : int(length[row])]
        first = (steps == end).nonzero()
        expected = int(first[0]) + 1 if len(first) else int(length[row])
        assert int(ended.latent_mask[row].sum()) == expected, row
    assert int(ended.latent_mask[0].sum()) <= 2


def test_settings_that_do_not_go_together_are_refused():
    with pytest.raises(ValueError, match="record_scores: 'kept' is of noise='gumbel', got 'none'"):
        settings(noise="none", tau=0.5, record_scores="kept")
    with pytest.raises(ValueError, match="record_scores: 'embedding_noise' needs a top_k"):
        settings(noise="soft", tau=0.5, record_scores="embedding_noise", top_k=None)
    with pytest.raises(ValueError, match="draw_weights: noise='gumbel' ignores it"):
        settings(draw_weights="probability")
