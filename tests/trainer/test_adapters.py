"""Adapters: the one that is given is trained, and the KL reference is the policy at the start."""

import copy
import logging

import pytest
import torch
from peft import IA3Config, LoHaConfig, LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from lepo_kernels.trainer.experience import step_scores
from lepo_kernels.trainer.manifest import write_manifest
from lepo_kernels.trainer.starting_point import REFERENCE_FILE, StartingPoint
from tests.tiny import tiny_model, tiny_tokenizer
from tests.trainer.test_resume import SETTINGS, KillAt, KilledError


def lora(**changes):
    settings = {"task_type": "CAUSAL_LM", "r": 4, "target_modules": ["q_proj", "down_proj"]}
    return LoraConfig(**{**settings, **changes})


# As after training: not the identity. Each keeps what it trains in another place.
TRAINED = {
    "lora": lora(init_lora_weights=False),
    "dora": lora(init_lora_weights=False, use_dora=True),
    "biases": lora(init_lora_weights=False, bias="all"),
    "modules_to_save": lora(init_lora_weights=False, modules_to_save=["lm_head", "norm"]),
    "embeddings": lora(init_lora_weights=False, target_modules=["embed_tokens", "q_proj"]),
    "ia3": IA3Config(
        task_type="CAUSAL_LM", target_modules=["k_proj", "down_proj"],
        feedforward_modules=["down_proj"], init_ia3_weights=False,
    ),
    "loha": LoHaConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], init_weights=False),
}  # fmt: skip


def adapted(name="lora", seed=0):
    model = tiny_model(attention_bias=True)
    torch.manual_seed(seed)
    return get_peft_model(model, copy.deepcopy(TRAINED[name]))


@pytest.fixture
def saved(tmp_path):
    """Folders of a base model and of an adapter that was trained on it."""
    tiny_model().save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    torch.manual_seed(5)
    get_peft_model(base, lora(init_lora_weights=False)).save_pretrained(tmp_path / "adapter")
    return tmp_path / "base", tmp_path / "adapter"


def load(saved, **settings):
    base, adapter = saved
    model = AutoModelForCausalLM.from_pretrained(base)
    return PeftModel.from_pretrained(model, adapter, **settings)


def weights(model):
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def kls(trainer):
    return [log["kl"] for log in trainer.state.log_history if "kl" in log]


@pytest.mark.parametrize("name", TRAINED)
def test_the_reference_is_the_policy_at_the_start(make_trainer, name):
    model = adapted(name)
    start = copy.deepcopy(model)
    trainer = make_trainer(model=model, beta=0.1, max_steps=3, learning_rate=1e-2)
    trainer.train()
    # k3 of rounding differences; see test_dropout.py.
    assert kls(trainer)[0] == pytest.approx(0.0, abs=1e-6)
    assert kls(trainer)[-1] > 1e-5
    rollout = trainer._run.experience.rollout
    expected = step_scores(start, rollout, 1.0, 8)
    moved = step_scores(trainer.model, rollout, 1.0, 8)
    before = weights(trainer.model)
    with trainer.reference.of(trainer.model) as reference:
        got = step_scores(reference, rollout, 1.0, 8)
    # The same function by the same kernels.
    assert torch.equal(got[0], expected[0])
    assert not torch.equal(moved[0], expected[0])
    after = weights(trainer.model)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_new_adapter_starts_from_the_base(make_trainer):
    trainer = make_trainer(peft_config=lora(init_lora_weights="gaussian"), beta=0.1)
    trainer.train()
    assert kls(trainer)[0] == pytest.approx(0.0, abs=1e-6)


def test_autocast_does_not_hand_the_policys_weights_to_the_reference():
    """It keeps casts of a parameter for as long as its outermost context lasts."""
    model = adapted()
    start = StartingPoint(model)
    ids = torch.arange(8)[None]
    autocast = torch.autocast("cpu", torch.bfloat16)
    with torch.no_grad(), autocast:
        expected = model(ids).logits
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.mul_(2.0)
    with torch.no_grad(), autocast:
        moved = model(ids).logits
        with start.reached(model) as reference:
            got = reference(ids).logits
        again = model(ids).logits
    assert torch.equal(got, expected)
    assert torch.equal(again, moved)
    assert not torch.equal(moved, expected)


