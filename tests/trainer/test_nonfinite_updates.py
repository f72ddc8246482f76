"""An update that is not finite never reaches the weights, and says what was wrong with it."""

import copy
import math

import pytest
import torch
from transformers import TrainerCallback

import lepo_kernels.trainer.trainer as trainer_module
from lepo_kernels.report.run_folder import NONFINITE_BATCH, RunFolder
from lepo_kernels.trainer.experience import Experience
from lepo_kernels.trainer.update_guard import MOST_KEPT, NonFiniteError, check_weights, reward_cause
from tests.tiny import tiny_model
from tests.torchrun import run_processes

CHECKPOINTS = {"save_strategy": "steps", "save_steps": 1, "max_steps": 4}


class Snapshots(TrainerCallback):
    """The weights and the optimizer's state after each update, and the state after the last."""

    def __init__(self):
        self.weights = {}
        self.optimizer = {}

    def on_step_end(self, args, state, control, model, optimizer, **_):
        self.weights[state.global_step] = copy.deepcopy(model.state_dict())
        self.optimizer[state.global_step] = copy.deepcopy(optimizer.state_dict()["state"])


def spoil_loss(monkeypatch, trainer, at, value=float("nan")):
    """Make the loss of the update after step ``at`` (or of all, if None) this value."""
    plain = trainer_module.policy_loss

    def spoiled(*args, **kwargs):
        result = plain(*args, **kwargs)
        if at is None or trainer.state.global_step == at:
            result = result._replace(loss=result.loss * value)
        return result

    monkeypatch.setattr(trainer_module, "policy_loss", spoiled)


def spoil_gradient(trainer, name, at, value=float("nan")):
    """Put a value into the gradient of one parameter, while the loss stays finite."""

    def spoil(gradient):
        return torch.full_like(gradient, value) if trainer.state.global_step == at else gradient

    dict(trainer.model.named_parameters())[name].register_hook(spoil)


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
# In the middle of a run, and in its last update, which no later one would have noticed.
@pytest.mark.parametrize("at", [1, 3])
@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_bad_update_ends_the_run_before_it_is_applied(
    make_trainer, monkeypatch, tmp_path, where, at, value
):
    seen = Snapshots()
    trainer = make_trainer(callbacks=[seen], **CHECKPOINTS)
    name = "model.layers.1.mlp.up_proj.weight"
    if where == "loss":
        spoil_loss(monkeypatch, trainer, at, value)
        said = "of micro-batch 0"
    else:
        spoil_gradient(trainer, name, at, value)
        said = f"gradient of {name}"
    with pytest.raises(NonFiniteError) as raised:
        trainer.train()
    run = tmp_path / "run"
    file = run / NONFINITE_BATCH.format(step=at + 1, process=0)
    for part in (f"update {at + 1} is not finite", said, f"checkpoint-{at}", str(file)):
        assert part in str(raised.value)
    assert_same(trainer.model.state_dict(), seen.weights[at])
    assert not (run / f"checkpoint-{at + 1}").exists()
    kept = torch.load(file, weights_only=True)
    assert kept["step"] == at + 1
    assert any(said in cause for cause in kept["causes"])
    assert len(Experience.from_state_dict(kept["experience"])) == 8
    # What is left is good: a run without the fault goes on from it.
    monkeypatch.undo()
    resumed = make_trainer(**CHECKPOINTS)
    resumed.train(resume_from_checkpoint=True)
    check_weights(resumed.model, 4)


def test_the_kept_batch_is_the_whole_update(make_trainer, monkeypatch, tmp_path):
    trainer = make_trainer(
        per_device_train_batch_size=2, gradient_accumulation_steps=4, max_steps=1
    )
    plain = trainer_module.policy_loss
    sizes = []

    def third_is_bad(*args, **kwargs):
        sizes.append(1)
        result = plain(*args, **kwargs)
        return result._replace(loss=result.loss * float("nan")) if len(sizes) == 3 else result

    monkeypatch.setattr(trainer_module, "policy_loss", third_is_bad)
    with pytest.raises(NonFiniteError, match="loss nan of micro-batch 2"):
        trainer.train()
    kept = torch.load(
        tmp_path / "run" / NONFINITE_BATCH.format(step=1, process=0), weights_only=True
    )
    assert len(Experience.from_state_dict(kept["experience"])) == 8
    assert [math.isfinite(loss) for loss in kept["losses"]] == [True, True, False, True]


def test_rewards_are_named_as_the_cause(make_trainer, monkeypatch):
    def first(completions, **_):
        return [1.0] * len(completions)

    def second(completions, **_):
        return [float(i) for i in range(len(completions))]

    trainer = make_trainer(reward=[first, second], max_steps=1)
    # However a reward's size came through.
    weights = torch.tensor([1.0, float("inf")], dtype=torch.float64)
    monkeypatch.setattr(trainer.rewards, "weights", weights.tolist())
    monkeypatch.setattr(trainer.rewards, "total", lambda rewards: (rewards * weights).sum(-1))
    with pytest.raises(NonFiniteError, match=r"advantages of the batch's samples .*'second'"):
        trainer.train()


