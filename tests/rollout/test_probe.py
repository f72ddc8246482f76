"""A model is served only if every way of running it gives the same logits; see the probe."""

import contextlib
import inspect

import pytest
import torch

from lepo_kernels.rollout import probe
from lepo_kernels.rollout.latent_generate import latent_generate
from lepo_kernels.rollout.model_cache import cache_argument
from lepo_kernels.rollout.policy_log_probs import policy_log_probs
from lepo_kernels.rollout.probe import check_served
from lepo_kernels.rollout.rotary import changes_with_length, original_context
from lepo_kernels.rollout.soft_embedding import SoftEmbedding
from tests.rollout.families import tiny_causal_lm
from tests.rollout.models import prompts, settings, tiny_model

CONTEXT = 12


@contextlib.contextmanager
def refused(match):
    """What is refused is refused before the first rollout: no probability was drawn from."""
    with pytest.raises(ValueError, match=match):
        yield


def needs_cache(model):
    try:
        cache_argument(model)
    except ValueError:
        pytest.skip("this transformers gives the model a cache of its own")


def check(model, *, columns=20, cache="dynamic", **settings):
    check_served(model, SoftEmbedding(model), cache, columns, **settings)


def falcon_h1(**changes):
    # It multiplies embeddings where it looks ids up, and nowhere else.
    return tiny_causal_lm("falcon_h1", **changes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_multiplier_on_the_path_of_ids_is_refused(dtype):
    match = r"^model: FalconH1ForCausalLM .* inputs_embeds differ .* of their spread \(bound 0\."
    with refused(match):
        latent_generate(falcon_h1().to(dtype), *prompts(), settings())
    latent_generate(falcon_h1(embedding_multiplier=1.0).to(dtype), *prompts(), settings())


@pytest.mark.parametrize("family", ["mamba", "falcon_mamba"])
def test_a_recurrence_that_reads_padding_is_refused(family):
    model = tiny_causal_lm(family)
    needs_cache(model)
    ids, mask = prompts()
    with refused("left-padded prompt's pass and cached steps"):
        latent_generate(model, ids, mask, settings())
    # Without padding it is served, and right.
    rollout = latent_generate(model, ids[:1], mask[:1], settings())
    policy = policy_log_probs(model, rollout, rollout.action_mask)
    torch.testing.assert_close(
        policy.log_prob, rollout.log_probs[rollout.action_mask], atol=1e-4, rtol=1e-4
    )


def test_alibi_with_a_static_cache_is_right():
    """Its biases come from the mask, which covers columns that are not filled yet."""
    model = tiny_causal_lm("bloom")
    ids, mask = prompts()
    rollout = latent_generate(model, ids, mask, settings(cache_implementation="static"))
    policy = policy_log_probs(model, rollout, rollout.action_mask)
    torch.testing.assert_close(
        policy.log_prob, rollout.log_probs[rollout.action_mask], atol=1e-4, rtol=1e-4
    )


# Random weights amplify more than trained ones; mixtures of experts may choose another one.
@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "gpt_oss", "llama", "gemma2", "bamba"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rounding_is_no_reason_to_refuse(family, dtype):
    for scale in (0.02, 0.2):
        check(tiny_causal_lm(family, initializer_range=scale, num_hidden_layers=4).to(dtype))


def test_autocast_and_dropout_are_no_reason_to_refuse():
    model = tiny_model("gpt2").train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        check(model)
    check(model)
    assert model.training


def planted(model, change):
    """The model, whose embeddings are changed in calls of the kind that ``change`` asks for."""
    plain = model.forward

    def forward(*args, **kwargs):
        return plain(*args, **change(dict(kwargs)))

    forward.__signature__ = inspect.signature(plain)
    model.forward = forward
    return model


def without_mask(inputs):
    return {**inputs, "attention_mask": None}


def scaled_embeddings(inputs):
    # A hundredth: far beyond rounding, and no jump in any sample.
    if inputs.get("inputs_embeds") is not None:
        inputs["inputs_embeds"] = inputs["inputs_embeds"] * 1.01
    return inputs


def shifted_positions(inputs):
    if "position_ids" in inputs and inputs["position_ids"].shape[1] == 1:
        inputs["position_ids"] = inputs["position_ids"] + 1
    return inputs


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("change", [without_mask, scaled_embeddings, shifted_positions])
def test_planted_faults_are_found(family, change):
    model = planted(tiny_model(family), change)
    with refused("^model: .* cannot be served"):
        check(model)


def test_a_model_that_fails_is_refused_by_name():
    def fail(inputs):
        raise RuntimeError("no kernel for this")

    match = "LlamaForCausalLM cannot be run by input_ids alone: RuntimeError: no kernel"
    with refused(match):
        check(planted(tiny_model("llama"), fail))


def test_logits_that_training_cannot_form_are_refused():
    model = tiny_model("llama")
    plain = model.forward

    def forward(*args, **kwargs):
        output = plain(*args, **kwargs)
        output.logits = output.logits.sinh()
        return output

    forward.__signature__ = inspect.signature(plain)
    model.forward = forward
    check(model)
    with refused("changes its logits after the head"):
        check(model, training=True)


def test_it_is_done_once_per_model_and_way(monkeypatch):
    done = []
    run = probe._Probe._run
    monkeypatch.setattr(
        probe._Probe, "_run", lambda self, *a, **k: done.append(a[0]) or run(self, *a, **k)
    )
    model = tiny_model("llama")
    check(model)
    first = len(done)
    assert first > 0
    check(model)
    assert len(done) == first
    check(model, cache="static")
    assert len(done) > first
    check(tiny_model("llama"), padded=False)
    assert not any("left-padded" in name for name in done[-3:])


def rotary(kind, **changes):
    longest = {"longrope": 4 * CONTEXT}.get(kind, CONTEXT)
    parameters = {
        "dynamic": {"factor": 4.0},
        "longrope": {
            "factor": 4.0,
            "short_factor": [1.0] * 4,
            "long_factor": [4.0, 5.0, 6.0, 7.0],
            "original_max_position_embeddings": CONTEXT,
        },
        "yarn": {"factor": 4.0, "original_max_position_embeddings": CONTEXT},
        "linear": {"factor": 2.0},
        "default": {},
    }[kind]
    return tiny_model(
        "llama",
        max_position_embeddings=longest,
        rope_parameters={"rope_type": kind, "rope_theta": 10000.0, **parameters},
        **changes,
    )


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_a_rotation_that_changes_with_the_length_is_served_up_to_its_context(kind, cache):
    model = rotary(kind)
    ids, mask = prompts()
    # 6 columns of prompt.
    within = settings(max_new_tokens=CONTEXT - 6, cache_implementation=cache)
    beyond = settings(max_new_tokens=CONTEXT - 5, cache_implementation=cache)
    for _ in range(2):
        with refused(
            rf"up to its original context of {CONTEXT} positions, .* may have {CONTEXT + 1}"
        ):
            latent_generate(model, ids, mask, beyond)
        # What the probe did past the context has left nothing behind.
        rollout = latent_generate(model, ids, mask, within)
        policy = policy_log_probs(model, rollout, rollout.action_mask)
        torch.testing.assert_close(
            policy.log_prob, rollout.log_probs[rollout.action_mask], atol=1e-4, rtol=1e-4
        )


@pytest.mark.parametrize("kind", ["yarn", "linear", "default"])
def test_a_rotation_that_is_the_same_at_every_length_is_served_beyond(kind):
    model = rotary(kind)
    rollout = latent_generate(model, *prompts(), settings())
    assert rollout.completion_ids.shape[1] + 6 > CONTEXT
    policy = policy_log_probs(model, rollout, rollout.action_mask)
    torch.testing.assert_close(
        policy.log_prob, rollout.log_probs[rollout.action_mask], atol=1e-4, rtol=1e-4
    )


def test_what_the_config_says_of_its_rotation():
    assert original_context(rotary("longrope").config) == CONTEXT
    assert original_context(rotary("dynamic").config) == CONTEXT
    assert original_context(tiny_model("gpt2").config) is None
    assert changes_with_length(rotary("dynamic").config)
    assert not changes_with_length(rotary("default").config)
    # One kind of rotation per kind of layer.
    assert original_context(tiny_model("gemma3").config) == 128
    assert not changes_with_length(tiny_model("gemma3").config)
