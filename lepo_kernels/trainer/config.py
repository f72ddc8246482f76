"""`LEPOConfig`: every setting of `LEPOTrainer`, on top of transformers' `TrainingArguments`.

Each range is stated once, where a setting is used first: those of sampling in
`LatentGenerationConfig`, those of the loss in `formulas.lepo_objective`, those of rewards in
`trainer.rewards`, those of evaluations in `trainer.evaluation_settings`. This file calls them.
"""

import math
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from transformers import TrainingArguments

from lepo_kernels.formulas.lepo_objective import check_settings
from lepo_kernels.rollout.config import CACHES, NOISES
from lepo_kernels.trainer.advantages import SCALE_REWARDS
from lepo_kernels.trainer.distribution import check_settings as check_distribution
from lepo_kernels.trainer.evaluation_settings import check_evaluation_settings
from lepo_kernels.trainer.rewards import check_timeout, check_weights
from lepo_kernels.trainer.sampling import check_sampling
from lepo_kernels.trainer.token_weights import LOSS_TYPES
from lepo_kernels.validation import (
    check_choice,
    check_integer,
    check_number,
    check_positive_number,
)

# The least that each whole number of the trainer's own may be.
AT_LEAST = {
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "steps_per_generation": 1,
    "num_generations": 2,
    "num_iterations": 1,
    "max_prompt_length": 1,
    "num_completions_to_print": 0,
}

# Settings of TrainingArguments that have no meaning here: name -> the values that switch them off.
NOT_SUPPORTED: dict[str, tuple[Any, ...]] = {
    "remove_unused_columns": (False,),
    "auto_find_batch_size": (False,),
    "label_smoothing_factor": (0.0,),
    "include_num_input_tokens_seen": (False, "no"),
    "neftune_noise_alpha": (),
    "train_sampling_strategy": ("random",),
    "prediction_loss_only": (False,),
    "bf16_full_eval": (False,),
    "fp16_full_eval": (False,),
}