def test_parameters_come_back_after_an_error():
    model = adapted()
    before = dict(model.named_parameters())
    with pytest.raises(RuntimeError, match="on the way"), StartingPoint(model).reached(model):
        raise RuntimeError("on the way")
    after = dict(model.named_parameters())
    assert before.keys() == after.keys()
    assert all(before[name] is after[name] for name in before)


@pytest.mark.parametrize("fresh", [False, True])
def test_a_resumed_run_has_the_reference_of_its_start(make_trainer, saved, tmp_path, fresh):
    """Also of a new adapter whose values are drawn anew when the trainer is built again."""

    def run(folder, seed, **changes):
        if fresh:
            model = tiny_model()
            torch.manual_seed(seed)
            model = get_peft_model(model, lora(init_lora_weights=False))
        else:
            model = load(saved, is_trainable=True)
        settings = {**SETTINGS, **changes, "output_dir": str(tmp_path / folder)}
        return make_trainer(model=model, **settings)

    whole = run("whole", 1, save_strategy="no")
    whole.train()
    broken = run("broken", 1, callbacks=[KillAt(6)])
    with pytest.raises(KilledError):
        broken.train()
    resumed = run("broken", 2)
    resumed.train(resume_from_checkpoint=True)
    expected, got = weights(whole.model), weights(resumed.model)
    assert all(torch.equal(got[name], tensor) for name, tensor in expected.items())


def test_a_resumed_run_needs_its_reference(make_trainer, tmp_path):
    broken = make_trainer(model=adapted(), callbacks=[KillAt(4)], **SETTINGS)
    with pytest.raises(KilledError):
        broken.train()
    other = make_trainer(model=adapted("modules_to_save"), **SETTINGS)
    with pytest.raises(ValueError, match=r"belongs to another adapter: .*lm_head.* missing"):
        other.train(resume_from_checkpoint=True)
    checkpoint = tmp_path / "run" / "checkpoint-4"
    (checkpoint / REFERENCE_FILE).unlink()
    whole = make_trainer(model=adapted(), **SETTINGS)
    with pytest.raises(ValueError, match=f"{REFERENCE_FILE} is missing"):
        whole.train(resume_from_checkpoint=str(checkpoint))
    write_manifest(checkpoint, step=4, processes=1, save_only_model=False)  # as if it had been so
    with pytest.raises(ValueError, match="checkpoint-4 holds no KL reference"):
        whole.train(resume_from_checkpoint=str(checkpoint))


def test_a_whole_model_is_resumed_from_its_own_start(make_trainer, tmp_path):
    """The model given is the reference; a checkpoint in its place would be another."""
    broken = make_trainer(callbacks=[KillAt(4)], **SETTINGS)
    with pytest.raises(KilledError):
        broken.train()
    checkpoint = tmp_path / "run" / "checkpoint-4"
    moved = make_trainer(model=AutoModelForCausalLM.from_pretrained(checkpoint), **SETTINGS)
    with pytest.raises(ValueError, match="started from another model than the one given"):
        moved.train(resume_from_checkpoint=True)
    make_trainer(**SETTINGS).train(resume_from_checkpoint=True)


def test_what_is_saved_is_the_adapter_alone(make_trainer, tmp_path):
    trainer = make_trainer(model=adapted(), beta=0.1, max_steps=1)
    names = set(trainer.model.state_dict())
    trainer.train()
    trainer.save_model(str(tmp_path / "final"))
    assert set(trainer.model.state_dict()) == names
    assert list(trainer.model.peft_config) == ["default"]
    weights = [file.name for file in (tmp_path / "final").rglob("*.safetensors")]
    assert weights == ["adapter_model.safetensors"]
    assert not list((tmp_path / "final").rglob(REFERENCE_FILE))


