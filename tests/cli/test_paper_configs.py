"""The published runs, end to end: real loaders on sample files, tiny models of their families."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from lepo_kernels.cli.main import main
from lepo_kernels.tasks.question_sets import SYSTEM_PROMPT
from tests.tasks.hub_samples import sample_file
from tests.tiny import tiny_model, tiny_tokenizer

PAPER = Path(__file__).parents[2] / "configs" / "paper"
TRAINING = sorted(file.stem for file in PAPER.glob("*.yaml") if not file.stem.startswith("eval-"))
EVALUATION = sorted(file.stem for file in PAPER.glob("eval-*.yaml"))
# One run of each family; each takes about five seconds.
EVERY_DAY = ("llama-3.2-3b-instruct", "qwen2.5-7b")
SAMPLES = {
    "dapo": sample_file("open-r1/DAPO-Math-17k-Processed", "en", "train"),
    "aime2024": sample_file("HuggingFaceH4/aime_2024", None, "train"),
    "math500": sample_file("HuggingFaceH4/MATH-500", None, "test"),
}
# Model -> its family, and whether its head is its table.
FAMILIES = {
    "Qwen/Qwen2.5-3B": (Qwen2Config, Qwen2ForCausalLM, True),
    "Qwen/Qwen2.5-7B": (Qwen2Config, Qwen2ForCausalLM, False),
    "meta-llama/Llama-3.2-3B-Instruct": (LlamaConfig, LlamaForCausalLM, True),
}
INSTRUCTION = r"Please reason step by step, and put your final answer within \boxed{}."

# What stands in the authors' scripts, of what ours can do under any name.
PUBLISHED = {
    "seed": 42,
    "task": "dapo",
    "eval_task": "aime2024",
    "temperature": 1.0,
    "top_k": 30,
    "top_p": 0.95,
    "do_discrete_sample": True,
    "max_prompt_length": 1024,
    "truncate_prompts": True,
    "max_completion_length": 2048,
    "num_generations": 8,
    "learning_rate": 1e-6,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.03,
    "adam_beta1": 0.9,
    "adam_beta2": 0.99,
    "weight_decay": 0.1,
    "max_grad_norm": 1.0,
    "num_train_epochs": 1,
    "loss_type": "grpo",
    "eval_strategy": "steps",
    "eval_steps": 5,
    "eval_on_start": True,
    "eval_num_samples": 8,
    "save_steps": 50,
    "logging_steps": 1,
    "bf16": True,
}
LATENT = {"noise": "gumbel", "latent_eos": "stop"}
RUNS = {
    "qwen2.5-3b": {"model": "Qwen/Qwen2.5-3B", "latent_length": 64, "tau": 0.3, **LATENT},
    "qwen2.5-7b": {"model": "Qwen/Qwen2.5-7B", "latent_length": 64, "tau": 0.5, **LATENT},
    "llama-3.2-3b-instruct": {
        "model": "meta-llama/Llama-3.2-3B-Instruct",
        "latent_length": 32,
        "tau": 0.5,
        **LATENT,
    },
    "qwen2.5-3b-grpo": {"model": "Qwen/Qwen2.5-3B", "latent_length": 0},
}


def settings_of(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((PAPER / f"{name}.yaml").read_text())
    return found


def words(**settings: Any) -> list[str]:
    """Settings as a command line has them."""
    return [
        word
        for name, value in settings.items()
        for word in (f"--{name}", json.dumps(value) if isinstance(value, dict) else str(value))
    ]


def on_samples(settings: dict[str, Any], task: str) -> dict[str, Any]:
    """The parameters of a task, on its sample file."""
    params = settings["eval_task_params" if "eval_task_params" in settings else "task_params"]
    return {**params, "path": str(SAMPLES[task])}


def tiny_folder(folder: Path, name: str) -> str:
    """A tiny model that says "1" and often stops then, which solves half of the sample of DAPO."""
    config, family, tied = FAMILIES[name]
    like = tiny_model().config.to_diff_dict()
    like = {key: value for key, value in like.items() if key not in ("architectures", "model_type")}
    settings = {**like, "max_position_embeddings": 1024, "tie_word_embeddings": tied}
    torch.manual_seed(0)
    model, tokenizer = family(config(**settings)), tiny_tokenizer()
    chances = torch.full((len(tokenizer),), 0.05 / len(tokenizer))
    chances[tokenizer.convert_tokens_to_ids("1")] = 0.6
    chances[tokenizer.eos_token_id] = 0.35
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(40):
        seen = torch.randint(len(tokenizer), (8, 32))
        said = chances.multinomial(seen.numel(), replacement=True)
        loss = torch.nn.functional.cross_entropy(model(input_ids=seen).logits.flatten(0, 1), said)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("name", TRAINING)
def test_settings_are_the_published_ones(name: str) -> None:
    settings = settings_of(name)
    for setting, value in {**PUBLISHED, **RUNS[name]}.items():
        assert settings[setting] == value, setting
    for params in (settings["task_params"], settings["eval_task_params"]):
        assert params == {"reward": "math_verify", "instruction": INSTRUCTION}
    assert INSTRUCTION == SYSTEM_PROMPT
    # On 8 GPUs, 1024 samples an update.
    samples = settings["per_device_train_batch_size"] * settings["gradient_accumulation_steps"]
    assert 8 * samples == 1024


@pytest.mark.parametrize(
    ("name", "latent"),
    [
        ("eval-latent", {"latent_length": 32, "tau": 0.3, "temperature": 1.0, **LATENT}),
        ("eval-discrete", {"latent_length": 0, "temperature": 0.6}),
    ],
)
def test_evaluations_are_the_published_ones(name: str, latent: dict[str, Any]) -> None:
    settings = settings_of(name)
    common = {"top_k": 30, "top_p": 0.95, "max_completion_length": 2048, "eval_num_samples": 8}
    for setting, value in {**common, **latent, "seed": 0, "task": "aime2024"}.items():
        assert settings[setting] == value, setting


def test_every_config_is_tested() -> None:
    assert set(TRAINING) == set(RUNS)
    assert EVALUATION == ["eval-discrete", "eval-latent"]


# The oldest transformers that is served knows no other name for it.
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize(
    "name",
    [n if n in EVERY_DAY else pytest.param(n, marks=pytest.mark.slow) for n in TRAINING],
)
def test_dry_run(name: str, tmp_path: Path) -> None:
    settings = settings_of(name)
    run = tmp_path / "run"
    scaled = {
        "model": tiny_folder(tmp_path / "model", settings["model"]),
        "output_dir": str(run),
        "task_params": {**settings["task_params"], "path": str(SAMPLES["dapo"])},
        "eval_task_params": on_samples(settings, "aime2024"),
        "latent_length": min(settings["latent_length"], 3),
        "max_completion_length": 12,
        # 4 problems an update, of the sample's 18.
        "per_device_train_batch_size": 16,
        "gradient_accumulation_steps": 2,
        # Two of the 20 rows are held out, and four updates fill the epoch.
        "eval_steps": 2,
        "save_steps": 2,
        "learning_rate": 1e-3,
        "max_prompt_length": 150,
        "use_cpu": True,
    }
    assert main(["train", str(PAPER / f"{name}.yaml"), *words(**scaled)]) == 0
    lines = (run / "metrics.jsonl").read_text().splitlines()
    metrics = [json.loads(line) for line in lines]
    assert [row["step"] for row in metrics if "eval_mean@8" in row][:3] == [0, 2, 4]
    assert [row["step"] for row in metrics if "reward" in row] == [1, 2, 3, 4]
    assert sum(row.get("reward", 0) for row in metrics) > 0
    assert any(row.get("grad_norm", 0) > 0 for row in metrics)
    assert not any("eval_greedy_accuracy" in row for row in metrics)
    assert (run / "checkpoint-2").is_dir()
    assert (run / "checkpoint-4").is_dir()
    kept = yaml.safe_load((run / "config.yaml").read_text())
    for setting, value in settings.items():
        wanted = scaled.get(setting, value)
        found = json.loads(kept[setting]) if isinstance(wanted, dict) else kept[setting]
        assert found == wanted, setting
    said = [json.loads(line) for line in (run / "evaluations.jsonl").read_text().splitlines()]
    assert len({row["prompt"] for row in said}) == 3
    for row in said:
        assert row["prompt"].count(INSTRUCTION) == 2
        assert len(row["latent"]) <= scaled["latent_length"]

    evaluation = "eval-latent" if settings["latent_length"] else "eval-discrete"
    chosen = settings_of(evaluation)
    smaller = {
        "model": str(run),
        "task_params": on_samples(chosen, "aime2024"),
        "max_completion_length": 12,
        "latent_length": min(chosen["latent_length"], 3),
        "output": str(tmp_path / "eval.json"),
        "dtype": "float32",
        "use_cpu": True,
    }
    assert main(["eval", str(PAPER / f"{evaluation}.yaml"), *words(**smaller)]) == 0
    report = json.loads((tmp_path / "eval.json").read_text())
    assert set(report["evaluations"][0]["metrics"]) >= {"mean@8", "pass@8"}
    assert report["settings"]["temperature"] == chosen["temperature"]
