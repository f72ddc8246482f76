"""Mixtures of experts with ``output_router_logits``: served, their loss as transformers adds it."""

import pytest
import torch

from lepo_kernels.rollout.latent_generate import latent_generate
from lepo_kernels.rollout.policy_log_probs import policy_log_probs
from lepo_kernels.rollout.policy_loss import policy_loss
from tests.rollout.families import tiny_causal_lm
from tests.rollout.models import prompts, settings

FAMILIES = ("mixtral", "qwen3_moe", "gpt_oss")


def model_and_rollout(family, **changes):
    model = tiny_causal_lm(family, output_router_logits=True, **changes)
    return model, latent_generate(model, *prompts(), settings())


def loss_of(model, rollout, **options):
    rows = rollout.action_mask
    weights = torch.linspace(0.1, 1, int(rows.sum()))
    return policy_loss(model, rollout, rows, weights - 0.5, weights, **options)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_auxiliary_loss_is_not_taken_for_logits(family):
    model, rollout = model_and_rollout(family)
    policy = policy_log_probs(model, rollout, rollout.action_mask)
    torch.testing.assert_close(
        policy.log_prob, rollout.log_probs[rollout.action_mask], atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_added_as_transformers_does(family):
    # No latent step, so that transformers can run the very same tokens.
    model = tiny_causal_lm(family, output_router_logits=True, router_aux_loss_coef=0.3)
    ids, mask = prompts()
    config = settings(latent_length=0, latent_suffix_ids=())
    rollout = latent_generate(model, ids, mask, config)
    result = loss_of(model, rollout, router_loss_scale=0.5)
    columns = torch.cat([rollout.prompt_ids, rollout.completion_ids[:, :-1]], dim=1)
    used = torch.cat([rollout.prompt_mask, rollout.completion_mask[:, :-1]], dim=1).long()
    positions = (used.cumsum(1) - 1).clamp(min=0)
    output = model(columns, attention_mask=used, position_ids=positions, use_cache=False)
    torch.testing.assert_close(result.router_loss, output.aux_loss)
    model.config.output_router_logits = False
    plain = loss_of(model, rollout)
    assert plain.router_loss is None
    torch.testing.assert_close(result.loss, plain.loss + 0.5 * 0.3 * output.aux_loss)
    # The gate learns from it, too.
    gate = next(
        p for name, p in model.named_parameters() if "gate.weight" in name or "router" in name
    )
    (wanted,) = torch.autograd.grad(plain.loss + 0.15 * output.aux_loss, gate)
    (got,) = torch.autograd.grad(result.loss, gate)
    torch.testing.assert_close(got, wanted)


def test_a_coefficient_that_nobody_names(monkeypatch):
    model, rollout = model_and_rollout("mixtral")
    del model.router_aux_loss_coef
    vars(model.config).pop("router_aux_loss_coef")
    monkeypatch.delattr(type(model.config), "router_aux_loss_coef")
    with pytest.raises(ValueError, match="names no router_aux_loss_coef"):
        loss_of(model, rollout)
