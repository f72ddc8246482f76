"""Answers on top of ablated latents, beside forwards of whole sequences that are made by hand."""

import dataclasses

import pytest
import torch

from lepo_kernels.ops.sample_latent import sample_latent
from lepo_kernels.rollout.ablation import ABLATIONS, ablated, latent_phase
from lepo_kernels.rollout.continuation import answer_after
from lepo_kernels.rollout.latent_generate import latent_generate
from lepo_kernels.rollout.policy_log_probs import policy_log_probs
from lepo_kernels.rollout.soft_embedding import add_embedding_noise
from tests.rollout.models import CACHES, prompts, settings, tiny_model

BLANK = 9
# So many ids end a row that rows of 14 steps end one after the other.
MANY_EOS = tuple(range(20, 50))
# A phase that ends early in some rows, rows that end within it or soon after it, noise on the
# embeddings, and no noise at all.
SETTINGS = {
    "gumbel": {},
    "uneven": {"cold_stop_steps": 1},
    "stopped": {"latent_eos": "stop", "eos_token_ids": MANY_EOS},
    "soft": {"noise": "soft", "noise_scale": 0.5},
    "greedy": {"do_sample": False},
    "no suffix": {"latent_suffix_ids": ()},
}


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def model(request):
    return tiny_model(request.param)


def generate(model, config):
    return latent_generate(
        model, *prompts(), config, num_return_sequences=2, seed=5, row_keys=torch.arange(6)
    )


def case(model, name, **changes):
    """Settings by their name; the phase of "uneven" ends between the rows' first entropies."""
    config = settings(**SETTINGS[name], **changes)
    if name == "uneven":
        first = generate(model, config).entropy[:, 0].sort().values
        config = dataclasses.replace(config, cold_stop_entropy=float(first[2:4].mean()))
    return config


def rollouts(model, config):
    """A rollout, and the same rows in another order: each row's donor is another prompt's."""
    plain = generate(model, config)
    return plain, plain.select(torch.arange(6).roll(2))


def one_by_one(model, inputs, row, first_step, config, seed):
    """Decode a row by full forwards over [1, S, D] embeddings, without a cache."""
    table = model.get_input_embeddings().weight
    ids = []
    for step in range(first_step, config.max_new_tokens):
        logits = model(inputs_embeds=inputs).logits[:, -1]
        drawn = sample_latent(
            logits,
            temperature=config.temperature,
            top_k=config.top_k,
            top_p=config.top_p,
            min_p=config.min_p,
            noise="gumbel" if config.do_sample else "none",
            seed=seed,
            row_keys=torch.tensor([row]),
            step=step,
        )
        ids.append(int(drawn.token))
        if ids[-1] in config.eos_token_ids:
            break
        inputs = torch.cat([inputs, table[drawn.token][:, None]], dim=1)
    return ids


def by_hand(model, kind, plain, donors, row, config):
    """The latent inputs [n, D] of a row under an ablation, from the record alone."""
    table = model.get_input_embeddings().weight
    source = donors if kind == "shuffle" else plain
    fed = []
    for step in range(int(source.latent_mask[row].sum())):
        weights, ids = source.latent_weights[row, step], source.latent_ids[row, step]
        mixed = (weights[:, None] * table[ids]).sum(0, keepdim=True)
        if source.embedding_noise:
            keys = source.row_keys[row : row + 1]
            strength, seed = source.embedding_noise, source.seed
            mixed = add_embedding_noise(mixed, strength, seed=seed, row_keys=keys, step=step)
        if kind == "blank":
            mixed = table[BLANK][None]
        if kind == "argmax":
            mixed = table[ids[weights.argmax()]][None]
        fed.append(mixed)
    return torch.cat(fed[-1:] if kind == "last_only" else fed)