@dataclass
class LEPOConfig(TrainingArguments):
    """Settings of `LEPOTrainer`.

    Names follow TRL's GRPO settings where the two methods share them. ``latent_length=0`` gives
    plain GRPO. Lengths are in tokens (columns of the completion).

    Raises:
        ValueError: a setting is out of range, or two settings contradict each other; the message
            names them. Raised on construction.
    """

    metric_for_best_model: str | None = field(
        default=None,
        metadata={"help": "What compares checkpoints; default eval_greedy_accuracy, if evaluated."},
    )
    learning_rate: float = field(default=1e-6, metadata={"help": "Peak learning rate of AdamW."})
    remove_unused_columns: bool = field(
        default=False,
        metadata={
            "help": "Must stay off: the dataset's columns are given to the reward functions."
        },
    )
    resume_from_checkpoint: str | None = field(
        default=None,
        metadata={
            "help": "For lepo train: a checkpoint, latest (the newest of output_dir), or auto "
            "(that if there is one, else a new run). A run's own settings are taken up again."
        },
    )
    logging_steps: float = field(default=1, metadata={"help": "Log every so many optimizer steps."})

    # Latent phase
    latent_length: int = field(
        default=16, metadata={"help": "Soft steps L before the first discrete token; 0 is GRPO."}
    )
    latent_suffix: str = field(
        default="", metadata={"help": "Text that is forced between the latent and discrete phases."}
    )
    noise: str = field(
        default="gumbel", metadata={"help": f"Noise of the latent steps, one of {NOISES}."}
    )
    tau: float = field(
        default=0.5,
        metadata={"help": "Temperature of the Gumbel-softmax weights; 0 takes the likeliest."},
    )
    noise_scale: float = field(
        default=1.0,
        metadata={"help": "Strength of the gaussian, dirichlet and soft noises, above 0."},
    )
    noise_clamp: list[float] | None = field(
        default=None, metadata={"help": "Range LOW HIGH that Gumbel noise is clamped to."}
    )
    num_draws: int = field(default=3, metadata={"help": "Draws per step of the categorical noise."})
    latent_eos: str = field(
        default="mask",
        metadata={"help": "EOS in the latent phase: 'mask' forbids it, 'stop' ends the row."},
    )
    cold_stop_entropy: float | None = field(
        default=None,
        metadata={"help": "Leave the latent phase early once entropy (nats) stays below this."},
    )
    cold_stop_steps: int = field(
        default=256, metadata={"help": "Consecutive low-entropy steps before a cold stop."}
    )

    # Sampling
    temperature: float = field(
        default=1.0, metadata={"help": "Temperature T of the policy, in rollout and loss alike."}
    )
    top_k: int | None = field(default=30, metadata={"help": "Keep the k likeliest ids."})
    top_p: float = field(default=0.95, metadata={"help": "Then keep this much probability."})
    min_p: float = field(
        default=0.0, metadata={"help": "Then keep ids at least this likely, relative to the best."}
    )
    max_prompt_length: int | None = field(
        default=None, metadata={"help": "Refuse training prompts longer than this (tokens)."}
    )
    max_completion_length: int = field(
        default=256, metadata={"help": "Latent, forced and sampled steps of a completion together."}
    )
    num_generations: int = field(default=8, metadata={"help": "Samples G per prompt (a group)."})
    steps_per_generation: int | None = field(
        default=None,
        metadata={"help": "Micro-batches per rollout; default gradient_accumulation_steps."},
    )
    rollout_batch_size: int | None = field(
        default=None, metadata={"help": "Samples decoded at once, at least a group; default all."}
    )
    cache_implementation: str = field(
        default="dynamic", metadata={"help": f"Key-value cache of the rollout, one of {CACHES}."}
    )

    # Rewards and loss
    reward_weights: list[float] | None = field(
        default=None, metadata={"help": "One weight per reward function; default all 1."}
    )
    reward_timeout: float | None = field(
        default=None,
        metadata={
            "help": "Seconds that a call of a reward function may take; default no limit. With a "
            "limit, plain functions run on a thread of their own."
        },
    )
    scale_rewards: str = field(
        default="group",
        metadata={"help": f"Standard deviation that divides advantages, one of {SCALE_REWARDS}."},
    )
    loss_type: str = field(
        default="dapo", metadata={"help": f"Normalisation over tokens, one of {LOSS_TYPES}."}
    )
    num_iterations: int = field(
        default=1, metadata={"help": "Passes over each rollout; above 1 the clipping acts."}
    )
    beta: float = field(default=0.0, metadata={"help": "Weight of the KL to the reference."})
    latent_kl: str = field(
        default="k3", metadata={"help": "KL on latent rows: 'k3' or 'exact' over the kept ids."}
    )
    epsilon: float = field(default=0.2, metadata={"help": "Lower clipping range of the ratio."})
    epsilon_high: float | None = field(
        default=None, metadata={"help": "Upper clipping range; default epsilon."}
    )
    delta: float | None = field(
        default=None, metadata={"help": "Upper bound of the unclipped ratio (dual clip)."}
    )
    mask_truncated_completions: bool = field(
        default=False, metadata={"help": "Leave completions without EOS out of the loss."}
    )
    sampling_logp_difference_warning: float | None = field(
        default=None,
        metadata={
            "help": "Warn where log-probabilities of rollout and first training forward differ by "
            "more than this (nats, mean); default 0.01, in half precision 0.1."
        },
    )
    sampling_logp_difference_error: float | None = field(
        default=None,
        metadata={"help": "End the run above this; default 0.1, in half precision 1."},
    )
    disable_dropout: bool = field(
        default=True,
        metadata={
            "help": "Switch off all dropout of the model and its adapter, which rollouts don't "
            "have; may be off only with beta 0 and one update per rollout."
        },
    )
    skip_nonfinite_updates: bool = field(
        default=False,
        metadata={
            "help": "Pass over updates whose loss or gradient is NaN or infinite (they count as "
            "steps, and in the metric skipped_updates), instead of ending the run."
        },
    )

    # Evaluation and reporting
    eval_num_samples: int = field(
        default=8, metadata={"help": "Samples per problem for mean@k and pass@k; 0 skips them."}
    )
    eval_greedy: bool = field(default=True, metadata={"help": "Evaluate greedily, too."})
    success_threshold: float = field(
        default=0.5, metadata={"help": "A reward of at least this counts as solved."}
    )
    log_completions: bool = field(
        default=False, metadata={"help": "Print a table of completions at every log."}
    )
    num_completions_to_print: int = field(default=4, metadata={"help": "Rows of that table."})
    model_init_kwargs: dict[str, Any] | None = field(
        default=None, metadata={"help": "Arguments of from_pretrained when model is a name."}
    )

    def __post_init__(self) -> None:
        check_distribution(self)  # before transformers looks for the packages that they need
        self._choose_best_metric()
        if vars(self)["report_to"] is None:
            # transformers would look for a service named None.
            self.__dict__["report_to"] = "none"
        super().__post_init__()
        if self.steps_per_generation is None:
            self.steps_per_generation = self.gradient_accumulation_steps
        self._check_supported()
        self._check_choices()
        self._check_duration()
        self._check_ranges()
        self._check_batches()

    def _choose_best_metric(self) -> None:
        """Compare checkpoints by accuracy: there is no evaluation loss here."""
        if self.metric_for_best_model is None:
            accuracy = "greedy_accuracy" if self.eval_greedy else f"mean@{self.eval_num_samples}"
            needed = (
                self.load_best_model_at_end
                or str(self.save_strategy) in ("best", "SaveStrategy.BEST")
                or "plateau" in str(self.lr_scheduler_type).lower()
            )
            if needed:
                self.metric_for_best_model = f"eval_{accuracy}"
                self.greater_is_better = True

    def _check_supported(self) -> None:
        """Refuse inherited settings that would have no effect, or a wrong one."""
        for name, neutral in NOT_SUPPORTED.items():
            value = getattr(self, name, None)
            if value not in (None, *neutral):
                raise ValueError(f"{name}: has no meaning for LEPO; leave it out, got {value!r}")
        optimizer = str(getattr(self.optim, "value", self.optim))
        if "lomo" in optimizer or "layerwise" in optimizer:
            raise ValueError(
                f"optim: {optimizer} applies each gradient as soon as it is there, so that an "
                "update that is not finite could not be stopped"
            )
        if self.enable_jit_checkpoint:
            raise ValueError(
                "enable_jit_checkpoint: leave it out; on SIGTERM and SIGHUP LEPOTrainer saves a "
                "checkpoint by itself, in the middle of a rollout, too"
            )
        if self.metric_for_best_model in ("loss", "eval_loss"):
            raise ValueError(
                "metric_for_best_model: there is no evaluation loss; "
                "use eval_greedy_accuracy or eval_mean@k"
            )

    @property
    def device(self) -> Any:
        """The device of this process."""
        device = super().device
        # Each of several processes on a CPU is given a "cpu:0", which torch.load does not know.
        return torch.device("cpu") if device.type == "cpu" else device

    @property
    def samples_per_rollout(self) -> int:
        """Samples that one process decodes per rollout."""
        assert self.steps_per_generation is not None
        return int(self.per_device_train_batch_size * self.steps_per_generation)

    @property
    def updates_per_rollout(self) -> int:
        """Optimizer steps that one rollout serves, all iterations together."""
        assert self.steps_per_generation is not None
        micro_batches = self.num_iterations * self.steps_per_generation
        return int(micro_batches // self.gradient_accumulation_steps)

    def _check_choices(self) -> None:
        check_choice("scale_rewards", self.scale_rewards, SCALE_REWARDS)
        check_choice("loss_type", self.loss_type, LOSS_TYPES)

    def _check_duration(self) -> None:
        """transformers takes zero updates for one, and a negative number for all epochs."""
        if self.max_steps == 0 or self.max_steps < -1:
            raise ValueError(
                "max_steps: expected at least 1, or -1 to train for num_train_epochs, got "
                f"{self.max_steps}; to evaluate without training use lepo eval, or "
                "LEPOTrainer.evaluate()"
            )
        if self.max_steps == -1:
            check_number("num_train_epochs", self.num_train_epochs, 0.0, low_included=False)

    def _check_ranges(self) -> None:
        for name, low in AT_LEAST.items():
            value = getattr(self, name)
            if value is not None:
                check_integer(name, value, low)
        check_sampling(self)
        upper = self.epsilon if self.epsilon_high is None else self.epsilon_high
        # The trainer has reference log-probs whenever beta asks for them.
        some = torch.empty(0)
        check_settings(self.beta, self.epsilon, upper, self.delta, self.latent_kl, some)
        check_evaluation_settings(self)
        check_weights(self.reward_weights)
        check_timeout(self.reward_timeout)
        for name in ("sampling_logp_difference_warning", "sampling_logp_difference_error"):
            if getattr(self, name) is not None:
                check_positive_number(name, getattr(self, name))
        for setting in fields(self):
            value = getattr(self, setting.name)
            # transformers checks few of its own numbers, and NaN passes every comparison it makes.
            if isinstance(value, float) and math.isnan(value):
                raise ValueError(f"{setting.name}: expected a number, got nan")

    def _check_batches(self) -> None:
        assert self.steps_per_generation is not None
        if self.steps_per_generation % self.gradient_accumulation_steps:
            raise ValueError(
                f"steps_per_generation: expected a multiple of gradient_accumulation_steps = "
                f"{self.gradient_accumulation_steps}, got {self.steps_per_generation}"
            )
        if not self.disable_dropout and (self.beta > 0 or self.updates_per_rollout > 1):
            raise ValueError(
                "disable_dropout: must stay on with beta > 0 or several updates per rollout, which "
                "compare log-probabilities"
            )
        if self.rollout_batch_size is not None and self.rollout_batch_size < self.num_generations:
            raise ValueError(
                f"rollout_batch_size: expected at least a group of {self.num_generations}, "
                f"got {self.rollout_batch_size}"
            )
        if self.samples_per_rollout % self.num_generations:
            raise ValueError(
                "num_generations: a rollout of per_device_train_batch_size * steps_per_generation "
                f"= {self.samples_per_rollout} samples does not hold whole groups of "
                f"{self.num_generations}"
            )
