"""The cache goes to the model by its name, and is used."""

import inspect

import pytest
import torch
from transformers.cache_utils import DynamicCache, StaticCache

from lepo_kernels.rollout.latent_generate import latent_generate
from lepo_kernels.rollout.model_cache import cache_argument, check_grown, make_cache
from tests.rollout.families import tiny_causal_lm
from tests.rollout.models import prompts, settings, tiny_model


class OldName:
    def forward(self, input_ids, past_key_values=None):
        raise NotImplementedError


class NewName:
    def forward(self, input_ids, cache=None, past_key_values=None):
        raise NotImplementedError


class Swallows:
    def forward(self, input_ids, **kwargs):
        raise NotImplementedError


def test_the_argument_is_found_by_its_name():
    assert cache_argument(OldName()) == "past_key_values"
    assert cache_argument(NewName()) == "cache"
    assert cache_argument(tiny_model("llama")) in ("cache", "past_key_values")
    with pytest.raises(ValueError, match=r"model: Swallows\.forward takes no key-value cache"):
        cache_argument(Swallows())


def test_a_forward_on_the_instance_does_not_hide_it():
    model = OldName()
    model.forward = lambda *args, **kwargs: None
    assert cache_argument(model) == "past_key_values"


def test_caches_are_of_the_kind_asked_for():
    model = tiny_model("llama")
    assert isinstance(make_cache(model, "dynamic", 8), DynamicCache)
    assert isinstance(make_cache(model, "static", 8), StaticCache)


# One without any cache, and one with a state under another name.
@pytest.mark.parametrize("family", ["openai-gpt", "rwkv"])
def test_models_without_a_cache_are_refused(family):
    with pytest.raises(ValueError, match="takes no key-value cache"):
        latent_generate(tiny_causal_lm(family), *prompts(), settings())


# A state alone, where transformers gives it no cache of its own; states and keys; keys alone.
@pytest.mark.parametrize("family", ["mamba2", "jamba", "llama"])
def test_recurrent_models_have_grown(family):
    model = tiny_causal_lm(family)
    ids, mask = prompts()
    try:
        name = cache_argument(model)
    except ValueError:
        assert family == "mamba2"
        return
    cache = make_cache(model, "dynamic", 8)
    with pytest.raises(ValueError, match="does not use the cache it is given: after 6 columns"):
        check_grown(model, cache, 6)
    with torch.no_grad():
        model(input_ids=ids, attention_mask=mask, use_cache=True, **{name: cache})
    check_grown(model, cache, 6)


def test_a_model_that_forgets_its_cache_is_refused():
    model = tiny_model("llama")
    plain = model.forward
    name = cache_argument(model)

    def forward(*args, **kwargs):
        return plain(*args, **{**kwargs, name: None, "use_cache": False})

    forward.__signature__ = inspect.signature(plain)
    model.forward = forward
    with pytest.raises(ValueError, match="LlamaForCausalLM does not use the cache it is given"):
        latent_generate(model, *prompts(), settings())
