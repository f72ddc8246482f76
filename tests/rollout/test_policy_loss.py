"""The loss of a rollout's steps against what it fuses: their log-probabilities, then the loss."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model

from lepo_kernels import lepo_objective
from lepo_kernels.rollout.latent_generate import latent_generate
from lepo_kernels.rollout.policy_log_probs import policy_log_probs
from lepo_kernels.rollout.policy_loss import policy_loss
from tests.rollout.models import (
    VOCAB,
    in_float64,
    prompts,
    settings,
    tiny_model,
    train_with_checkpointing,
)
from tests.seeds import seeded
from tests.tolerances import assert_no_worse_than_plain

# Of the old log-probabilities: ratios on all sides of 1 -+ 0.2 and of 2, and too far from them for
# another rounding to move a row across, also in bfloat16.
SHIFTS = torch.tensor([-1.0, -0.45, 0.02, 0.45, 1.0])


def off_policy(log_prob, kept):
    """What the loss needs to know of each step; all that it may know."""
    chance = torch.Generator().manual_seed(seeded(3))
    count = len(log_prob)
    row_weights = torch.rand(count, generator=chance)
    row_weights[::5] = 0
    facts = (torch.randn(count, generator=chance), row_weights)
    shifts = SHIFTS[torch.randint(len(SHIFTS), (count,), generator=chance)]
    return facts, {
        "old_log_prob": log_prob.float() + shifts,
        "ref_log_probs": -4 + torch.randn(count, kept, generator=chance),
        "beta": 0.1,
        "delta": 2.0,
    }


def composed(model, rollout, rows, advantages, row_weights, *, ref_log_probs, **options):
    scored = policy_log_probs(model, rollout, rows, temperature=options.pop("temperature"))
    facts = (scored.weights, rollout.latent_mask[rows], advantages, row_weights)
    ref_log_probs = ref_log_probs[:, : scored.ids.shape[1]]
    return lepo_objective(scored.logits, scored.lse, *facts, ref_log_probs=ref_log_probs, **options)


def assert_agrees(model, rollout, rows, dtype=torch.float32):
    """Against float64, what is fused may be as far off as what it fuses.

    Where an embedding is nearly 0 (a row of padding with most of a mixture's weight), its norm
    multiplies the gradient by up to 1000, errors included: no constant fits that, the other's error
    does. ``dtype`` is the coarsest that is computed in.
    """
    wide = in_float64(model)
    with torch.no_grad():
        now = policy_log_probs(wide, rollout, rows, temperature=0.8).log_prob
    facts, options = off_policy(now, 12)
    copies = (policy_loss, model), (composed, copy.deepcopy(model)), (composed, wide)
    results = []
    for function, each in copies:
        result = function(each, rollout, rows, *facts, temperature=0.8, **options)
        (2 * result.loss).backward()
        results.append((result, [p.grad for p in each.parameters() if p.requires_grad]))
    (ours, gradients), (plain, plain_gradients), (oracle, oracle_gradients) = results
    assert ours.router_loss is None
    assert torch.equal(ours.clipped, oracle.clipped)
    # The loss is a sum over rows that cancels; all else is about as large as its terms.
    advantages, row_weights = facts
    scores = advantages.abs() * torch.maximum(oracle.ratio, oracle.log_prob.abs())
    terms = (row_weights * (scores + options["beta"] * oracle.kl)).sum()
    for name in ("loss", "log_prob", "kl", "ratio"):
        each = (getattr(x, name) for x in (ours, plain, oracle))
        assert_no_worse_than_plain(*each, dtype, VOCAB, terms if name == "loss" else None)
    for each in zip(gradients, plain_gradients, oracle_gradients, strict=True):
        assert_no_worse_than_plain(*each, dtype, VOCAB)


# A table that is also the head, with a softcap; a head of its own; one with a scale.
@pytest.mark.parametrize(("family", "tied"), [("gemma2", True), ("llama", False), ("cohere", True)])
def test_agrees_with_what_it_fuses(family, tied):
    model = tiny_model(family, tie_word_embeddings=tied)
    rollout = latent_generate(model, *prompts(), settings(temperature=0.8))
    assert_agrees(model, rollout, rollout.action_mask)


def test_discrete_steps_alone_have_one_id():
    model = tiny_model("llama")
    rollout = latent_generate(model, *prompts(), settings())
    assert_agrees(model, rollout, rollout.action_mask & ~rollout.latent_mask)


def test_a_head_with_an_adapter():
    config = LoraConfig(r=4, target_modules=["q_proj", "lm_head"], task_type="CAUSAL_LM")
    model = get_peft_model(tiny_model("llama", tie_word_embeddings=False), config).eval()
    rollout = latent_generate(model, *prompts(), settings())
    assert_agrees(model, rollout, rollout.action_mask)


def test_checkpointed_layers_and_autocast():
    model = tiny_model("llama")
    rollout = latent_generate(model, *prompts(), settings())
    train_with_checkpointing(model)
    with torch.autocast("cpu", torch.bfloat16):
        assert_agrees(model, rollout, rollout.action_mask, torch.bfloat16)


def test_no_step_at_all():
    model = tiny_model("llama")
    rollout = latent_generate(model, *prompts(), settings())
    result = policy_loss(model, rollout, torch.zeros(3, 14, dtype=torch.bool), *torch.ones(2, 0))
    result.loss.backward()
    assert float(result.loss.detach()) == 0
    assert model.lm_head.weight.grad.eq(0).all()


def test_bad_arguments_are_named():
    model = tiny_model("llama")
    rollout = latent_generate(model, *prompts(), settings())
    ones = torch.ones(int(rollout.action_mask.sum()))
    with pytest.raises(ValueError, match="temperature"):
        policy_loss(model, rollout, rollout.action_mask, ones, ones, temperature=0.0)
    with pytest.raises(ValueError, match="advantages: expected shape"):
        policy_loss(model, rollout, rollout.action_mask, ones[1:], ones)
    with pytest.raises(ValueError, match="ref_log_probs: needed when beta is not 0"):
        policy_loss(model, rollout, rollout.action_mask, ones, ones, beta=0.1)