def test_the_largest_weighted_reward_is_the_cause():
    nan, inf = float("nan"), float("inf")
    rewards = torch.tensor([[1.0, 2.0], [nan, 1e200], [5.0, nan]], dtype=torch.float64)
    fine = torch.zeros(3, dtype=torch.float64)
    assert reward_cause(["a", "b"], [1.0, 1.0], rewards, fine) is None
    # A float64 that float32 does not hold is as bad as an infinite one.
    bad = torch.tensor([0.0, 1e200, 0.0], dtype=torch.float64)
    said = reward_cause(["a", "b"], [1.0, 1.0], rewards, bad)
    assert "1 of the rollout's 3 samples" in said
    assert "1e+200 of reward function 'b' for sample 1" in said
    # A missing reward takes no part; a weight that is not finite does.
    said = reward_cause(["a", "b"], [nan, 1.0], rewards, torch.tensor([0.0, 0.0, inf]))
    assert "5 of reward function 'a' for sample 2 (weight nan)" in said


def test_reference_log_probs_are_named_with_their_samples(make_trainer):
    trainer = make_trainer(beta=0.1, max_steps=1)
    collect = trainer.collector.collect

    def spoiled(*args):
        collected = collect(*args)
        collected.experience.ref_log_probs[3] = float("nan")
        return collected

    trainer.collector.collect = spoiled
    with pytest.raises(NonFiniteError, match="ref_log_probs of the batch's samples 3; loss nan"):
        trainer.train()


def test_a_gradient_too_large_to_be_clipped_is_bad(make_trainer):
    """Every entry is finite, but clipping by an infinite norm would make all of them 0."""
    trainer = make_trainer(max_steps=1)
    spoil_gradient(trainer, "model.norm.weight", 0, 1e30)
    with pytest.raises(NonFiniteError, match="the gradient's norm, whose square overflows"):
        trainer.train()


def test_a_model_that_is_not_finite_says_so(make_trainer):
    def spoil(model):
        with torch.no_grad():
            model.model.norm.weight[0] = float("nan")
        return model

    model = tiny_model()
    trainer = make_trainer(model=model)
    spoil(model)
    with pytest.raises(NonFiniteError, match="update 1: the model's own logits are not finite"):
        trainer.train()
    for off in (True, False):
        with pytest.raises(ValueError, match="model: its logits for a probe prompt are not finite"):
            make_trainer(model=spoil(tiny_model()), disable_dropout=off)


@pytest.mark.parametrize("skip", [False, True])
def test_activations_that_overflow_in_training_alone(make_trainer, skip):
    """Rows are checked on the CPU: they raise in the forward, before there is a loss."""
    trainer = make_trainer(max_steps=2, skip_nonfinite_updates=skip)

    def overflow(module, args, output):
        return output * float("inf") if trainer.model.training else output

    handle = trainer.model.model.norm.register_forward_hook(overflow)
    before = copy.deepcopy(trainer.model.state_dict())
    if skip:
        trainer.train()
        assert [log["skipped_updates"] for log in losses(trainer)] == [1, 1]
    else:
        with pytest.raises(NonFiniteError, match=r"update 1 is not finite.*loss nan"):
            trainer.train()
    handle.remove()
    assert_same(trainer.model.state_dict(), before)


def losses(trainer):
    return [log for log in trainer.state.log_history if "loss" in log]


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_bad_update_can_be_skipped(make_trainer, monkeypatch, tmp_path, where):
    """Neither weights nor the optimizer move, the step counts, and later ones go on."""
    seen = Snapshots()
    trainer = make_trainer(
        callbacks=[seen], skip_nonfinite_updates=True, weight_decay=0.1, **CHECKPOINTS
    )
    if where == "loss":
        spoil_loss(monkeypatch, trainer, at=1)
    else:
        spoil_gradient(trainer, "model.norm.weight", at=1)
    trainer.train()
    assert trainer.state.global_step == 4
    assert_same(seen.weights[2], seen.weights[1])
    for index, state in seen.optimizer[1].items():
        assert_same(seen.optimizer[2][index], state)
    assert any(
        not torch.equal(seen.weights[3][name], tensor) for name, tensor in seen.weights[2].items()
    )
    assert [log["skipped_updates"] for log in losses(trainer)] == [0, 1, 0, 0]
    assert all(math.isfinite(log["loss"]) for log in losses(trainer))
    assert (tmp_path / "run" / NONFINITE_BATCH.format(step=2, process=0)).exists()


@pytest.mark.parametrize("scale", [2.0**16, 1.0])
def test_an_overflow_under_loss_scaling_is_the_scalers(make_trainer, scale):
    """It skips the update and lowers the scale; at scale 1 the gradient itself is bad."""
    trainer = make_trainer(max_steps=3)
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    spoil_gradient(trainer, "model.norm.weight", at=1, value=float("inf"))
    if scale == 1.0:
        with pytest.raises(NonFiniteError, match=r"update 2 is not finite.*model.norm.weight"):
            trainer.train()
        return
    trainer.train()
    assert [log["skipped_updates"] for log in losses(trainer)] == [0, 1, 0]
    assert trainer.accelerator.scaler.get_scale() == scale / 2
    check_weights(trainer.model, 3)


