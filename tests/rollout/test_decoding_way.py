"""The kind of cache, and compiled steps: what is asked for is done or refused by name."""

import logging

import pytest
import torch

from lepo_kernels.rollout import decoding_way as module
from lepo_kernels.rollout.config import LatentGenerationConfig
from lepo_kernels.rollout.decoding_way import DecodingWay, decoding_way
from lepo_kernels.rollout.latent_generate import latent_generate
from tests.rollout.families import tiny_causal_lm
from tests.rollout.models import prompts, settings, tiny_model

DYNAMIC = DecodingWay("dynamic", False)
STATIC = DecodingWay("static", False)
COMPILED = DecodingWay("static", True)


@pytest.fixture
def on_cuda(monkeypatch):
    """As if models were on a CUDA device."""
    monkeypatch.setattr(module, "_device_of", lambda base: torch.device("cuda"))
    find_spec = module.importlib.util.find_spec
    monkeypatch.setattr(
        module.importlib.util, "find_spec", lambda name: name == "triton" or find_spec(name)
    )


@pytest.mark.parametrize(
    ("cache", "compiled", "way"),
    [
        ("auto", None, DYNAMIC),
        ("auto", False, DYNAMIC),
        ("auto", True, COMPILED),
        ("dynamic", None, DYNAMIC),
        ("static", None, STATIC),
        ("static", True, COMPILED),
    ],
)
def test_ways_on_a_cpu(cache, compiled, way):
    config = settings(cache_implementation=cache, compile_rollout=compiled)
    assert decoding_way(tiny_model("llama"), config) == way


@pytest.mark.parametrize(
    ("cache", "compiled", "way"),
    [
        ("auto", None, COMPILED),
        ("auto", False, DYNAMIC),
        ("dynamic", None, DYNAMIC),
        ("static", None, COMPILED),
        ("static", False, STATIC),
    ],
)
def test_ways_on_cuda(on_cuda, cache, compiled, way):
    config = settings(cache_implementation=cache, compile_rollout=compiled)
    assert decoding_way(tiny_model("llama"), config) == way


def hooked():
    model = tiny_model("llama")
    model.model.layers[0].register_forward_hook(lambda *_: None)
    return model


def flash():
    model = tiny_model("llama")
    model.config._attn_implementation = "flash_attention_2"
    return model


def quantised():
    model = tiny_model("llama")
    model.is_quantized = True
    return model


def spread():
    model = tiny_model("llama")
    model.model.norm.to("meta")
    return model


REASONS = {
    "hooks": (hooked, {}, "modules of LlamaForCausalLM have forward hooks"),
    "flash": (flash, {}, "attention 'flash_attention_2' does not run on a static cache"),
    "quantised": (quantised, {}, "LlamaForCausalLM is quantised"),
    "spread": (spread, {}, "spread over several devices"),
    "recurrent": (lambda: tiny_causal_lm("bamba"), {}, "Bamba"),
    "wide": (
        lambda: tiny_model("llama", vocab_size=300),
        {"top_k": None},
        "top_k None leaves mixtures wider than 256",
    ),
}


@pytest.mark.parametrize("case", REASONS)
def test_what_cannot_be_compiled_is_refused_or_said_once(on_cuda, case, caplog):
    make, changes, reason = REASONS[case]
    model = make()
    with pytest.raises(ValueError, match=rf"^compile_rollout: .*{reason}"):
        decoding_way(model, settings(compile_rollout=True, **changes))
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert decoding_way(model, settings(**changes)) == DYNAMIC
    assert [record.message for record in caplog.records] == [
        message for message in caplog.messages if reason in message
    ]
    assert len(caplog.records) == 1


@pytest.mark.parametrize("case", ["flash", "recurrent", "wide"])
def test_what_no_static_cache_holds_is_refused(case):
    make, changes, _ = REASONS[case]
    with pytest.raises(ValueError, match=r"^cache_implementation: .*; take 'dynamic'"):
        latent_generate(make(), *prompts(), settings(cache_implementation="static", **changes))


def test_settings_that_contradict_each_other_are_named():
    ends = {"eos_token_ids": (1,), "pad_token_id": 0}
    with pytest.raises(ValueError, match=r"^compile_rollout: .*'auto' or 'static'"):
        LatentGenerationConfig(**ends, compile_rollout=True, cache_implementation="dynamic")
    with pytest.raises(TypeError, match=r"^compile_rollout: expected True, False or None, got int"):
        LatentGenerationConfig(**ends, compile_rollout=1)
