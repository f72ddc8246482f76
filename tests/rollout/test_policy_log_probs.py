import copy

import pytest
import torch

from lepo_kernels.rollout.latent_generate import latent_generate
from lepo_kernels.rollout.policy_log_probs import policy_log_probs
from tests.rollout.models import (
    CACHES,
    FAMILIES,
    PAD,
    VOCAB,
    in_float64,
    prompts,
    settings,
    tiny_model,
    train_with_checkpointing,
)
from tests.seeds import seeded
from tests.tolerances import assert_no_worse_than_plain

# Ids that end rows at different steps: padding on both sides.
MANY_EOS = tuple(range(20, 40))


def assert_agrees(model, rollout, temperature=1.0):
    """Neither the rollout nor the policy in one forward is further from float64 than the other."""
    rows = rollout.action_mask
    with torch.no_grad():
        ours = policy_log_probs(model, rollout, rows, temperature=temperature)
        exact = policy_log_probs(in_float64(model), rollout, rows, temperature=temperature)
    for x, y, z in (
        (ours.log_prob, rollout.log_probs[rows], exact.log_prob),
        (ours.entropy, rollout.entropy[rows], exact.entropy),
    ):
        assert_no_worse_than_plain(x, y, z, torch.float32, VOCAB)
        assert_no_worse_than_plain(y, x, z, torch.float32, VOCAB)


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("family", FAMILIES)
def test_agrees_with_the_rollout(family, cache):
    model = tiny_model(family)
    config = settings(cache_implementation=cache, eos_token_ids=MANY_EOS, temperature=0.8)
    rollout = latent_generate(model, *prompts(), config, seed=4)
    assert_agrees(model, rollout, temperature=0.8)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize(
    "overrides",
    [
        {"noise": "gaussian", "noise_scale": 0.3},
        {"noise": "dirichlet"},
        {"noise": "soft", "noise_scale": 0.5},
        {"noise": "categorical"},
        {"noise": "none"},
        {"do_sample": False},
        {"top_k": None, "min_p": 0.05},
        {"tau": 0.0},
        {"latent_length": 0},
        {"latent_eos": "stop"},
        # Some rows leave the latent phase after two steps, others later or never.
        {"cold_stop_entropy": 4.2, "cold_stop_steps": 2},
        # All rows do, so that discrete steps fall where others have noise on the embedding.
        {"noise": "soft", "cold_stop_entropy": 9.0, "cold_stop_steps": 1},
    ],
    ids=str,
)
def test_agrees_with_every_kind_of_rollout(overrides, attention):
    model = tiny_model("llama", attn_implementation=attention)
    config = settings(**({"eos_token_ids": MANY_EOS} | overrides))
    keys = torch.tensor([2**50, -1, 3])
    rollout = latent_generate(model, *prompts(), config, seed=4, row_keys=keys)
    assert_agrees(model, rollout)


def test_steps_come_in_row_major_order():
    model = tiny_model("llama")
    rollout = latent_generate(model, *prompts(), settings())
    whole = torch.zeros(3, 14)
    whole[rollout.completion_mask] = policy_log_probs(
        model, rollout, rollout.completion_mask
    ).log_prob.detach()
    rows = torch.zeros(3, 14, dtype=torch.bool)
    rows[2, [0, 3, 9]] = True
    rows[0, [1, 8]] = True
    part = policy_log_probs(model, rollout, rows)
    torch.testing.assert_close(part.log_prob, whole[rows], atol=1e-5, rtol=0)
    # Latent, discrete; latent, latent, discrete.
    assert (part.weights[:, 0] == 1).tolist() == [False, True, False, False, True]
    assert part.ids[1].tolist() == [rollout.completion_ids[0, 8]] * 12


def test_a_subset_of_rows_gives_the_same():
    model = tiny_model("llama")
    config = settings(noise="soft", noise_scale=0.5, eos_token_ids=MANY_EOS)
    rollout = latent_generate(model, *prompts(), config)
    # The rows with the shorter prompts: their common padding goes away.
    part = rollout.select(torch.tensor([2, 1]))
    policy = policy_log_probs(model, part, part.action_mask)
    torch.testing.assert_close(policy.log_prob, part.log_probs[part.action_mask], atol=1e-4, rtol=0)


def test_discrete_steps_alone_are_narrow():
    model = tiny_model("llama")
    rollout = latent_generate(model, *prompts(), settings())
    rows = rollout.action_mask & ~rollout.latent_mask
    policy = policy_log_probs(model, rollout, rows)
    assert policy.ids.tolist() == rollout.completion_ids[rows][:, None].tolist()
    assert (policy.weights == 1).all()


def test_no_steps():
    model = tiny_model("llama")
    rollout = latent_generate(model, *prompts(), settings())
    policy = policy_log_probs(model, rollout, torch.zeros(3, 14, dtype=torch.bool))
    assert policy.log_prob.shape == (0,)
    # Still part of the graph: with DDP every rank must run its backward.
    policy.log_prob.sum().backward()
    assert (model.model.layers[0].mlp.up_proj.weight.grad == 0).all()


