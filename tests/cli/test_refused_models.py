"""A model that cannot be served is a usage error of every command, before its work."""

import pytest

from lepo_kernels.cli import main
from tests.rollout.families import tiny_causal_lm
from tests.tiny import tiny_model, tiny_tokenizer


def save(model, folder):
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def words(command, config, folder):
    return {
        "train": ["train", str(config), "--model", folder],
        "eval": ["eval", str(config), "--model", folder],
        "generate": ["generate", "--model", folder, "--prompt", "1 + 1 =", "--use_cpu", "true"],
    }[command]


@pytest.mark.parametrize("command", ["train", "eval", "generate"])
def test_a_model_of_another_policy_in_training(command, config, tmp_path, capsys):
    sizes = {"vocab_size": 102, "pad_token_id": 0, "eos_token_id": 1}
    folder = save(tiny_causal_lm("falcon_h1", **sizes), tmp_path / "model")
    code = main.main(words(command, config, folder))
    said = capsys.readouterr().err
    assert code == main.USAGE_ERROR, said
    assert f"lepo {command}: error: model: FalconH1ForCausalLM cannot be served" in said


@pytest.mark.parametrize("command", ["train", "eval", "generate"])
def test_a_tokenizer_larger_than_the_model(command, config, tmp_path, capsys):
    folder = save(tiny_model(vocab_size=64), tmp_path / "model")
    code = main.main(words(command, config, folder))
    said = capsys.readouterr().err
    assert code == main.USAGE_ERROR, said
    assert "processing_class: the tokenizer has 102 tokens, the model 64 rows" in said
