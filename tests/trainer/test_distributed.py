"""Two processes train as one does: same prompts, same noise, same loss."""

import json

import pytest
import torch
from safetensors.torch import load_file

from tests.torchrun import run_processes

RUN = """
import sys
import torch
torch.set_num_threads(1)
from lepo_kernels.trainer.config import LEPOConfig
from lepo_kernels.trainer.trainer import LEPOTrainer
from tests.tiny import tiny_model, tiny_tokenizer
from tests.trainer.conftest import digits_reward, problems
folder, loss_type, size = sys.argv[1], sys.argv[2], int(sys.argv[3])
args = LEPOConfig(
    output_dir=folder, per_device_train_batch_size=size, num_generations=4, max_steps=3,
    num_iterations=2, learning_rate=0.1, optim="sgd", max_grad_norm=0.0, latent_length=2,
    max_completion_length=6, top_k=8, loss_type=loss_type, beta=0.1,
    # The spread of all rewards: no process knows it alone.
    scale_rewards="batch", report_to="none",
    disable_tqdm=True, use_cpu=True, save_strategy="no", eval_num_samples=2,
)
trainer = LEPOTrainer(
    tiny_model(), digits_reward, args, train_dataset=problems(8), eval_dataset=problems(5),
    processing_class=tiny_tokenizer(),
)
trainer.train()
trainer.evaluate()
trainer.save_model(folder + "/final")
if trainer.is_world_process_zero():
    trainer.state.save_to_json(folder + "/state.json")
"""


@pytest.mark.slow
@pytest.mark.parametrize("loss_type", ["grpo", "dapo"])
def test_two_processes_equal_one(tmp_path, loss_type):
    script = tmp_path / "run.py"
    script.write_text(RUN)
    for folder, processes, size in (("one", 1, 16), ("two", 2, 8)):
        words = (str(tmp_path / folder), loss_type, str(size))
        run_processes(script, *words, processes=processes)
    one, two = (
        load_file(tmp_path / folder / "final" / "model.safetensors") for folder in ("one", "two")
    )
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-3, atol=1e-5)
    logs = [
        json.loads((tmp_path / folder / "state.json").read_text())["log_history"]
        for folder in ("one", "two")
    ]
    compared = {"loss", "grad_norm", "reward", "kl", "eval_greedy_accuracy", "eval_mean@2"}
    seen = set()
    for a, b in zip(*logs, strict=True):
        for name in compared & a.keys():
            assert a[name] == pytest.approx(b[name], rel=1e-3, abs=1e-6), name
            seen.add(name)
    assert seen == compared