@pytest.mark.parametrize("skip", [False, True])
def test_a_bad_loss_under_loss_scaling_is_not_the_scalers(make_trainer, monkeypatch, skip):
    seen = Snapshots()
    trainer = make_trainer(max_steps=2, skip_nonfinite_updates=skip, callbacks=[seen])
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu")
    spoil_loss(monkeypatch, trainer, at=1)
    if skip:
        trainer.train()
        assert_same(seen.weights[2], seen.weights[1])
        assert [log["skipped_updates"] for log in losses(trainer)] == [0, 1]
    else:
        with pytest.raises(NonFiniteError, match=r"update 2 is not finite.*loss nan"):
            trainer.train()


def test_skipped_batches_do_not_fill_the_disk(make_trainer, monkeypatch, tmp_path):
    steps = MOST_KEPT + 2
    trainer = make_trainer(max_steps=steps, skip_nonfinite_updates=True, logging_steps=steps)
    spoil_loss(monkeypatch, trainer, at=None)
    before = copy.deepcopy(trainer.model.state_dict())
    trainer.train()
    assert_same(trainer.model.state_dict(), before)
    assert losses(trainer)[0]["skipped_updates"] == steps
    kept = list((tmp_path / "run").glob(NONFINITE_BATCH.format(step="*", process="*")))
    assert len(kept) == MOST_KEPT
    RunFolder(tmp_path / "run").clear()
    assert not any(file.exists() for file in kept)


def test_a_full_disk_does_not_hide_the_cause(make_trainer, monkeypatch):
    trainer = make_trainer(max_steps=1)
    spoil_loss(monkeypatch, trainer, at=0)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lepo_kernels.trainer.update_guard.torch.save", full)
    with pytest.raises(NonFiniteError, match=r"loss nan.*could not be kept.*No space left"):
        trainer.train()


@pytest.mark.parametrize("last", [False, True])
def test_weights_that_overflow_are_never_saved(make_trainer, tmp_path, last):
    """The gradient is finite, the step it takes is not."""
    trainer = make_trainer(learning_rate=1e38, **{**CHECKPOINTS, "max_steps": 1 if last else 4})
    if last:
        trainer.args.save_strategy = "no"
    with pytest.raises(NonFiniteError, match=r"the weights after update 1 are not finite.*model"):
        trainer.train()
    assert not list((tmp_path / "run").glob("checkpoint-*"))
    with pytest.raises(NonFiniteError, match="are not saved"):
        trainer.save_model(str(tmp_path / "final"))
    assert not (tmp_path / "final").exists()


RUN = """
import sys
import torch
torch.set_num_threads(1)
from lepo_kernels.trainer.config import LEPOConfig
from lepo_kernels.trainer.trainer import LEPOTrainer
from lepo_kernels.trainer.update_guard import NonFiniteError
from tests.tiny import tiny_model, tiny_tokenizer
from tests.trainer.conftest import digits_reward, problems

class Spoiled(LEPOTrainer):
    def compute_loss(self, *args, **kwargs):
        loss = super().compute_loss(*args, **kwargs)
        bad = self.args.process_index == 1 and self.state.global_step == 1
        return loss * float("nan") if bad else loss

args = LEPOConfig(
    output_dir=sys.argv[1], per_device_train_batch_size=4, num_generations=4, max_steps=2,
    learning_rate=1e-3, latent_length=2, max_completion_length=6, top_k=8, report_to="none",
    disable_tqdm=True, use_cpu=True, save_strategy="no",
    skip_nonfinite_updates=sys.argv[2] == "skip",
)
trainer = Spoiled(
    tiny_model(), digits_reward, args, train_dataset=problems(8), processing_class=tiny_tokenizer()
)
said = "trained"
try:
    trainer.train()
except NonFiniteError as error:
    said = str(error)
with open(f"{sys.argv[1]}/said_{args.process_index}", "w") as file:
    file.write(f"{trainer.state.global_step} {said}")
"""


@pytest.mark.slow
@pytest.mark.parametrize("skip", ["stop", "skip"])
def test_all_processes_stop_for_one(tmp_path, skip):
    """A loss that is bad on one process stops, or is skipped by, all of them alike."""
    script = tmp_path / "run.py"
    script.write_text(RUN)
    run_processes(script, str(tmp_path), skip)
    for process in (0, 1):
        said = (tmp_path / f"said_{process}").read_text()
        if skip == "skip":
            assert said == "2 trained"
        else:
            assert said.startswith("1 update 2 is not finite")
            # Both know what the one at fault saw.
            assert "process 1: loss nan of micro-batch 0" in said
        assert (tmp_path / NONFINITE_BATCH.format(step=2, process=process)).exists()