def test_an_adapters_folder_is_trained_on(make_trainer, saved):
    trainer = make_trainer(model=str(saved[1]), beta=0.1, learning_rate=1e-2)
    before = weights(trainer.model)
    assert torch.equal(
        next(t for n, t in before.items() if "lora_B" in n),
        next(t for n, t in weights(load(saved)).items() if "lora_B" in n),
    )
    trainer.train()
    moved = {n for n, t in weights(trainer.model).items() if not torch.equal(t, before[n])}
    assert moved
    assert all("lora_" in name for name in moved)
    assert kls(trainer)[0] == pytest.approx(0.0, abs=1e-6)


def test_the_active_one_of_several_adapters_is_trained(make_trainer, saved, tmp_path):
    def build(**changes):
        model = load(saved)
        torch.manual_seed(3)
        model.add_adapter("second", lora(init_lora_weights=False))
        model.set_adapter("second")
        return make_trainer(model=model, **SETTINGS, **changes)

    whole = build(output_dir=str(tmp_path / "whole"))
    before = weights(whole.model)
    whole.train()
    moved = {n for n, t in weights(whole.model).items() if not torch.equal(t, before[n])}
    assert moved
    assert all(".second." in name for name in moved)
    assert kls(whole)[0] == pytest.approx(0.0, abs=1e-6)
    broken = build(callbacks=[KillAt(3)])
    with pytest.raises(KilledError):
        broken.train()
    resumed = build()
    resumed.train(resume_from_checkpoint=True)
    expected, got = weights(whole.model), weights(resumed.model)
    assert all(torch.equal(got[name], tensor) for name, tensor in expected.items())


def several(model):
    model.add_adapter("second", lora())
    model.base_model.set_adapter(["default", "second"])
    return model


def inactive(model):
    """Something may be trained, but not what the forward uses."""
    model.add_adapter("second", lora())
    model.set_adapter("second")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("default" in name and "lora" in name)
    return model


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda model: model.requires_grad_(False), "active adapter 'default' is frozen"),
        (inactive, "active adapter 'second' is frozen"),
        (several, "expected one active adapter, got"),
        (lambda model: model.merge_adapter() or model, "is merged into the weights"),
        (lambda model: model.base_model.disable_adapter_layers() or model, "is switched off"),
    ],
    ids=["frozen", "inactive", "several", "merged", "disabled"],
)
@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_an_adapter_that_would_not_be_trained_is_refused(make_trainer, change, said, beta):
    with pytest.raises(ValueError, match=f"model: .*{said}"):
        make_trainer(model=change(adapted()), beta=beta)


def test_a_frozen_model_is_refused(make_trainer, saved):
    with pytest.raises(ValueError, match="model: all parameters are frozen"):
        make_trainer(model=tiny_model().requires_grad_(False))
    with pytest.raises(ValueError, match=r"'default' is frozen.*is_trainable=True"):
        make_trainer(model=load(saved))
    with pytest.raises(ValueError, match="holds an adapter that transformers loaded into it"):
        make_trainer(model=AutoModelForCausalLM.from_pretrained(saved[1]))


def test_a_second_adapter_does_not_replace_the_first(make_trainer, saved):
    said = "peft_config: the model has an adapter already, 'default'"
    with pytest.raises(ValueError, match=said):
        make_trainer(model=load(saved, is_trainable=True), peft_config=lora())
    with pytest.raises(ValueError, match=said):
        make_trainer(model=str(saved[1]), peft_config=lora())
    with pytest.raises(ValueError, match=said):
        make_trainer(model=AutoModelForCausalLM.from_pretrained(saved[1]), peft_config=lora())


def test_an_adapters_dropout_is_reported(make_trainer, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    logger = logging.getLogger("lepo_kernels.trainer.adapters")
    monkeypatch.setattr(logger, "propagate", True)
    with caplog.at_level(logging.WARNING):
        make_trainer(peft_config=lora(lora_dropout=0.1))
    assert "lora_dropout = 0.1 of adapter 'default' is switched off" in caplog.text
