"""`LEPOTrainer`: group rollouts with latent steps, rewards and LEPO's loss, on HF's Trainer.

The Trainer owns the loop, the optimizer, distribution and logging; `ResumableTrainer` owns signals,
checkpoints and resuming. This file holds what is LEPO's: an update from its experience to its log,
and evaluation.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel
from transformers.trainer_callback import TrainerCallback

from lepo_kernels.methods import method_named
from lepo_kernels.rollout.engine import RolloutEngine, make_rollout_engine
from lepo_kernels.rollout.policy_loss import policy_loss
from lepo_kernels.trainer.adapters import report_dropout
from lepo_kernels.trainer.agreement import SamplingAgreement
from lepo_kernels.trainer.best_metric import choose_best_metric
from lepo_kernels.trainer.collect import Collector
from lepo_kernels.trainer.config import LEPOConfig
from lepo_kernels.trainer.data_loading import group_sampler, keep_rows, train_loader
from lepo_kernels.trainer.dataset_checks import check_dataset, check_prompts
from lepo_kernels.trainer.distribution import check_settings, check_trainer
from lepo_kernels.trainer.dropout import switch_off_dropout
from lepo_kernels.trainer.evaluation import EvaluationResult, evaluate_checked
from lepo_kernels.trainer.evaluation_metrics import summarise
from lepo_kernels.trainer.experience import Experience
from lepo_kernels.trainer.experience_files import load_experience
from lepo_kernels.trainer.generation import generation_config
from lepo_kernels.trainer.kl_reference import KLReference
from lepo_kernels.trainer.latent_use import LatentGradientShare
from lepo_kernels.trainer.loss_metrics import add_loss_metrics
from lepo_kernels.trainer.metrics import MetricMeans
from lepo_kernels.trainer.model_limits import limits_of
from lepo_kernels.trainer.preparation import load_model, load_tokenizer, trainable_policy
from lepo_kernels.trainer.processes import alone_in_folder
from lepo_kernels.trainer.resumable_trainer import ResumableTrainer
from lepo_kernels.trainer.rewards import RewardFunction, Rewards
from lepo_kernels.trainer.sampler import GroupSampler
from lepo_kernels.trainer.samples import SampleLog
from lepo_kernels.trainer.servable import check_policy
from lepo_kernels.trainer.token_weights import surrogate_of
from lepo_kernels.trainer.update_guard import NonFiniteError, reward_cause
from lepo_kernels.validation import NonFiniteRowError


class LEPOTrainer(ResumableTrainer):
    """Train a causal language model with LEPO (arXiv 2604.17892), or a method of its family.

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
        activity: called with the current activity ("rollout", "evaluation", "rewards", ...) and the
            decoding steps done and at most; see `ProgressCallback`, which shows both.
        task_settings: the options of ``lepo train`` that name the task (``{"task": "gsm8k"}``);
            saved with the model, so that ``lepo eval`` knows it. None without a task.

    Raises:
        TypeError, ValueError: an argument or a setting cannot work; raised before any work starts.
    """

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
        self.method = method_named(args.method)
        self.rewards = Rewards(reward_funcs, args.reward_weights, args.reward_timeout)
        check_dataset("train_dataset", train_dataset, self.rewards)
        check_dataset("eval_dataset", eval_dataset, self.rewards, several=True)
        if type(self).evaluate is LEPOTrainer.evaluate:  # a subclass may have metrics of its own
            choose_best_metric(args, eval_dataset)
        loaded_from = model if isinstance(model, str) else None
        model = load_model(model, args.model_init_kwargs)
        processing_class = load_tokenizer(model, processing_class, loaded_from)
        self.generation = generation_config(args, model, processing_class)
        limits = limits_of(
            model, args.max_completion_length, args.max_prompt_length, args.truncate_prompts
        )
        check_prompts("train_dataset", train_dataset, processing_class, limits)
        self._eval_limits = replace(limits, max_prompt_length=None, truncate_prompts=False)
        check_prompts("eval_dataset", eval_dataset, processing_class, self._eval_limits)
        # Datasets that need no second look at every evaluation.
        self._checked = [eval_dataset]
        if isinstance(eval_dataset, dict):
            self._checked += eval_dataset.values()
        model = trainable_policy(model, peft_config)
        super().__init__(
            model=model,
            args=args,
            data_collator=keep_rows,
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
            self._sampler()  # refuses a dataset that is too small, before any work
        if args.beta > 0:
            self.reference = KLReference(model, args.device)
        self._means = MetricMeans()
        self._gradient_share = LatentGradientShare()
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
        self._engine: RolloutEngine | None = None
        self.sample_log = SampleLog(Path(args.output_dir), processing_class, self.rewards.names)
        self.evaluation_progress: Callable[[int, int], None] | None = None
        self.activity: Callable[[str, int, int], None] | None = None

    # The data: batches of dataset rows, each with the rows of its whole rollout

    def get_train_dataloader(self) -> DataLoader:
        """Batches of dataset rows: each micro-batch comes with those of its whole rollout."""
        if self.train_dataset is None:
            raise ValueError("train_dataset: training needs one, got None")
        loader = train_loader(self.args, self.train_dataset, self._sampler())
        prepared: DataLoader = self.accelerator.prepare(loader)
        return prepared

    def _sampler(self) -> GroupSampler:
        repeats = self._schedule.micro_batches_per_rollout
        processes = self.accelerator.num_processes
        return group_sampler(self.args, len(self.train_dataset), repeats, processes)

    # An update: collect experience, take its micro-batches, compute the loss, check, log

    def _prepare_inputs(self, inputs: Any) -> Experience:
        """Turn a batch's dataset rows into its micro-batch of experience, sampling when due."""
        self._stop.agree()
        self._timer.begin(self.state.global_step)
        rollout_index, position = self._schedule.advance(self.state.global_step)
        if position == 0:
            self._run.experience = self._collect(inputs, rollout_index)
        elif self._run.experience is None:
            assert self._run.resumed_from is not None
            self._run.experience = load_experience(
                self._run.resumed_from,
                self.args.process_index,
                self.args.device,
                self._schedule.shape,
            )
        index = self._schedule.samples(position)
        self._guard.take(index)
        return self._run.experience.select(index)

    def _rollout_engine(self, policy: Any) -> RolloutEngine:
        """The engine, with the policy's weights of this moment."""
        if self._engine is None:
            self._engine = make_rollout_engine(self.args.rollout_engine, policy)
        self._engine.update_weights(policy)
        return self._engine

    def _collect(self, examples: list[dict[str, Any]], rollout_index: int) -> Experience:
        policy = self.accelerator.unwrap_model(self.model_wrapped)
        self.collector.activity = self.activity
        self.rewards.trainer_state = self.state
        reference = None if self.reference is None else self.reference.of(policy)
        try:
            collected = self.collector.collect(
                self._rollout_engine(policy), policy, reference, examples, rollout_index
            )
        except NonFiniteRowError as error:
            raise NonFiniteError(
                f"update {self.state.global_step + 1}: the model's own logits are not finite in "
                f"the rollout before it ({error}); check the weights that the run started from"
            ) from error
        self._run.reward_cause = reward_cause(
            self.rewards.names,
            self.rewards.weights,
            collected.rewarded.rewards,
            collected.advantages,
        )
        self._means.add(collected.metrics)
        if self.args.should_save:
            self.sample_log.write(collected, self.state.global_step)
        return collected.experience

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
            assert self._run.experience is not None
            step = self.state.global_step + 1
            self._guard.finish(model, self._run.experience, step, self._run.reward_cause)
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
        step_mask = batch.rollout.action_mask & (batch.token_weights != 0)
        result = policy_loss(
            model,
            batch.rollout,
            step_mask,
            batch.step_advantages()[step_mask],
            batch.token_weights[step_mask],
            old_log_prob=None if batch.old_log_prob is None else batch.old_log_prob[step_mask],
            ref_log_probs=None if batch.ref_log_probs is None else batch.ref_log_probs[step_mask],
            temperature=args.temperature,
            share_prompts=args.share_prompts,
            packing=args.packing,
            hidden_gradient=self._gradient_share.add if args.latent_length > 0 else None,
            # A mean over tokens; the micro-batches of an update share it equally.
            router_loss_scale=1 / args.gradient_accumulation_steps,
            beta=args.beta,
            epsilon=args.epsilon,
            epsilon_high=args.epsilon_high,
            delta=args.delta,
            latent_kl=args.latent_kl,
            latent_score=self.method.latent_score,
            latent_ratio=self.method.latent_ratio,
            surrogate=surrogate_of(args.loss_type),
            kl_times_ratio=args.use_bias_correction_kl,
            sequences=self._sequences(step_mask),
        )
        if batch.old_log_prob is None:  # before any update: the first forward of these samples
            used = step_mask & ((batch.advantages != 0)[:, None] | (args.beta > 0))
            sampled, trained = batch.rollout.log_probs[used], result.log_prob[used[step_mask]]
            self.agreement.add(model, sampled, trained)
        discrete = ~batch.rollout.latent_mask[step_mask]
        add_loss_metrics(
            self._means,
            result,
            discrete,
            has_kl=args.beta > 0,
            latent_ratio=self.method.latent_ratio,
        )
        # The token weights already sum over the update; the Trainer divides by its micro-batches.
        loss = result.loss * args.gradient_accumulation_steps
        return (loss, result) if return_outputs else loss

    def _sequences(self, step_mask: torch.Tensor) -> torch.Tensor | None:
        """The row of each step, where the steps of a row share a ratio."""
        if self.args.importance_sampling_level == "token":
            return None
        numbered: torch.Tensor = step_mask.nonzero()[:, 0].unique(return_inverse=True)[1]
        return numbered

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, and add the metrics gathered since the last training log."""
        if "loss" in logs:
            self._gradient_share.pop_into(self._means)
            logs = {
                **logs,
                **self._means.pop(self.accelerator.num_processes),
                "step_time": self._timer.pop(self.state.global_step),
            }
            if self.args.skip_nonfinite_updates or self.accelerator.scaler is not None:
                logs["skipped_updates"] = self._guard.pop_skipped()
            if self.args.log_completions and self.args.should_save:
                self.sample_log.print_table(self.args.num_completions_to_print)
        super().log(logs, start_time)

    # Evaluation

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
        with alone_in_folder(self.args), self._stop:
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
        self._timer.leave_out(time.perf_counter() - start)
        return metrics

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """Not offered: there are no labels here. Use `evaluate` or `latent_generate`."""
        raise NotImplementedError("predict: not offered; use evaluate() or latent_generate()")

    def _evaluation_step(self, done: int, total: int) -> None:
        """After each decoding step: look for a signal, and report the progress."""
        self._stop.look()
        if self.activity is not None:
            self.activity("evaluation", done, total)

    def _evaluate_shard(self, dataset: Any) -> EvaluationResult:
        """Evaluate this process's share of the problems, then put all shares together."""
        args = self.args
        self.rewards.trainer_state = self.state
        shard = range(args.process_index, len(dataset), self.accelerator.num_processes)
        policy = self.accelerator.unwrap_model(self.model_wrapped)
        engine = self._rollout_engine(policy)
        with self._stop.alone():
            result = evaluate_checked(
                engine,
                args.device,
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