def dense_log_probs(model, rollout, rows, temperature):
    """The same in plain torch: one-hot and soft rows times the whole table, and all logits."""
    embedding = model.get_input_embeddings()
    table = embedding.weight
    if embedding.padding_idx is not None:
        # Training leaves the row as it is; a rollout may well hold its id.
        fixed = torch.arange(VOCAB) == embedding.padding_idx
        table = torch.where(fixed[:, None], table.detach(), table)
    P = rollout.prompt_ids.shape[1]
    ids = torch.cat([rollout.prompt_ids, rollout.completion_ids], dim=1)
    mask = torch.cat([rollout.prompt_mask, rollout.completion_mask], dim=1).long()
    soft = torch.nn.functional.one_hot(ids, VOCAB).to(table.dtype)
    targets = soft[:, P:].clone()
    for b, t in rollout.latent_mask.nonzero().tolist():
        row = torch.zeros(VOCAB, dtype=table.dtype)
        row.index_add_(0, rollout.latent_ids[b, t], rollout.latent_weights[b, t].to(table.dtype))
        soft[b, P + t] = targets[b, t] = row
    embedded = soft @ table
    scale = getattr(model.get_input_embeddings(), "embed_scale", None)
    if scale is not None:
        embedded = embedded * scale.to(table.dtype)
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    logits = model(
        inputs_embeds=embedded, attention_mask=mask, position_ids=positions, use_cache=False
    ).logits[:, P - 1 : -1]
    log_pi = (logits / temperature).log_softmax(dim=-1)
    return (targets * log_pi).sum(dim=-1)[rows], -(log_pi.exp() * log_pi).sum(dim=-1)[rows]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", ["llama", "gemma2", "cohere"])
def test_gradients_equal_a_dense_construction_in_double(family, tied):
    model = tiny_model(family, tie_word_embeddings=tied)
    config = settings(eos_token_ids=MANY_EOS, temperature=0.8)
    rollout = latent_generate(model, *prompts(), config)
    # The row of padding in a mixture and as a token, which the draw need not have.
    rollout.latent_ids[0, 1, 0] = PAD
    rollout.completion_ids[:, 6] = PAD
    model, reference = in_float64(model), in_float64(model)
    rows = rollout.action_mask
    policy = policy_log_probs(model, rollout, rows, temperature=0.8)
    log_prob, entropy = dense_log_probs(reference, rollout, rows, 0.8)
    # Of float64: far above its roundings, also where a norm multiplies them by 1000.
    torch.testing.assert_close(policy.log_prob, log_prob)
    torch.testing.assert_close(policy.entropy, entropy)
    weight = torch.randn(
        log_prob.shape, generator=torch.Generator().manual_seed(seeded(1))
    ).double()
    (policy.log_prob * weight + 0.1 * policy.entropy).sum().backward()
    (log_prob * weight + 0.1 * entropy).sum().backward()
    for (name, p), q in zip(model.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, msg=name)
    mixed_in = rollout.latent_ids[rollout.latent_weights > 0].unique()
    embedding = model.get_input_embeddings()
    learns = embedding.weight.grad[mixed_in].abs().sum(dim=1) > 0
    assert (learns | (mixed_in == embedding.padding_idx)).all()


def test_checkpointed_training_gives_the_same_gradients():
    model = tiny_model("llama")
    rollout = latent_generate(model, *prompts(), settings())
    other = copy.deepcopy(model)
    train_with_checkpointing(other)
    for m in (model, other):
        policy_log_probs(m, rollout, rollout.action_mask).log_prob.sum().backward()
    for (name, p), q in zip(model.named_parameters(), other.named_parameters(), strict=True):
        torch.testing.assert_close(p.grad, q[1].grad, msg=name)
    assert other.training


def test_autocast():
    model = tiny_model("llama")
    rollout = latent_generate(model, *prompts(), settings())
    with torch.autocast("cpu", torch.bfloat16):
        policy = policy_log_probs(model, rollout, rollout.action_mask)
    assert policy.log_prob.dtype == torch.float32
    # bfloat16 has 8 bits: logits around 4 are known to about .03.
    torch.testing.assert_close(
        policy.log_prob, rollout.log_probs[rollout.action_mask], atol=0.3, rtol=0
    )
    policy.log_prob.sum().backward()
    assert model.get_input_embeddings().weight.grad.isfinite().all()


def test_bfloat16_weights():
    model = tiny_model("gemma2").bfloat16()
    rollout = latent_generate(model, *prompts(), settings())
    policy = policy_log_probs(model, rollout, rollout.action_mask)
    torch.testing.assert_close(
        policy.log_prob, rollout.log_probs[rollout.action_mask], atol=0.3, rtol=0
    )


def test_a_frozen_model_builds_no_graph():
    model = tiny_model("llama").requires_grad_(False)
    rollout = latent_generate(model, *prompts(), settings())
    assert not policy_log_probs(model, rollout, rollout.action_mask).log_prob.requires_grad


def test_bad_arguments_are_named():
    model = tiny_model("llama")
    rollout = latent_generate(model, *prompts(), settings())
    # A row that ends at its third step, whatever was drawn.
    rollout.completion_mask[1, 3:] = False
    rollout.action_mask[1, 3:] = False
    with pytest.raises(TypeError, match="step_mask: expected dtype bool"):
        policy_log_probs(model, rollout, rollout.action_mask.long())
    with pytest.raises(ValueError, match="step_mask: expected shape"):
        policy_log_probs(model, rollout, rollout.action_mask[:, 1:])
    with pytest.raises(ValueError, match="step_mask: expected steps inside completion_mask"):
        policy_log_probs(model, rollout, torch.ones_like(rollout.action_mask))
    with pytest.raises(ValueError, match="temperature"):
        policy_log_probs(model, rollout, rollout.action_mask, temperature=0.0)
