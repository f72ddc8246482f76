"""A Trainer whose runs can be stopped by a signal, and resumed to the same weights, bit for bit.

What a resumed run needs beside transformers' own files: the experience of a rollout that is not
used up, the KL reference, the settings, and whether an evaluation is still due.
"""

import contextlib
import logging
from pathlib import Path
from typing import Any

from torch import nn
from transformers import Trainer
from transformers.trainer_callback import TrainerControl
from transformers.trainer_utils import IntervalStrategy

from lepo_kernels.report.run_folder import RunFolder
from lepo_kernels.trainer.checkpoint import (
    find_checkpoint,
    trim_checkpoints,
    warn_of_other_processes,
)
from lepo_kernels.trainer.checkpoint_saving import EVALUATION_DUE, complete_checkpoint
from lepo_kernels.trainer.config import LEPOConfig
from lepo_kernels.trainer.experience_files import save_experience
from lepo_kernels.trainer.kl_reference import KLReference
from lepo_kernels.trainer.manifest import damage, read_manifest
from lepo_kernels.trainer.model_settings import (
    data_digest,
    prompts_of,
    settings_of,
    write_settings,
)
from lepo_kernels.trainer.processes import alone_in_folder, first_process_decides
from lepo_kernels.trainer.random_states import RandomStates
from lepo_kernels.trainer.resume_check import check_resume
from lepo_kernels.trainer.rewards import Rewards
from lepo_kernels.trainer.rollout_schedule import RolloutSchedule
from lepo_kernels.trainer.run_state import RunState
from lepo_kernels.trainer.step_timer import StepTimer
from lepo_kernels.trainer.stopping import RunEnded, StopSignals
from lepo_kernels.trainer.update_guard import UpdateGuard, check_weights

_logger = logging.getLogger(__name__)


