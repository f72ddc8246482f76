"""The training forward computes what the rollout's forward computes: nothing in it is random."""

import copy
import json

import pytest
import torch
from peft import LoHaConfig, LoraConfig, get_peft_model
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    MixtralConfig,
    OPTConfig,
    PersimmonConfig,
)

from lepo_kernels.trainer.dropout import switch_off_dropout
from tests.tiny import tiny_model

SIZES = {
    "vocab_size": 102,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 1,
    # Peaked enough for every kind of noise to move the logits.
    "initializer_range": 0.3,
    "init_std": 0.3,
}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, **SIZES}


def gpt2(**changes):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(GPT2Config(**{**GPT2, **changes}))


def adapted(config):
    torch.manual_seed(0)
    return get_peft_model(tiny_model(), config)


def family(config):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config)


# Where the randomness sits: modules with a rate, rates as attributes, rates that the forward reads
# from the configuration, layers left out, noise on a router's input, an adapter's modules, and an
# adapter's rates per name.
MODELS = {
    "modules": lambda: gpt2(resid_pdrop=0.1, embd_pdrop=0.1, attn_pdrop=0.1),
    "attribute": lambda: family(LlamaConfig(**SIZES, intermediate_size=48, attention_dropout=0.1)),
    "configuration": lambda: family(
        PersimmonConfig(**SIZES, intermediate_size=48, attention_dropout=0.1)
    ),
    "layerdrop": lambda: family(
        OPTConfig(**SIZES, ffn_dim=48, word_embed_proj_dim=32, layerdrop=0.5, dropout=0.0)
    ),
    "jitter": lambda: family(
        MixtralConfig(
            **SIZES, intermediate_size=48, num_key_value_heads=2, num_local_experts=4,
            router_jitter_noise=0.1,
        )
    ),
    "lora": lambda: adapted(
        LoraConfig(
            task_type="CAUSAL_LM", target_modules="all-linear", lora_dropout=0.1,
            init_lora_weights=False,
        )
    ),
    "loha": lambda: adapted(
        LoHaConfig(
            task_type="CAUSAL_LM", target_modules=["q_proj"], rank_dropout=0.5, module_dropout=0.5,
            init_weights=False,
        )
    ),
}  # fmt: skip


@torch.no_grad()
def logits(model, training, seed=0):
    torch.manual_seed(seed)
    return copy.deepcopy(model).train(training)(input_ids=torch.arange(32)[None]).logits


@pytest.mark.parametrize("name", MODELS)
def test_training_mode_becomes_evaluation_mode(name):
    model = MODELS[name]()
    expected = logits(model, training=False)
    # Seeds enough for a layer, or a module, to be left out at least once.
    assert any(not torch.equal(logits(model, True, seed), expected) for seed in range(8))
    switch_off_dropout(model)
    # The same kernels on the same numbers.
    for seed in range(8):
        assert torch.equal(logits(model, True, seed), expected)
    assert torch.equal(logits(model, training=False), expected)


def test_nothing_else_changes():
    """Neither the random state nor the modes, nor the configuration that is saved."""
    model = MODELS["modules"]()
    model.train()
    model.transformer.h[1].eval()
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    switch_off_dropout(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes
    assert model.config.resid_pdrop == 0.1


class Noisy(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, hidden):
        return self.inner(hidden) * (1 + 0.1 * torch.rand(()) if self.training else 1)


def test_randomness_that_cannot_be_switched_off_is_refused(make_trainer):
    model = tiny_model()
    model.model.norm = Noisy(model.model.norm)
    with pytest.raises(ValueError, match=r"model: LlamaForCausalLM .* differs in training mode"):
        make_trainer(model=model)
    make_trainer(model=model, disable_dropout=False)


def test_ids_that_the_model_forbids_do_not_matter():
    model = tiny_model()
    model.lm_head.register_forward_hook(
        lambda module, args, out: out.index_fill(-1, torch.tensor([7]), float("-inf"))
    )
    switch_off_dropout(model)


def test_a_rate_that_evaluation_mode_reads_is_refused(make_trainer):
    model = tiny_model()
    layer = model.model.layers[0]
    layer.jitter_threshold = 0.5
    layer.mlp.register_forward_hook(lambda module, args, out: out * layer.jitter_threshold)
    with pytest.raises(ValueError, match="differs in evaluation mode from what it was"):
        make_trainer(model=model)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("modules", {}),
        ("modules", {"num_iterations": 2}),
        ("modules", {"gradient_accumulation_steps": 2}),
        ("attribute", {}),
        ("jitter", {}),
        ("lora", {}),
    ],
)
def test_the_kl_of_a_policy_that_has_not_moved_is_zero(make_trainer, name, settings):
    trainer = make_trainer(model=MODELS[name](), beta=0.05, learning_rate=0.0, **settings)
    trainer.train()
    logs = [log for log in trainer.state.log_history if "loss" in log]
    # Two kernels sum a log-probability in float32 to about 1e-5; k3 of such a difference is below
    # 1e-9, and its own rounding about 1e-7.
    assert [log["kl"] for log in logs] == pytest.approx([0.0] * len(logs), abs=1e-6)


def test_the_saved_model_keeps_its_rates(make_trainer, tmp_path):
    trainer = make_trainer(model=gpt2(resid_pdrop=0.1), max_steps=1)
    trainer.train()
    trainer.save_model(str(tmp_path / "final"))
    assert json.loads((tmp_path / "final" / "config.json").read_text())["resid_pdrop"] == 0.1


@pytest.mark.parametrize("settings", [{"beta": 0.1}, {"num_iterations": 2}])
def test_dropout_cannot_stay_where_log_probs_are_compared(make_trainer, settings):
    with pytest.raises(ValueError, match="disable_dropout: must stay on with beta > 0 or several"):
        make_trainer(disable_dropout=False, **settings)


def test_dropout_stays_on_request(make_trainer):
    trainer = make_trainer(model=gpt2(), disable_dropout=False)
    assert trainer.model.transformer.drop.p == 0.1
    trainer.train()
