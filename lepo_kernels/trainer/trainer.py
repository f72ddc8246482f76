"""`LEPOTrainer`: group rollouts with latent steps, rewards and LEPO's loss, on HF's Trainer.

The Trainer owns the loop, the optimizer, checkpoints, distribution and logging. Here stand only the
places where LEPO differs: what a batch is, what its loss is, how to evaluate, and what a checkpoint
must hold besides for a resumed run to end with the same bits.
"""

import contextlib
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, Trainer
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_callback import TrainerCallback, TrainerControl
from transformers.trainer_utils import IntervalStrategy, rotate_checkpoints

from lepo_kernels.report.run_folder import RunFolder
from lepo_kernels.report.run_lock import RunLock
from lepo_kernels.rollout._modules import unwrap_model
from lepo_kernels.rollout.policy_loss import policy_loss
from lepo_kernels.trainer.adapters import (
    check_trainable,
    is_peft,
    put_on_adapter,
    report_dropout,
)
from lepo_kernels.trainer.agreement import SamplingAgreement
from lepo_kernels.trainer.best_metric import choose_best_metric
from lepo_kernels.trainer.checkpoint import (
    EVALUATION_DUE,
    find_checkpoint,
    load_experience,
    save_experience,
    warn_of_other_processes,
    writing,
)
from lepo_kernels.trainer.collect import Collector
from lepo_kernels.trainer.config import LEPOConfig
from lepo_kernels.trainer.dataset_checks import check_dataset, check_prompts
from lepo_kernels.trainer.distribution import check_model, check_settings, check_trainer
from lepo_kernels.trainer.dropout import switch_off_dropout
from lepo_kernels.trainer.evaluation import EvaluationResult, evaluate_checked, summarise
from lepo_kernels.trainer.experience import Experience
from lepo_kernels.trainer.generation import generation_config
from lepo_kernels.trainer.manifest import MANIFEST, damage, read_manifest, write_manifest
from lepo_kernels.trainer.metrics import MetricMeans
from lepo_kernels.trainer.model_limits import limits_of
from lepo_kernels.trainer.model_settings import (
    data_digest,
    prompts_of,
    settings_of,
    write_settings,
)
from lepo_kernels.trainer.preparation import (
    frozen_copy,
    load_model,
    load_tokenizer,
)
from lepo_kernels.trainer.processes import first_process_decides
from lepo_kernels.trainer.random_states import RandomStates
from lepo_kernels.trainer.resume_check import check_resume
from lepo_kernels.trainer.rewards import RewardFunction, Rewards
from lepo_kernels.trainer.sampler import GroupSampler
from lepo_kernels.trainer.samples import SampleLog
from lepo_kernels.trainer.servable import check_policy
from lepo_kernels.trainer.starting_point import StartingPoint, check_marks, save_marks
from lepo_kernels.trainer.stopping import RunEnded, StopSignals
from lepo_kernels.trainer.update_guard import (
    NonFiniteError,
    UpdateGuard,
    check_weights,
    reward_cause,
)
from lepo_kernels.validation import NonFiniteRowError

_logger = logging.getLogger(__name__)


