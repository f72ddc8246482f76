"""A checkpoint is complete when all of it is there and whole; others are skipped or refused."""

import errno
import json
import logging
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from transformers import TrainerCallback

from lepo_kernels.trainer import checkpoint_saving
from lepo_kernels.trainer.checkpoint import (
    find_checkpoint,
    is_complete,
    last_complete_checkpoint,
    trim_checkpoints,
)
from lepo_kernels.trainer.checkpoint_saving import CheckpointError
from lepo_kernels.trainer.experience_files import load_experience
from lepo_kernels.trainer.manifest import MANIFEST, damage, read_manifest
from tests.tiny import tiny_model
from tests.torchrun import run_processes

# Four updates per rollout, so that a checkpoint holds every kind of file.
SETTINGS = {
    "per_device_train_batch_size": 4,
    "steps_per_generation": 4,
    "num_generations": 4,
    "max_steps": 3,
    "save_strategy": "steps",
    "save_steps": 1,
    "lr_scheduler_type": "constant",  # the same, whatever max_steps is
}
FILES = [
    "config.json",
    "experience_0.pt",
    "model.safetensors",
    "optimizer.pt",
    "rng_state.pth",
    "scheduler.pt",
    "tokenizer.json",
    "trainer_state.json",
    "training_args.bin",
    MANIFEST,
]


def cut(path):
    path.write_bytes(path.read_bytes()[:-7])


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def zero(path):
    path.write_bytes(bytes(path.stat().st_size))


DAMAGES = {"missing": Path.unlink, "empty": lambda p: p.write_bytes(b""), "zero": zero}
DAMAGES |= {"cut": cut, "flip": flip}


@pytest.fixture(scope="module")
def saved_run(tmp_path_factory):
    return tmp_path_factory.mktemp("saved") / "run"


@pytest.fixture
def run(make_trainer, saved_run, tmp_path):
    """A finished run with three checkpoints, a copy of its own for each test."""
    if not saved_run.exists():
        make_trainer(output_dir=str(saved_run), **SETTINGS).train()
    shutil.copytree(saved_run, tmp_path / "run")
    return tmp_path / "run"


def weights(trainer):
    return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


def test_the_manifest_lists_every_file(run):
    manifest = read_manifest(run / "checkpoint-3")
    there = {p.name for p in (run / "checkpoint-3").iterdir()} - {MANIFEST}
    assert set(manifest["files"]) == there
    assert {*FILES} - {MANIFEST} <= there
    assert manifest["step"] == 3
    assert manifest["processes"] == 1


# A flipped bit in the manifest itself may or may not leave JSON: the other damages speak for it.
@pytest.mark.parametrize(
    ("name", "kind"),
    [(name, kind) for name in FILES for kind in DAMAGES if (name, kind) != (MANIFEST, "flip")],
)
def test_a_damaged_checkpoint_is_skipped_and_refused(run, caplog, name, kind):
    DAMAGES[kind](run / "checkpoint-3" / name)
    with caplog.at_level(logging.WARNING):
        assert last_complete_checkpoint(run) == run / "checkpoint-2"
    assert re.search(rf"checkpoint-3 is skipped: {name} \w+", caplog.text)
    with pytest.raises(ValueError, match=rf"checkpoint-3 is no complete checkpoint: {name} \w+"):
        find_checkpoint(run, run / "checkpoint-3")


def test_both_ways_reach_the_trainer(run, make_trainer):
    (run / "checkpoint-3" / "optimizer.pt").unlink()
    whole = make_trainer(output_dir=str(run.parent / "whole"), **{**SETTINGS, "max_steps": 4})
    whole.train()
    resumed = make_trainer(**{**SETTINGS, "max_steps": 4})
    with pytest.raises(ValueError, match=r"checkpoint-3 is no complete .*: optimizer.pt is missin"):
        resumed.train(resume_from_checkpoint=str(run / "checkpoint-3"))
    resumed.train(resume_from_checkpoint=True)
    for name, tensor in weights(whole).items():
        assert torch.equal(resumed.model.state_dict()[name], tensor), name


def test_none_left_is_an_error(run, make_trainer):
    for step in (1, 2, 3):
        (run / f"checkpoint-{step}" / MANIFEST).unlink()
    with pytest.raises(ValueError, match="there is no complete checkpoint in"):
        make_trainer(**SETTINGS).train(resume_from_checkpoint=True)


def test_files_that_were_added_later_do_no_harm(run):
    (run / "checkpoint-3" / "notes.txt").write_text("the good one")
    assert is_complete(run / "checkpoint-3")


