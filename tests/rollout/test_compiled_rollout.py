"""Compiled steps choose what eager ones choose, and are compiled once per size."""

import copy
import functools
import gc
import itertools
import logging
import weakref

import pytest
import torch
from torch._dynamo.exc import Unsupported
from torch._dynamo.testing import CompileCounterWithBackend

from lepo_kernels.rollout import compiled_steps
from lepo_kernels.rollout import latent_generate as latent_generate_module
from lepo_kernels.rollout.compiled_steps import KEPT, round_columns, round_rows
from lepo_kernels.rollout.decoding_way import DecodingWay
from lepo_kernels.rollout.latent_generate import latent_generate
from tests.rollout.models import prompts, settings, tiny_model
from tests.rollout.test_latent_generate import MANY_EOS, assert_same


@pytest.fixture
def compilations(monkeypatch):
    """Counts graphs, which are traced in full but run by torch's own kernels: that is quicker."""
    counter = CompileCounterWithBackend("aot_eager")
    compile_step = functools.partial(torch.compile, fullgraph=True, dynamic=False, backend=counter)
    monkeypatch.setattr(compiled_steps, "compile_step", compile_step)
    return counter


def test_no_step_and_no_rollout_compiles_again(compilations):
    model, (ids, mask) = tiny_model("llama"), prompts()
    config = settings(compile_rollout=True)
    compiled = latent_generate(model, ids, mask, config, seed=3)
    assert_same(compiled, latent_generate(model, ids, mask, settings(), seed=3))
    assert compilations.frame_count == 2  # a latent step, a token's step
    # Other seeds, keys and weights; no padding; another width of the prompts; three rows that share
    # a prompt.
    with torch.no_grad():
        model.lm_head.weight.mul_(0.5)
    keys = torch.tensor([2**40, 0, -7])
    for other_ids, other_mask, samples in (
        (ids, mask, 1),
        (ids, torch.ones_like(mask), 1),
        (ids[:, 1:], mask[:, 1:], 1),
        (ids[:1], mask[:1], 3),
    ):
        given = {"num_return_sequences": samples, "row_keys": keys, "seed": 2**64 - 5}
        compiled = latent_generate(model, other_ids, other_mask, config, **given)
        assert_same(compiled, latent_generate(model, other_ids, other_mask, settings(), **given))
    assert compilations.frame_count == 2


def test_few_sizes_are_kept(monkeypatch):
    monkeypatch.setattr(compiled_steps, "compile_step", lambda step: step)
    model = tiny_model("llama")
    for temperature in range(1, KEPT + 3):
        config = settings(compile_rollout=True, temperature=float(temperature))
        latent_generate(model, *prompts(), config)
    assert [size.config.temperature for size in compiled_steps._kept[model]] == [3, 4, 5, 6]


def test_what_is_kept_goes_with_the_model(compilations):
    model = tiny_model("llama")
    # Latent steps alone: one graph.
    config = settings(latent_length=2, max_new_tokens=2, latent_suffix_ids=(), compile_rollout=True)
    latent_generate(model, *prompts(), config)
    assert compilations.frame_count == 1
    copy.deepcopy(model)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def refusing(step):
    def refuse(base):
        raise Unsupported("a graph break\nand where it is", [])

    return refuse


def test_what_torch_cannot_compile_is_an_error_or_runs_eager(monkeypatch, caplog):
    monkeypatch.setattr(compiled_steps, "compile_step", refusing)
    model = tiny_model("llama")
    with pytest.raises(Unsupported):
        latent_generate(model, *prompts(), settings(compile_rollout=True))
    # As where the settings leave it open, and the device is a GPU.
    monkeypatch.setattr(
        latent_generate_module, "decoding_way", lambda base, config: DecodingWay("static", True)
    )
    with caplog.at_level(logging.WARNING):
        for seed in (1, 2):
            found = latent_generate(model, *prompts(), settings(), seed=seed)
    assert [message.partition(":")[2] for message in caplog.messages] == [" a graph break"] * 2
    monkeypatch.undo()
    assert_same(found, latent_generate(model, *prompts(), settings(), seed=2))


def test_sizes_are_rounded_up():
    assert [round_rows(n) for n in (1, 2, 3, 17, 32, 33, 64, 65)] == [1, 2, 4, 32, 32, 64, 64, 96]
    assert [round_columns(n) for n in (1, 128, 129)] == [128, 128, 256]


CASES = {
    "latent": {},
    "discrete": {"latent_length": 0},
    "shadows end": {"eos_token_ids": MANY_EOS, "latent_eos": "stop"},
    "cold stop": {"latent_length": 6, "cold_stop_entropy": 4.2, "cold_stop_steps": 2},
    "soft noise": {"noise": "soft"},
}
# The last two add nothing to the model's part of the graph.
PAIRS = [
    *itertools.product(["llama", "qwen2", "qwen3", "gemma2", "gemma3", "mistral"], [*CASES][:3]),
    *(("llama", case) for case in [*CASES][3:]),
]


@pytest.mark.slow
@pytest.mark.parametrize(("family", "case"), PAIRS)
def test_compiled_rollouts_equal_eager_ones(family, case):
    """By inductor, as users have it; windows of 9 columns slide, and prompts are padded."""
    model, (ids, mask) = tiny_model(family), prompts()
    config = settings(**CASES[case], compile_rollout=True)
    # Twice: the second time on what the first one left in the buffers.
    for seed in (6, 7):
        eager = latent_generate(model, ids, mask, settings(**CASES[case]), seed=seed)
        assert_same(latent_generate(model, ids, mask, config, seed=seed), eager)
