"""SIGTERM and SIGHUP, wherever they come, leave a checkpoint that is gone on from bit for bit."""

import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from transformers import TrainerCallback

from lepo_kernels.trainer.checkpoint import is_complete
from lepo_kernels.trainer.stopping import RunEnded, StopSignals
from tests.trainer.conftest import digits_reward

# A rollout serves two updates of two micro-batches; an evaluation follows every third update; the
# run crosses an epoch after its fourth. Nothing but a signal makes it save.
SETTINGS = {
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "steps_per_generation": 4,
    "num_generations": 4,
    "max_steps": 6,
    "rows": 8,
    "beta": 0.05,
    "eval_rows": 3,
    "eval_strategy": "steps",
    "eval_steps": 3,
    "eval_num_samples": 1,
    "lr_scheduler_type": "cosine",
}


def noisy_reward(completions, **_):
    """Draws from a global generator: where it stands is part of a run's state."""
    return [reward + random.random() for reward in digits_reward(completions)]


def weights(trainer):
    return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


def evaluations(trainer):
    return [
        {name: value for name, value in log.items() if not name.endswith("runtime")}
        for log in trainer.state.log_history
        if "eval_runtime" in log
    ]


class EndedError(Exception):
    pass


class EndAt(TrainerCallback):
    """Ends the run at the first forward after a step, as a kill does."""

    def __init__(self, step):
        self.step = step

    def on_train_begin(self, args, state, control, model, **_):
        model.register_forward_pre_hook(self.forward)
        self.state = state

    def on_evaluate(self, *_, **__):
        self.evaluated = True

    def forward(self, *_):
        if self.state.global_step == self.step and getattr(self, "evaluated", False):
            raise EndedError


class SignalAtForward:
    """Sends a signal to this process before the model's n-th forward."""

    def __init__(self, model, n, signum=signal.SIGTERM):
        self.n, self.signum, self.seen = n, signum, 0
        model.register_forward_pre_hook(self)

    def __call__(self, *_):
        self.seen += 1
        if self.seen == self.n:
            os.kill(os.getpid(), self.signum)


@pytest.fixture(scope="module")
def forwards():
    return {}


@pytest.fixture
def unbroken(make_trainer, tmp_path, forwards):
    trainer = make_trainer(reward=noisy_reward, output_dir=str(tmp_path / "whole"), **SETTINGS)
    counter = SignalAtForward(trainer.model, -1)
    trainer.train()
    forwards["all"] = counter.seen
    return trainer


# Shares of all forwards of the run: rollouts, updates and evaluations are met in turn.
@pytest.mark.parametrize("share", [0.0, 0.15, 0.3, 0.4, 0.45, 0.5, 0.6, 0.75, 0.9, 1.0])
def test_a_signal_at_any_forward_is_gone_on_from(make_trainer, unbroken, forwards, tmp_path, share):
    trainer = make_trainer(reward=noisy_reward, **SETTINGS)
    at = 1 + round(share * (forwards["all"] - 1))
    counter = SignalAtForward(trainer.model, at)
    with pytest.raises(RunEnded) as ended:
        trainer.train()
    assert ended.value.code == 128 + signal.SIGTERM
    # The forward that the signal came before, and the pass over a micro-batch that it may be in.
    assert counter.seen <= at + 2 * SETTINGS["gradient_accumulation_steps"]
    step = trainer.state.global_step
    saved = tmp_path / "run" / f"checkpoint-{step}"
    assert is_complete(saved) == (step > 0)
    resumed = make_trainer(reward=noisy_reward, **SETTINGS)
    resumed.train(resume_from_checkpoint=step > 0)
    for name, tensor in weights(unbroken).items():
        assert torch.equal(resumed.model.state_dict()[name], tensor), name
    assert evaluations(resumed) == evaluations(unbroken)