def test_a_directory_in_a_files_place(run):
    (run / "checkpoint-3" / "optimizer.pt").unlink()
    (run / "checkpoint-3" / "optimizer.pt").mkdir()
    assert damage(run / "checkpoint-3") is not None


def test_without_an_optimizer_there_is_nothing_to_go_on_with(make_trainer):
    make_trainer(**SETTINGS, save_only_model=True).train()
    with pytest.raises(ValueError, match="was saved with save_only_model"):
        make_trainer(**SETTINGS).train(resume_from_checkpoint=True)


@pytest.mark.parametrize("max_steps", [3, 2])  # its end, and an end that it went beyond
def test_a_finished_run_is_loaded_and_ends(run, make_trainer, max_steps):
    before = {path.name for path in run.iterdir()}
    finished = make_trainer(output_dir=str(run.parent / "whole"), **SETTINGS)
    finished.train()
    again = make_trainer(model=tiny_model(seed=1), **{**SETTINGS, "max_steps": max_steps})
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 3
    for name, tensor in weights(finished).items():
        assert torch.equal(again.model.state_dict()[name], tensor), name
    assert {path.name for path in run.iterdir()} == before


def test_a_run_whose_last_epoch_is_over_is_loaded_and_ends(make_trainer, tmp_path):
    # 12 rows are three rollouts of four updates: epochs end at steps 12 and 24.
    settings = {**SETTINGS, "max_steps": -1, "save_steps": 6}
    first = make_trainer(num_train_epochs=1.5, **settings)
    first.train()
    assert first.state.global_step == 18
    again = make_trainer(model=tiny_model(seed=1), num_train_epochs=1.5, **settings)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 18
    for name, tensor in weights(first).items():
        assert torch.equal(again.model.state_dict()[name], tensor), name
    assert not (tmp_path / "run" / "checkpoint-19").exists()


def test_older_checkpoints_stay_until_the_new_one_is_complete(make_trainer, monkeypatch, tmp_path):
    left = []

    def spy(folder, **facts):
        left.append(last_complete_checkpoint(folder.parent))
        real(folder, **facts)

    real = checkpoint_saving.write_manifest
    monkeypatch.setattr(checkpoint_saving, "write_manifest", spy)
    make_trainer(**SETTINGS, save_total_limit=1).train()
    run = tmp_path / "run"
    assert left == [None, run / "checkpoint-1", run / "checkpoint-2"]
    assert [path.name for path in run.glob("checkpoint-*")] == ["checkpoint-3"]
    # What transformers is given meanwhile is no setting of the run.
    args = torch.load(run / "checkpoint-3" / "training_args.bin", weights_only=False)
    assert args.save_total_limit == 1


def test_a_full_disk_is_named_where_torch_does_not(make_trainer, monkeypatch, tmp_path):
    def torchs_error(*_, **__):
        monkeypatch.setattr(Path, "write_bytes", full_disk)
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0")

    monkeypatch.setattr("transformers.Trainer._save_optimizer_and_scheduler", torchs_error)
    with pytest.raises(CheckpointError, match=r"No space left on device \(\[enforce fail at inl"):
        make_trainer(**SETTINGS).train()


def full_disk(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    "what",
    [
        "transformers.trainer.Trainer._save_optimizer_and_scheduler",
        "lepo_kernels.trainer.resumable_trainer.save_experience",
        "lepo_kernels.trainer.checkpoint_saving.write_manifest",
    ],
)
def test_a_full_disk_leaves_the_last_good_one(make_trainer, monkeypatch, tmp_path, what):
    class Fill(TrainerCallback):
        def on_step_begin(self, args, state, control, **_):
            if state.global_step == 2:
                monkeypatch.setattr(what, full_disk)

    run = tmp_path / "run"
    with pytest.raises(CheckpointError) as failed:
        make_trainer(callbacks=[Fill()], **SETTINGS).train()
    message = str(failed.value)
    assert message.startswith(f"{run / 'checkpoint-3'} could not be written: ")
    assert "No space left on device" in message
    assert message.endswith(f"the last complete checkpoint is {run / 'checkpoint-2'}")
    assert not (run / "checkpoint-3").exists()
    monkeypatch.undo()
    resumed = make_trainer(**SETTINGS)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 3


def test_a_damaged_best_checkpoint_is_named(make_trainer, tmp_path):
    class Damage(TrainerCallback):
        def on_save(self, args, state, control, **_):
            if state.global_step == 3:
                cut(Path(state.best_model_checkpoint) / "model.safetensors")

    settings = {**SETTINGS, "eval_strategy": "steps", "eval_steps": 1, "eval_num_samples": 0}
    trainer = make_trainer(
        eval_rows=2, load_best_model_at_end=True, callbacks=[Damage()], **settings
    )
    with pytest.raises(ValueError, match=r"load_best_model_at_end: .*: model.safetensors has \d+"):
        trainer.train()
    assert trainer.state.global_step == 3