@torch.no_grad()
@pytest.mark.parametrize("kind", ABLATIONS)
@pytest.mark.parametrize("name", SETTINGS)
def test_each_ablation_equals_a_forward_made_by_hand(model, name, kind):
    config = case(model, name)
    plain, donors = rollouts(model, config)
    phase = ablated(
        model,
        kind,
        latent_phase(model, plain),
        donors=latent_phase(model, donors),
        blank_id=BLANK,
    )
    found = answer_after(model, plain, phase, config)
    table = model.get_input_embeddings().weight
    answers = 0
    for row in range(len(plain)):
        n = int(plain.latent_mask[row].sum())
        inputs = by_hand(model, kind, plain, donors, row, config)
        torch.testing.assert_close(phase.inputs[row, : len(inputs)], inputs, atol=1e-5, rtol=1e-5)
        assert int(found.latent_mask[row].sum()) == len(inputs)
        said = found.completion_ids[row][found.completion_mask[row]].tolist()
        if int(plain.completion_mask[row].sum()) == n:  # it ended within its latent phase
            assert len(said) == len(inputs)
            assert not found.truncated[row]
            continue
        prompt = plain.prompt_ids[row][plain.prompt_mask[row]]
        suffix = torch.tensor(config.latent_suffix_ids, dtype=torch.int64)
        whole = torch.cat([table[prompt], inputs, table[suffix]])[None]
        expected = one_by_one(model, whole, row, n + len(suffix), config, plain.seed)
        assert said[len(inputs) :] == suffix.tolist() + expected
        assert bool(found.truncated[row]) == (expected[-1] not in config.eos_token_ids)
        answers += 1
    assert answers > 0
    if name == "uneven":
        assert len(set(plain.latent_mask.sum(1).tolist())) > 1
    if name == "stopped":
        assert answers < len(plain)


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("name", SETTINGS)
def test_with_its_own_latents_a_row_says_what_it_said(model, name, cache):
    config = case(model, name, cache_implementation=cache)
    plain, _ = rollouts(model, config)
    same = answer_after(model, plain, latent_phase(model, plain), config)
    # At latent steps the rollout notes the likeliest token, this record the mixture's heaviest.
    said = ~plain.latent_mask
    assert torch.equal(same.completion_ids[said], plain.completion_ids[said])
    for name in ("completion_mask", "latent_mask", "truncated"):
        assert torch.equal(getattr(same, name), getattr(plain, name)), name
    sampled = plain.action_mask & ~plain.latent_mask
    assert torch.equal(same.action_mask, sampled)
    # Logits of order 10, formed in another order of the same float32 sums.
    expected = plain.log_probs.masked_fill(~sampled, 0.0)
    torch.testing.assert_close(same.log_probs, expected, atol=1e-4, rtol=1e-4)


# Sliding windows, embeddings that are scaled, logits that are capped.
@pytest.mark.parametrize("family", ["mistral", "gemma2", "gemma3", "granite"])
def test_every_family_says_what_it_said(family):
    model, config = tiny_model(family), settings()
    plain, _ = rollouts(model, config)
    same = answer_after(model, plain, latent_phase(model, plain), config)
    said = ~plain.latent_mask
    assert torch.equal(same.completion_ids[said], plain.completion_ids[said])


@pytest.mark.parametrize("kind", ABLATIONS)
def test_the_record_is_what_a_training_forward_sees(kind):
    model, config = tiny_model("llama"), settings()
    plain, donors = rollouts(model, config)
    phase, others = latent_phase(model, plain), latent_phase(model, donors)
    phase = ablated(model, kind, phase, donors=others, blank_id=BLANK)
    found = answer_after(model, plain, phase, config)
    scored = policy_log_probs(model, found, found.action_mask).log_prob
    torch.testing.assert_close(
        scored.detach(), found.log_probs[found.action_mask], atol=1e-4, rtol=1e-4
    )


def test_ablations_change_what_is_said():
    model, config = tiny_model("llama"), settings()
    plain, donors = rollouts(model, config)
    phase, others = latent_phase(model, plain), latent_phase(model, donors)
    for kind in ABLATIONS:
        given = ablated(model, kind, phase, donors=others, blank_id=BLANK)
        said = answer_after(model, plain, given, config)
        sampled = plain.action_mask & ~plain.latent_mask
        tail = int(sampled[0].sum())
        assert said.completion_ids[:, -tail:].tolist() != plain.completion_ids[:, -tail:].tolist()


def test_a_progress_that_raises_ends_the_work(model):
    class StopHereError(Exception):
        pass

    def progress(done, total):
        assert (done, total) == (1, 8)  # 14 steps less 4 latent ones and 2 of suffix
        raise StopHereError

    plain, _ = rollouts(model, settings())
    with pytest.raises(StopHereError):
        answer_after(model, plain, latent_phase(model, plain), settings(), progress=progress)


def test_what_an_ablation_lacks_is_named(model):
    phase = latent_phase(model, rollouts(model, settings())[0])
    with pytest.raises(ValueError, match=r"kind: .*'mean'"):
        ablated(model, "mean", phase)
    with pytest.raises(ValueError, match="rollout: expected latent steps"):
        latent_phase(model, generate(model, settings(latent_length=0)))
    with pytest.raises(ValueError, match="donors: "):
        ablated(model, "shuffle", phase)
    with pytest.raises(ValueError, match="blank_id: "):
        ablated(model, "blank", phase)