def test_an_epochs_evaluation_is_made_up_for(make_trainer, tmp_path):
    # The checkpoint of an epoch's last update is older than the evaluation that ends the epoch.
    settings = {**SETTINGS, "eval_strategy": "epoch", "save_strategy": "steps", "save_steps": 4}

    def fails(*_, **__):
        raise EndedError

    whole = make_trainer(reward=noisy_reward, output_dir=str(tmp_path / "whole"), **settings)
    whole.train()
    broken = make_trainer(reward=noisy_reward, **settings)
    broken.evaluate = fails
    with pytest.raises(EndedError):
        broken.train()
    assert broken.state.global_step == 4
    # The evaluation that is made up for may itself have been followed by a kill.
    for _ in range(2):
        again = make_trainer(reward=noisy_reward, callbacks=[EndAt(4)], **settings)
        with pytest.raises(EndedError):
            again.train(resume_from_checkpoint=True)
    rows = (tmp_path / "run" / "evaluations.jsonl").read_text().splitlines()
    assert len(rows) == 3 * 2
    resumed = make_trainer(reward=noisy_reward, **settings)
    resumed.train(resume_from_checkpoint=True)
    assert evaluations(resumed) == evaluations(whole)
    for name, tensor in weights(whole).items():
        assert torch.equal(resumed.model.state_dict()[name], tensor), name


def test_the_message_says_how_to_resume(make_trainer, caplog, capfd):
    trainer = make_trainer(**SETTINGS)
    SignalAtForward(trainer.model, 60, signal.SIGHUP)
    with pytest.raises(RunEnded) as ended:
        trainer.train()
    assert ended.value.code == 128 + signal.SIGHUP
    step = trainer.state.global_step
    assert f"SIGHUP: ended at step {step} of 6; checkpoint-{step} in" in caplog.text
    assert "resume_from_checkpoint resumes it" in caplog.text
    assert "SIGHUP: ending where the run can be resumed" in capfd.readouterr().err


def test_handlers_come_and_go_with_training(make_trainer):
    trainer = make_trainer()
    seen = []
    trainer.model.register_forward_pre_hook(
        lambda *_: seen.append(signal.getsignal(signal.SIGTERM))
    )
    trainer.train()
    assert set(seen) == {trainer._stop._note}
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.parametrize("handler", [signal.SIG_IGN, lambda *_: None], ids=["nohup", "own"])
def test_handlers_of_others_stay(make_trainer, handler):
    before = signal.signal(signal.SIGHUP, handler)
    try:
        trainer = make_trainer()
        SignalAtForward(trainer.model, 3, signal.SIGHUP)
        trainer.train()
        assert trainer.state.global_step == 2
        assert signal.getsignal(signal.SIGHUP) is handler
    finally:
        signal.signal(signal.SIGHUP, before)


def test_training_outside_the_main_thread_goes_without(make_trainer):
    trainer = make_trainer()
    thread = threading.Thread(target=trainer.train)
    thread.start()
    thread.join()
    assert trainer.state.global_step == 2


def test_an_evaluation_alone_ends_too(make_trainer):
    trainer = make_trainer(eval_rows=3, eval_num_samples=0)
    SignalAtForward(trainer.model, 2)
    with pytest.raises(RunEnded):
        trainer.evaluate()


def test_two_signals_at_once_are_one():
    with StopSignals() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGHUP)  # as systemd does
        assert stop.requested == signal.SIGTERM
    with stop:  # and are forgotten
        assert stop.requested is None


def test_a_second_signal_ends_at_once(tmp_path):
    code = (
        "import os, signal, time\n"
        "from lepo_kernels.trainer.stopping import StopSignals\n"
        "with StopSignals():\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    time.sleep(1.1)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    time.sleep(60)\n"
    )
    root = Path(__file__).parents[2]
    ended = subprocess.run([sys.executable, "-c", code], cwd=root, timeout=120, check=False)
    assert ended.returncode == -signal.SIGTERM


def test_transformers_own_way_is_refused(make_trainer):
    with pytest.raises(ValueError, match="enable_jit_checkpoint: leave it out"):
        make_trainer(enable_jit_checkpoint=True)


AFTER_HANGUP = """
import fcntl, sys, termios, time
from pathlib import Path
from lepo_kernels.trainer.stopping import StopSignals
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
with StopSignals() as stop:
    print("ready", flush=True)
    while stop.requested is None:
        time.sleep(0.01)
    print("into the void", flush=True)  # an OSError, were it not for the handler
    Path(sys.argv[1]).touch()
"""


def test_a_terminal_that_is_gone_can_be_written_to(tmp_path):
    controller, terminal = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", AFTER_HANGUP, str(tmp_path / "done")],
        cwd=Path(__file__).parents[2],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
    )
    os.close(terminal)
    assert b"ready" in os.read(controller, 100)
    os.close(controller)
    assert process.wait(timeout=120) == 0
    assert (tmp_path / "done").exists()