class LEPOTrainer(Trainer):
    """Train a causal language model with LEPO (arXiv 2604.17892).

    Args:
        model: a causal language model, or a name or folder for ``from_pretrained``.
        reward_funcs: one or several ``f(prompts, completions, completion_ids, **columns)`` that
            return a list of floats or Nones; plain or async. See `Rewards` for what else they are
            given and how they are called.
        args: the settings.
        train_dataset: a ``datasets.Dataset``, or a list of dicts, with a column ``prompt`` (text or
            chat messages); other columns are given to the reward functions. See `check_dataset`.
        eval_dataset: the same, held out, or a dict of such; None trains without evaluation.
        processing_class: the tokenizer; None loads the model's own.
        callbacks, optimizers: as in transformers' Trainer.
        peft_config: a peft configuration; the model is then wrapped in a new adapter. A model that
            has an adapter already, trained or not, is given without: that adapter is trained on
            (load it with ``is_trainable=True``; the name of an adapter's folder does so).

    With ``beta`` > 0 the KL reference is the policy at the start of the run, whatever it starts
    from. A resumed run has the same: checkpoints of an adapter hold it, those of a whole model
    refuse to be resumed with another.

    Attributes:
        evaluation_progress: called with (completions done, completions in all) of an evaluation.
        activity: called with what is going on ("rollout", "evaluation", "rewards", ...) and the
            decoding steps done and at most; see `ProgressCallback`, which shows both.
        task_settings: the options of ``lepo train`` that name the task (``{"task": "gsm8k"}``);
            saved with the model, so that ``lepo eval`` knows it. None without a task.

    Raises:
        TypeError, ValueError: an argument or a setting cannot work; raised before any work starts.
    """

    args: LEPOConfig
    control: TrainerControl

    def __init__(
        self,
        model: str | PreTrainedModel | nn.Module,
        reward_funcs: RewardFunction | Sequence[RewardFunction],
        args: LEPOConfig,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        peft_config: Any = None,
    ) -> None:
        if not isinstance(args, LEPOConfig):
            raise TypeError(f"args: expected a LEPOConfig, got {type(args).__name__}")
        check_settings(args)
        self.rewards = Rewards(reward_funcs, args.reward_weights, args.reward_timeout)
        check_dataset("train_dataset", train_dataset, self.rewards)
        check_dataset("eval_dataset", eval_dataset, self.rewards, several=True)
        if type(self).evaluate is LEPOTrainer.evaluate:  # a subclass may have metrics of its own
            choose_best_metric(args, eval_dataset)
        loaded_from = model if isinstance(model, str) else None
        model = load_model(model, args.model_init_kwargs)
        processing_class = load_tokenizer(model, processing_class, loaded_from)
        self.generation = generation_config(args, model, processing_class)
        limits = limits_of(model, args.max_completion_length, args.max_prompt_length)
        check_prompts("train_dataset", train_dataset, processing_class, limits)
        self._eval_limits = replace(limits, max_prompt_length=None)
        check_prompts("eval_dataset", eval_dataset, processing_class, self._eval_limits)
        # Datasets that need no second look at every evaluation.
        self._checked = [eval_dataset]
        if isinstance(eval_dataset, dict):
            self._checked += eval_dataset.values()
        if peft_config is not None:
            model = put_on_adapter(model, peft_config)
        check_model(model)
        unwrap_model(model)  # refuses what is no decoder-only model, or learns prompts
        check_trainable(model)
        # Batches here are lists of dataset rows: transformers cannot count tokens in them.
        model.warnings_issued = {"estimate_tokens": True}
        super().__init__(
            model=model,
            args=args,
            data_collator=_keep_rows,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        check_trainer(args, self.accelerator)
        self.model_accepts_loss_kwargs = False
        if args.disable_dropout:
            report_dropout(model)
            switch_off_dropout(model)
        with self.accelerator.autocast():
            check_policy(model, self.generation, processing_class, train_dataset, eval_dataset)
        if train_dataset is not None:
            self._make_sampler()  # refuses a dataset that is too small, before any work
        self.reference = None
        self._start: StartingPoint | None = None
        if args.beta > 0 and is_peft(model):
            self._start = StartingPoint(model)
        elif args.beta > 0:
            self.reference = frozen_copy(model).to(args.device)
        self._means = MetricMeans()
        self._stop = StopSignals()
        self.agreement = SamplingAgreement(
            self._means,
            args.sampling_logp_difference_warning,
            args.sampling_logp_difference_error,
        )
        self.collector = Collector(
            args,
            self.generation,
            processing_class,
            self.rewards,
            self.accelerator,
            self.agreement,
            self._stop,
        )
        self.sample_log = SampleLog(Path(args.output_dir), processing_class, self.rewards.names)
        self.evaluation_progress: Callable[[int, int], None] | None = None
        self.activity: Callable[[str, int, int], None] | None = None
        self.task_settings: dict[str, Any] | None = None
        self._guard = UpdateGuard(
            self.accelerator, Path(args.output_dir), args.skip_nonfinite_updates
        )
        self._reward_cause: str | None = None
        self._experience: Experience | None = None
        self._resumed_from: Path | None = None
        self._data_sections: dict[str, Any] | None = None
        self._saved_step = 0
        self._evaluation_due = False
        self._random_states: RandomStates | None = None
        self._ended_epoch_at: int | None = None
        self._substep = 0
        self._last_log = time.perf_counter()
        self._last_logged_step: int | None = None

    # What a batch is

    def get_train_dataloader(self) -> DataLoader:
        """Batches of dataset rows: each micro-batch comes with the rows of its whole rollout."""
        if self.train_dataset is None:
            raise ValueError("train_dataset: training needs one, got None")
        args = self.args
        loader = DataLoader(
            self.train_dataset,
            batch_sampler=self._make_sampler(),
            collate_fn=self.data_collator,
            num_workers=args.dataloader_num_workers,
            persistent_workers=args.dataloader_persistent_workers,
            prefetch_factor=args.dataloader_prefetch_factor,
            pin_memory=False,
        )
        prepared: DataLoader = self.accelerator.prepare(loader)
        return prepared

    def _make_sampler(self) -> GroupSampler:
        args = self.args
        return GroupSampler(
            size=len(self.train_dataset),
            prompts_per_rollout=args.samples_per_rollout // args.num_generations,
            repeats=self._micro_batches_per_rollout,
            num_processes=self.accelerator.num_processes,
            seed=args.seed if args.data_seed is None else args.data_seed,
        )

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
                damaged, is passed over with a warning). The resumed run ends with the same weights,
                bit for bit, as one never interrupted. It keeps the run's settings; `resume_check`
                says which may change. A run that had reached its end is loaded, and ends.
            *args, **kwargs: given on.

        Raises:
            ValueError: there is no complete checkpoint to resume from, or the one named is damaged,
                or of other settings, or its run had another KL reference than this one would have.
            NonFiniteError: a loss, a gradient or a weight became NaN or infinite. An update with
                such a loss or gradient is not applied; ``skip_nonfinite_updates`` goes on after it.
            FolderInUseError: another run is using ``output_dir``.
            CheckpointError: a checkpoint could not be written, as on a full disk.
            RunEnded: a signal ended the run. It is a SystemExit: not caught, it ends Python with
                status 128 + the signal's number.
        """
        with self._alone_in_folder(), self._stop:
            found = None
            if resume_from_checkpoint:
                wanted = resume_from_checkpoint
                found = first_process_decides(
                    self.args, lambda: find_checkpoint(Path(self.args.output_dir), wanted)
                )
            if found is not None:
                # Both may refuse: before anything is dropped.
                quiet = not self.is_world_process_zero()
                check_resume(found, self._settings_sections(), quiet)
                self._restore_reference(found)
            self._start_from(found)
            try:
                output = super().train(None if found is None else str(found), *args, **kwargs)
            except RunEnded as end:
                self._leave_checkpoint(end)
                raise
            check_weights(self.model, self.state.global_step)
            return output

    @contextlib.contextmanager
    def _alone_in_folder(self) -> Iterator[None]:
        """No other run writes into ``output_dir`` meanwhile."""
        lock = RunLock(self.args.output_dir)
        first_process_decides(self.args, lock.acquire)
        try:
            yield
        finally:
            if self.is_world_process_zero():
                lock.release()

    def _start_from(self, checkpoint: Path | None) -> None:
        self._resumed_from = checkpoint
        self._saved_step, self._evaluation_due = 0, False
        if checkpoint is not None:
            manifest = read_manifest(checkpoint)
            self._saved_step = manifest["step"]
            self._evaluation_due = bool(manifest.get(EVALUATION_DUE))
            if self.is_world_process_zero():
                RunFolder(self.args.output_dir).forget_after(
                    self._saved_step, evaluation=self._evaluation_due
                )
                warn_of_other_processes(checkpoint, manifest, self.accelerator.num_processes)
        self._random_states = None
        self._ended_epoch_at = None
        self._experience = None
        self._reward_cause = None
        self._substep = 0
        self._last_log, self._last_logged_step = time.perf_counter(), None
        self._guard.start()

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # transformers looks after an update whether it was the last one.
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    def _finalize_training(self, *args: Any, **kwargs: Any) -> Any:
        # A run that was at its end already has gone by where transformers restores these.
        if self._resumed_from is not None and self._random_states is None:
            self._load_rng_state(str(self._resumed_from))
        return super()._finalize_training(*args, **kwargs)

    def _prepare_inputs(self, inputs: Any) -> Experience:
        """Turn a batch's dataset rows into its micro-batch of experience, sampling when due."""
        self._stop.agree()
        micro_batch = self._micro_batch_index()
        rollout_index, position = divmod(micro_batch, self._micro_batches_per_rollout)
        if position == 0:
            self._experience = self._collect(inputs, rollout_index)
        elif self._experience is None:
            assert self._resumed_from is not None
            self._experience = load_experience(
                self._resumed_from,
                self.args.process_index,
                self.args.device,
                self._rollout_shape,
            )
        assert self._experience is not None
        steps = self.args.samples_per_rollout // self.args.per_device_train_batch_size
        size = self.args.per_device_train_batch_size
        first = position % steps * size
        index = torch.arange(first, first + size, device=self.args.device)
        self._guard.take(index)
        return self._experience.select(index)

    @property
    def _micro_batches_per_rollout(self) -> int:
        return int(self.args.updates_per_rollout * self.args.gradient_accumulation_steps)

    @property
    def _rollout_shape(self) -> dict[str, int]:
        """The settings that say which part of a rollout a micro-batch is."""
        return {
            "per_device_train_batch_size": self.args.per_device_train_batch_size,
            "gradient_accumulation_steps": self.args.gradient_accumulation_steps,
            "steps_per_generation": int(self.args.steps_per_generation or 1),
            "num_generations": self.args.num_generations,
            "num_iterations": self.args.num_iterations,
            "processes": self.accelerator.num_processes,
        }

    def _micro_batch_index(self) -> int:
        """How many micro-batches this run has trained on, before a resume included."""
        if self._last_logged_step is None:
            self._last_logged_step = self.state.global_step
        accumulation = self.args.gradient_accumulation_steps
        index = self.state.global_step * accumulation + self._substep
        self._substep = (self._substep + 1) % accumulation
        return int(index)

    def _collect(self, examples: list[dict[str, Any]], rollout_index: int) -> Experience:
        policy = self.accelerator.unwrap_model(self.model_wrapped)
        self.collector.activity = self.activity
        self.rewards.trainer_state = self.state
        try:
            collected = self.collector.collect(
                policy, self._reference_for(policy), examples, rollout_index
            )
        except NonFiniteRowError as error:
            raise NonFiniteError(
                f"update {self.state.global_step + 1}: the model's own logits are not finite in "
                f"the rollout before it ({error}); check the weights that the run started from"
            ) from error
        self._reward_cause = reward_cause(
            self.rewards.names, self.rewards.weights, collected.rewards, collected.advantages
        )
        self._means.add(collected.metrics)
        if self.args.should_save:
            self.sample_log.write(collected, self.state.global_step)
        return collected.experience

    def _reference_for(self, policy: Any) -> Any:
        """A context manager that gives the KL reference; None without a KL term."""
        if self.args.beta == 0:
            return None
        if self._start is not None:
            return self._start.reached(policy)
        return contextlib.nullcontext(self.reference)

    def _save_reference(self, folder: Path) -> None:
        if self._start is not None:
            self._start.save(folder)
        elif self.reference is not None:
            save_marks(self.reference, folder)

    def _restore_reference(self, folder: Path) -> None:
        if self._start is not None:
            self._start.load(folder)
        elif self.reference is not None:
            check_marks(self.reference, folder)

    # What its loss is, and that it is finite

    def training_step(
        self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """A micro-batch's forward and backward; after an update's last one, its gradient's check.

        Raises:
            NonFiniteError: the update may not be applied; see `UpdateGuard`.
        """
        try:
            loss = super().training_step(model, inputs, num_items_in_batch)
        except NonFiniteRowError as error:
            # Where rows are checked (on the CPU), the model's NaN raises before it is a loss.
            if self.accelerator.num_processes > 1:
                raise NonFiniteError(f"update {self.state.global_step + 1}: {error}") from error
            loss = torch.full((), float("nan"), device=self.args.device)
        loss = self._guard.add(loss)
        if self.accelerator.sync_gradients:
            assert self._experience is not None
            step = self.state.global_step + 1
            self._guard.finish(model, self._experience, step, self._reward_cause)
        return loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """LEPO's loss of one micro-batch, scaled so that the update sums over micro-batches."""
        args = self.args
        batch = inputs.contributing(args.beta)
        rows = batch.rollout.action_mask & (batch.token_weights != 0)
        result = policy_loss(
            model,
            batch.rollout,
            rows,
            batch.advantages[:, None].expand(rows.shape)[rows],
            batch.token_weights[rows],
            old_log_prob=None if batch.old_log_prob is None else batch.old_log_prob[rows],
            ref_log_probs=None if batch.ref_log_probs is None else batch.ref_log_probs[rows],
            temperature=args.temperature,
            # A mean over tokens; the micro-batches of an update share it equally.
            router_loss_scale=1 / args.gradient_accumulation_steps,
            beta=args.beta,
            epsilon=args.epsilon,
            epsilon_high=args.epsilon_high,
            delta=args.delta,
            latent_kl=args.latent_kl,
        )
        if batch.old_log_prob is None:  # before any update: the first forward of these rows
            used = rows & ((batch.advantages != 0)[:, None] | (args.beta > 0))
            self.agreement.add(model, batch.rollout.log_probs[used], result.log_prob[used[rows]])
        if result.router_loss is not None:
            self._means.add({"aux_loss": float(result.router_loss)})
        discrete = ~batch.rollout.latent_mask[rows]
        self._means.add_masked("clip_ratio/low_mean", result.clipped == -1, discrete)
        self._means.add_masked("clip_ratio/high_mean", result.clipped == 1, discrete)
        self._means.add_masked("clip_ratio/region_mean", result.clipped != 0, discrete)
        self._means.add_masked("ratio", result.ratio, discrete)
        if args.beta > 0:
            self._means.add_masked("kl", result.kl, torch.ones_like(discrete))
        # The token weights already sum over the update; the Trainer divides by its micro-batches.
        loss = result.loss * args.gradient_accumulation_steps
        return (loss, result) if return_outputs else loss

    # How to evaluate

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Greedy accuracy, mean@k and pass@k on held-out prompts.

        Args:
            eval_dataset: rows with a column ``prompt``, a dict of such, or a key of the trainer's
                own dict; None takes the trainer's own.
            ignore_keys: not used; there are no model outputs to gather.
            metric_key_prefix: stands before every metric's name.

        Returns:
            The metrics of `evaluate_policy`, with the prefix.

        Raises:
            ValueError: there is no dataset.
            FolderInUseError: another run is using ``output_dir``, where completions are recorded.
            RunEnded: a signal ended it; see `train`.
        """
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if dataset is None:
            raise ValueError("eval_dataset: evaluation needs one, got None")
        if isinstance(dataset, str):
            dataset = self.eval_dataset[dataset]
        if all(dataset is not checked for checked in self._checked):
            check_dataset("eval_dataset", dataset, self.rewards, several=True)
            check_prompts("eval_dataset", dataset, self.processing_class, self._eval_limits)
        with self._alone_in_folder(), self._stop:
            return self._evaluate_all(dataset, ignore_keys, metric_key_prefix)

    def _evaluate_all(
        self, dataset: Any, ignore_keys: list[str] | None, metric_key_prefix: str
    ) -> dict[str, float]:
        if isinstance(dataset, dict):
            merged: dict[str, float] = {}
            for name, part in dataset.items():
                merged.update(self.evaluate(part, ignore_keys, f"{metric_key_prefix}_{name}"))
            return merged
        start = time.perf_counter()
        with self.accelerator.autocast():
            result = self._evaluate_shard(dataset)
        metrics = {f"{metric_key_prefix}_{k}": v for k, v in result.metrics.items()}
        metrics[f"{metric_key_prefix}_runtime"] = round(time.perf_counter() - start, 3)
        if self.args.should_save:
            self.sample_log.write_evaluation(result, self.state.global_step, metric_key_prefix)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        # An evaluation must not count as training time.
        self._last_log += time.perf_counter() - start
        return metrics

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """Not offered: there are no labels here. Use `evaluate` or `latent_generate`."""
        raise NotImplementedError("predict: not offered; use evaluate() or latent_generate()")

    def _evaluation_step(self, done: int, total: int) -> None:
        """After each decoding step: look for a signal, and tell how far it is."""
        self._stop.look()
        if self.activity is not None:
            self.activity("evaluation", done, total)

    def _evaluate_shard(self, dataset: Any) -> EvaluationResult:
        """Evaluate this process's share of the problems, then put all shares together."""
        args = self.args
        self.rewards.trainer_state = self.state
        shard = range(args.process_index, len(dataset), self.accelerator.num_processes)
        with self._stop.alone():
            result = evaluate_checked(
                self.accelerator.unwrap_model(self.model_wrapped),
                self.processing_class,
                dataset,
                self.rewards,
                self.generation,
                problems=shard,
                num_samples=args.eval_num_samples,
                greedy=args.eval_greedy,
                batch_size=args.per_device_eval_batch_size,
                seed=args.seed,
                success_threshold=args.success_threshold,
                progress=self.evaluation_progress,
                step_progress=self._evaluation_step,
            )
        if self.accelerator.num_processes == 1:
            return result
        records = gather_object(result.records)
        return EvaluationResult(summarise(records, args.success_threshold), records)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, and add the metrics gathered since the last training log."""
        if "loss" in logs:
            now = time.perf_counter()
            steps = max(1, self.state.global_step - (self._last_logged_step or 0))
            logs = {
                **logs,
                **self._means.pop(self.accelerator.num_processes),
                "step_time": (now - self._last_log) / steps,
            }
            if self.args.skip_nonfinite_updates or self.accelerator.scaler is not None:
                logs["skipped_updates"] = self._guard.pop_skipped()
            self._last_log, self._last_logged_step = now, self.state.global_step
            if self.args.log_completions and self.args.should_save:
                self.sample_log.print_table(self.args.num_completions_to_print)
        super().log(logs, start_time)

    # What a model and a checkpoint must hold

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

    # What a checkpoint must hold, and when it is due

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        # Called after each update, and after an epoch's last one again, for the epoch's own.
        called_again = self._epoch_ends()
        self._evaluation_due = self.control.should_evaluate or (
            called_again and self.args.eval_strategy == IntervalStrategy.EPOCH
        )
        self._random_states = RandomStates.now(self.args.device)
        super()._maybe_log_save_evaluate(*args, **kwargs)
        self._random_states = RandomStates.now(self.args.device)
        if not called_again:
            self._stop.agree()

    def _epoch_ends(self) -> bool:
        """Whether the last update was its epoch's last; said once per epoch."""
        step, ends = self.state.global_step, float(self.state.epoch or 0.0).is_integer()
        said, self._ended_epoch_at = self._ended_epoch_at == step, step if ends else None
        return ends and not said

    def _evaluate(self, *args: Any, **kwargs: Any) -> Any:
        metrics = super()._evaluate(*args, **kwargs)
        self._evaluation_due = False
        return metrics

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)
        # Where the interrupted run would have evaluated: rewards may draw from these generators.
        self._evaluate_if_due()

    def _load_best_model(self) -> None:
        best = Path(str(self.state.best_model_checkpoint))
        reason = first_process_decides(self.args, lambda: damage(best))
        if reason is not None:
            raise ValueError(f"load_best_model_at_end: {best} cannot be loaded: {reason}")
        super()._load_best_model()

    def _evaluate_if_due(self) -> None:
        """Make up for the evaluation that a signal cut short."""
        if self._evaluation_due:
            metrics = self._evaluate(None, None)
            self._determine_best_metric(metrics=metrics, trial=None)

    def _leave_checkpoint(self, end: RunEnded) -> None:
        """Save the last whole update: what was done since then is done again when it goes on."""
        step = self.state.global_step
        if step > self._saved_step:
            assert self._random_states is not None
            self._random_states.restore(self.args.device)
            self._save_checkpoint(self.model_wrapped, trial=None)
            self.control = self.callback_handler.on_save(self.args, self.state, self.control)
        if self.is_world_process_zero():
            text = "nothing was trained on yet"
            if self._saved_step > 0:
                text = (
                    f"checkpoint-{self._saved_step} in {self.args.output_dir} holds the run; "
                    "resume_from_checkpoint goes on from there"
                )
            _logger.warning(
                "%s: ended at step %d of %d; %s", end.signal_name, step, self.state.max_steps, text
            )
        with contextlib.suppress(OSError):  # a terminal that is gone
            self.callback_handler.on_train_end(self.args, self.state, self.control)
        self.is_in_train = False

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        args, step = self.args, self.state.global_step
        check_weights(self.model, step)
        folder = Path(self._get_output_dir(trial)) / f"checkpoint-{step}"
        with writing(folder, args.should_save):
            if args.should_save:
                _remove_checkpoint(folder)
            self.accelerator.wait_for_everyone()
            if step % args.updates_per_rollout and self._experience is not None:
                save_experience(folder, args.process_index, self._experience, self._rollout_shape)
            if args.should_save:
                self._save_reference(folder)
            with self._keeping_older_checkpoints():
                super()._save_checkpoint(model, trial)
            # The first process says that it is complete: not before all others are done.
            self.accelerator.wait_for_everyone()
            if args.should_save:
                # Anew: while transformers wrote them, save_total_limit was another.
                torch.save(args, folder / TRAINING_ARGS_NAME)
                write_settings(folder, self._settings_sections())
                write_manifest(
                    folder,
                    step=step,
                    processes=self.accelerator.num_processes,
                    save_only_model=args.save_only_model,
                    **({EVALUATION_DUE: True} if self._evaluation_due else {}),
                )
        self._saved_step = step
        if args.should_save:
            rotate_checkpoints(
                output_dir=str(folder.parent),
                save_total_limit=args.save_total_limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
                use_mtime=True,
            )

    @contextlib.contextmanager
    def _keeping_older_checkpoints(self) -> Iterator[None]:
        """transformers removes the older ones before the new one is known to be complete."""
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            yield
        finally:
            self.args.save_total_limit = limit


def _remove_checkpoint(folder: Path) -> None:
    """Remove what is there of one that is about to be written, its manifest first."""
    (folder / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def _keep_rows(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return rows
