"""A run that was killed and resumed ends with the same bits as one that never was."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file
from transformers import TrainerCallback

from lepo_kernels.trainer.checkpoint import is_complete, last_complete_checkpoint
from lepo_kernels.trainer.experience_files import load_experience

# One rollout serves 2 iterations of 2 updates: checkpoints fall on its edges and inside it.
SETTINGS = {
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "steps_per_generation": 4,
    "num_iterations": 2,
    "num_generations": 4,
    "max_steps": 8,
    "save_strategy": "steps",
    "save_steps": 1,
    "beta": 0.05,
    "rows": 8,  # two rollouts per epoch, so that the run crosses an epoch
    "lr_scheduler_type": "cosine",
    "weight_decay": 0.1,
}


class KilledError(Exception):
    pass


class KillAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, **_):
        if state.global_step == self.step:
            raise KilledError


def final_state(trainer):
    return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


@pytest.fixture
def unbroken(make_trainer, tmp_path):
    trainer = make_trainer(output_dir=str(tmp_path / "unbroken"), **{**SETTINGS, "save_steps": 100})
    trainer.train()
    return final_state(trainer)


@pytest.mark.parametrize("step", [1, 2, 3, 4, 6])  # inside the first rollout, at its end, after it
def test_resumed_bits_equal_unbroken_bits(make_trainer, unbroken, step):
    broken = make_trainer(callbacks=[KillAt(step)], **SETTINGS)
    with pytest.raises(KilledError):
        broken.train()
    resumed = make_trainer(**SETTINGS)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 8
    got = final_state(resumed)
    for name, tensor in unbroken.items():
        assert torch.equal(got[name], tensor), name


def test_an_adapter_resumes_too(make_trainer, tmp_path):
    def lora():
        return LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")

    whole = make_trainer(output_dir=str(tmp_path / "whole"), peft_config=lora(), **SETTINGS)
    whole.train()
    broken = make_trainer(callbacks=[KillAt(3)], peft_config=lora(), **SETTINGS)
    with pytest.raises(KilledError):
        broken.train()
    resumed = make_trainer(peft_config=lora(), **SETTINGS)
    resumed.train(resume_from_checkpoint=True)
    expected, got = final_state(whole), final_state(resumed)
    assert any("lora_B" in name and bool(tensor.any()) for name, tensor in got.items())
    for name, tensor in expected.items():
        assert torch.equal(got[name], tensor), name


def test_a_checkpoint_cut_short_is_skipped(make_trainer, unbroken, tmp_path):
    broken = make_trainer(callbacks=[KillAt(5)], **SETTINGS)
    with pytest.raises(KilledError):
        broken.train()
    run = tmp_path / "run"
    # As a kill in the middle of writing leaves it: weights there, manifest missing or torn.
    (run / "checkpoint-5" / "checkpoint_manifest.json").unlink()
    (run / "checkpoint-4" / "trainer_state.json").write_text('{"global_st')
    assert not is_complete(run / "checkpoint-5")
    assert last_complete_checkpoint(run) == run / "checkpoint-3"
    resumed = make_trainer(**SETTINGS)
    resumed.train(resume_from_checkpoint=True)
    got = final_state(resumed)
    for name, tensor in unbroken.items():
        assert torch.equal(got[name], tensor), name


def test_a_checkpoint_without_its_experience_says_so(make_trainer, tmp_path):
    broken = make_trainer(callbacks=[KillAt(3)], **SETTINGS)
    with pytest.raises(KilledError):
        broken.train()
    last = tmp_path / "run" / "checkpoint-3"
    (last / "experience_0.pt").unlink()
    with pytest.raises(ValueError, match=r"is no complete checkpoint: experience_0.pt is missing"):
        make_trainer(**SETTINGS).train(resume_from_checkpoint=str(last))


# Within a rollout, and where one was over.
@pytest.mark.parametrize("step", [3, 4])
def test_a_rollout_of_other_settings_is_not_gone_on_with(make_trainer, step):
    broken = make_trainer(callbacks=[KillAt(step)], **SETTINGS)
    with pytest.raises(KilledError):
        broken.train()
    other = make_trainer(**{**SETTINGS, "num_iterations": 4})
    with pytest.raises(ValueError, match="num_iterations was 2 and is 4"):
        other.train(resume_from_checkpoint=True)


def test_a_checkpoint_without_its_rollout_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="lies inside a rollout but does not hold it"):
        load_experience(tmp_path, 0, torch.device("cpu"), {})


def test_samples_are_recorded_once(make_trainer, tmp_path):
    settings = {**SETTINGS, "save_steps": 2}
    broken = make_trainer(callbacks=[KillAt(5)], **settings)
    with pytest.raises(KilledError):
        broken.train()
    make_trainer(**settings).train(resume_from_checkpoint=True)
    lines = (tmp_path / "run" / "completions.jsonl").read_text().splitlines()
    # Two rollouts of 16 samples serve the eight updates.
    assert Counter(json.loads(line)["step"] for line in lines) == {0: 16, 4: 16}


RUN = """
import sys
import torch
torch.set_num_threads(1)
from lepo_kernels.trainer.config import LEPOConfig
from lepo_kernels.trainer.checkpoint import last_complete_checkpoint
from lepo_kernels.trainer.trainer import LEPOTrainer
from pathlib import Path
from tests.tiny import tiny_model, tiny_tokenizer
from tests.trainer.conftest import digits_reward, problems
from tests.trainer.test_resume import SETTINGS
settings = {name: value for name, value in SETTINGS.items() if name != "rows"}
args = LEPOConfig(
    output_dir=sys.argv[1], latent_length=2, max_completion_length=6, top_k=8, learning_rate=1e-3,
    report_to="none", disable_tqdm=True, use_cpu=True, **{**settings, "max_steps": 24},
)
trainer = LEPOTrainer(
    tiny_model(), digits_reward, args, train_dataset=problems(8), processing_class=tiny_tokenizer()
)
trainer.train(resume_from_checkpoint=last_complete_checkpoint(Path(sys.argv[1])) is not None)
trainer.save_model(sys.argv[1] + "/final")
"""


@pytest.mark.slow
def test_killed_by_the_system_at_random_moments(tmp_path):
    """SIGKILL at moments drawn at random, checkpoints half written included."""
    root = Path(__file__).parents[2]

    def start(folder):
        return subprocess.Popen(
            [sys.executable, "-c", RUN, str(folder)],
            cwd=root,
            env={**os.environ, "PYTHONPATH": str(root)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    assert start(tmp_path / "whole").wait() == 0
    moments = random.Random(7)
    kills = 0
    while True:
        process = start(tmp_path / "torn")
        deadline = time.monotonic() + 300
        # Wait for training to be under way before the dice fall.
        seen = len(list((tmp_path / "torn").glob("checkpoint-*")))
        while process.poll() is None and time.monotonic() < deadline:
            if len(list((tmp_path / "torn").glob("checkpoint-*"))) > seen:
                break
            time.sleep(0.01)
        time.sleep(moments.uniform(0.0, 1.0))
        if kills < 4 and process.poll() is None:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
            continue
        assert process.wait() == 0
        break
    assert kills >= 2, "the run must have been killed to show anything"
    whole = load_file(tmp_path / "whole" / "final" / "model.safetensors")
    torn = load_file(tmp_path / "torn" / "final" / "model.safetensors")
    assert whole.keys() == torn.keys()
    for name, tensor in whole.items():
        assert torch.equal(torn[name], tensor), name