def test_another_number_of_processes_is_said(run, make_trainer, caplog):
    manifest = run / "checkpoint-3" / MANIFEST
    manifest.write_text(manifest.read_text().replace('"processes": 1', '"processes": 2'))
    # Inside a rollout of another number of processes there is no going on: its end is its last.
    make_trainer(**SETTINGS).train(resume_from_checkpoint=True)
    assert "was written by 2 processes, and 1 resume it" in caplog.text


def test_experience_comes_back_to_a_numbered_cpu(run):
    shape = torch.load(run / "checkpoint-3" / "experience_0.pt", weights_only=True)["shape"]
    loaded = load_experience(run / "checkpoint-3", 0, torch.device("cpu", 0), shape)
    assert len(loaded) == 16


def test_a_checkpoint_written_again_has_no_files_of_the_old_one(run, make_trainer):
    (run / "checkpoint-3" / "experience_1.pt").write_bytes(b"of another run")
    make_trainer(**SETTINGS).train(resume_from_checkpoint=str(run / "checkpoint-2"))
    assert is_complete(run / "checkpoint-3")
    assert not (run / "checkpoint-3" / "experience_1.pt").exists()


TWO_PROCESSES = """
import json, sys
import torch
torch.set_num_threads(1)
from lepo_kernels import LEPOConfig, LEPOTrainer
from tests.tiny import tiny_model, tiny_tokenizer
from tests.trainer.conftest import digits_reward, problems
folder, steps, resume = sys.argv[1], int(sys.argv[2]), len(sys.argv) > 3
args = LEPOConfig(
    output_dir=folder, per_device_train_batch_size=4, steps_per_generation=4, num_generations=4,
    max_steps=steps, save_strategy="steps", save_steps=1, latent_length=2, top_k=8,
    max_completion_length=6, learning_rate=1e-3, report_to="none", disable_tqdm=True, use_cpu=True,
    lr_scheduler_type="constant",
)
trainer = LEPOTrainer(
    tiny_model(), digits_reward, args, problems(8), processing_class=tiny_tokenizer()
)
trainer.train(resume_from_checkpoint=resume)
"""


@pytest.mark.slow
def test_two_processes_go_on_inside_a_rollout(tmp_path):
    script = tmp_path / "run.py"
    script.write_text(TWO_PROCESSES)

    def train(folder, *words):
        run_processes(script, str(tmp_path / folder), *words)

    train("whole", "3")
    train("torn", "2")
    manifest = json.loads((tmp_path / "torn" / "checkpoint-2" / MANIFEST).read_text())
    of_a_rank = {f"{kind}_{rank}" for kind in ("experience", "rng_state") for rank in (0, 1)}
    assert of_a_rank <= {Path(name).stem for name in manifest["files"]}
    train("torn", "3", "resume")
    files = [tmp_path / run / "checkpoint-3" / "model.safetensors" for run in ("whole", "torn")]
    assert files[0].read_bytes() == files[1].read_bytes()


def numbered(folder, *numbers):
    """Checkpoints, of which the later ones of the list were written later."""
    made = [folder / f"checkpoint-{number}" for number in numbers]
    for age, path in enumerate(made):
        path.mkdir()
        os.utime(path, (age, age))
    return made


def left_of(folder):
    return {int(path.name.removeprefix("checkpoint-")) for path in folder.glob("checkpoint-*[0-9]")}


@pytest.mark.parametrize(
    ("limit", "best", "left"),
    # 4 was written last, by a run that was resumed from 3.
    [
        (None, None, {1, 2, 3, 4, 5}),
        (0, None, {1, 2, 3, 4, 5}),
        (9, None, {1, 2, 3, 4, 5}),
        (1, None, {4}),
        (2, None, {4, 5}),
        (1, 2, {2, 4}),
        (3, 2, {2, 4, 5}),
        (1, 4, {4}),
    ],
)
def test_the_checkpoints_written_last_and_the_best_one_stay(tmp_path, limit, best, left):
    *_, newest = numbered(tmp_path, 1, 2, 3, 5, 4)
    (tmp_path / "checkpoint-mine").mkdir()
    trim_checkpoints(newest, limit, None if best is None else str(tmp_path / f"checkpoint-{best}"))
    assert left_of(tmp_path) == left
    assert (tmp_path / "checkpoint-mine").exists()