class ResumableTrainer(Trainer):
    """The base of `LEPOTrainer`: runs, signals, checkpoints and resuming.

    Args:
        args: the settings.
        **kwargs: transformers' other arguments.

    Attributes:
        rewards: the reward functions, whose names a resumed run must have too.
        reference: the KL reference; None without a KL term.
        task_settings: see `LEPOTrainer`.
    """

    args: LEPOConfig
    control: TrainerControl
    rewards: Rewards

    def __init__(self, args: LEPOConfig, **kwargs: Any) -> None:
        super().__init__(args=args, **kwargs)
        self.reference: KLReference | None = None
        self.task_settings: dict[str, Any] | None = None
        self._schedule = RolloutSchedule(args, self.accelerator.num_processes)
        self._guard = UpdateGuard(
            self.accelerator, Path(args.output_dir), args.skip_nonfinite_updates
        )
        self._stop = StopSignals()
        self._timer = StepTimer()
        self._run = RunState()
        self._data_sections: dict[str, Any] | None = None

    def train(
        self, resume_from_checkpoint: str | Path | bool | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        """Train; see transformers' Trainer.

        SIGTERM and SIGHUP end the run after a checkpoint of the last whole update, in the middle of
        a rollout or an evaluation, too; a second signal ends it at once. A signal that someone
        handles already, or that is ignored, is left alone.

        Args:
            resume_from_checkpoint: a checkpoint folder, or True for the last complete one in
                ``output_dir`` (one that was being written when the run was killed, or that is
                damaged, is skipped with a warning). The resumed run ends with the same weights,
                bit for bit, as one never interrupted. It keeps the run's settings; `resume_check`
                says which may change. A run that had reached its end is loaded, and ends.
            *args, **kwargs: given on.

        Raises:
            ValueError: there is no complete checkpoint to resume from, or the one named is damaged,
                or of other settings, or its run had another KL reference than this one would have.
            NonFiniteError: a loss, a gradient or a weight became NaN or infinite. An update with
                such a loss or gradient is not applied; ``skip_nonfinite_updates`` skips it.
            FolderInUseError: another run is using ``output_dir``.
            CheckpointError: a checkpoint could not be written, as on a full disk.
            RunEnded: a signal ended the run. It is a SystemExit: not caught, it ends Python with
                status 128 + the signal's number.
        """
        with alone_in_folder(self.args), self._stop:
            checkpoint = self._find_checkpoint(resume_from_checkpoint)
            self._start_run(checkpoint)
            try:
                output = super().train(
                    None if checkpoint is None else str(checkpoint), *args, **kwargs
                )
            except RunEnded as end:
                self._leave_checkpoint(end)
                raise
            check_weights(self.model, self.state.global_step)
            return output

    def _find_checkpoint(self, wanted: str | Path | bool | None) -> Path | None:
        """The checkpoint to resume from, which fits this run; None for a new run."""
        if not wanted:
            return None
        found = first_process_decides(
            self.args, lambda: find_checkpoint(Path(self.args.output_dir), wanted)
        )
        check_resume(found, self._settings_sections(), quiet=not self.is_world_process_zero())
        if self.reference is not None:
            self.reference.restore(found)
        return found

    def _start_run(self, checkpoint: Path | None) -> None:
        if checkpoint is None:
            self._run = RunState()
        else:
            self._run = RunState.from_checkpoint(checkpoint)
            if self.is_world_process_zero():
                RunFolder(self.args.output_dir).forget_after(
                    self._run.saved_step, evaluation=self._run.evaluation_due
                )
                processes = self.accelerator.num_processes
                warn_of_other_processes(checkpoint, read_manifest(checkpoint), processes)
        self._schedule.start()
        self._timer.start()
        self._guard.start()

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # transformers looks after an update whether it was the last one.
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    def _finalize_training(self, *args: Any, **kwargs: Any) -> Any:
        # A run that was at its end already has gone by where transformers restores these.
        if self._run.resumed_from is not None and self._run.random_states is None:
            self._load_rng_state(str(self._run.resumed_from))
        return super()._finalize_training(*args, **kwargs)

    def _leave_checkpoint(self, end: RunEnded) -> None:
        """Save the last whole update: a resumed run repeats what was done since then."""
        step = self.state.global_step
        if step > self._run.saved_step:
            assert self._run.random_states is not None
            self._run.random_states.restore(self.args.device)
            self._save_checkpoint(self.model_wrapped, trial=None)
            self.control = self.callback_handler.on_save(self.args, self.state, self.control)
        if self.is_world_process_zero():
            text = "nothing was trained on yet"
            if self._run.saved_step > 0:
                text = (
                    f"checkpoint-{self._run.saved_step} in {self.args.output_dir} holds the run; "
                    "resume_from_checkpoint resumes it"
                )
            _logger.warning(
                "%s: ended at step %d of %d; %s", end.signal_name, step, self.state.max_steps, text
            )
        with contextlib.suppress(OSError):  # a terminal that is gone
            self.callback_handler.on_train_end(self.args, self.state, self.control)
        self.is_in_train = False

    # What is saved with a model

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model, the tokenizer, and the settings they are to be used with.

        Args:
            output_dir: the folder; None takes the run's.

        Raises:
            NonFiniteError: a trained weight is NaN or infinite; nothing is written.
        """
        if not _internal_call:  # a checkpoint has been checked, before its first file
            check_weights(self.model, self.state.global_step)
        if self.args.should_save:
            folders = [self.args.output_dir if output_dir is None else output_dir]
            if self.args.push_to_hub:
                # What transformers uploads with a checkpoint lies in the run's folder.
                folders.append(self.args.output_dir)
            for folder in folders:
                write_settings(folder, self._settings_sections())
        super().save_model(output_dir, _internal_call)

    def _settings_sections(self) -> dict[str, Any]:
        """What `model_settings` writes beside the weights."""
        if self._data_sections is None:
            train = self.train_dataset
            data = {
                "processes": self.accelerator.num_processes,
                "reward_funcs": self.rewards.names,
                "train_dataset": data_digest(train),
            }
            prompts = prompts_of(self.eval_dataset if train is None else train)
            self._data_sections = {"prompts": prompts, "data": data}
        return {**self._data_sections, "task": self.task_settings, **settings_of(self.args)}

    # Checkpoints: when one is due, what it holds, and what a resumed run restores

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        called_again = self._run.ends_epoch(self.state.global_step, self.state.epoch)
        self._run.evaluation_due = self.control.should_evaluate or (
            called_again and self.args.eval_strategy == IntervalStrategy.EPOCH
        )
        self._run.random_states = RandomStates.now(self.args.device)
        super()._maybe_log_save_evaluate(*args, **kwargs)
        self._run.random_states = RandomStates.now(self.args.device)
        if not called_again:
            self._stop.agree()

    def _evaluate(self, *args: Any, **kwargs: Any) -> Any:
        metrics = super()._evaluate(*args, **kwargs)
        self._run.evaluation_due = False
        return metrics

    def _load_best_model(self) -> None:
        best = Path(str(self.state.best_model_checkpoint))
        reason = first_process_decides(self.args, lambda: damage(best))
        if reason is not None:
            raise ValueError(f"load_best_model_at_end: {best} cannot be loaded: {reason}")
        super()._load_best_model()

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        args, step, experience = self.args, self.state.global_step, self._run.experience
        check_weights(self.model, step)
        folder = Path(self._get_output_dir(trial)) / f"checkpoint-{step}"
        facts = {EVALUATION_DUE: True} if self._run.evaluation_due else {}
        sections = self._settings_sections
        with complete_checkpoint(folder, args, self.accelerator, sections, step=step, **facts):
            # Inside a rollout, the rest of it is still to be trained on.
            if step % args.updates_per_rollout and experience is not None:
                save_experience(folder, args.process_index, experience, self._schedule.shape)
            if self.reference is not None and args.should_save:
                self.reference.save(folder)
            super()._save_checkpoint(model, trial)
        self._run.saved_step = step
        if args.should_save:
            trim_checkpoints(folder, args.save_total_limit, self.state.best_model_checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)
        # Where the interrupted run would have evaluated: rewards may draw from these generators.
        self._evaluate_if_due()

    def _evaluate_if_due(self) -> None:
        """Repeat the evaluation that a signal interrupted."""
        if self._run.evaluation_due:
            metrics = self._evaluate(None, None)
            self._determine_best_metric(metrics=metrics, trial=None)
