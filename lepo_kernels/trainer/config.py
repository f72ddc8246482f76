"""`LEPOConfig`: every setting of `LEPOTrainer`, on top of transformers' `TrainingArguments`.

`config_checks` checks them.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import TrainingArguments

from lepo_kernels.methods import method_named
from lepo_kernels.rollout.config import CACHES, DRAW_WEIGHTS, NOISES
from lepo_kernels.trainer.advantages import SCALE_REWARDS
from lepo_kernels.trainer.config_checks import check_config
from lepo_kernels.trainer.distribution import check_settings as check_distribution
from lepo_kernels.trainer.token_weights import LOSS_TYPES


@dataclass
class LEPOConfig(TrainingArguments):
    """Settings of `LEPOTrainer`.

    Names follow TRL's GRPO settings where the two methods share them. ``latent_length=0`` gives
    plain GRPO. Lengths are in tokens (columns of the completion). ``method`` names another method
    (`lepo_kernels.methods`), whose published settings are then the defaults.

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

    method: str = field(
        default="lepo",
        metadata={
            "help": "lepo, grpo, soft_grpo, latent_grpo, multiplex or soft_tokens (for sampling "
            "alone soft_thinking, stochastic_soft_thinking, too), or one that is registered. "
            "Settings that are not given take its published values."
        },
    )

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
    draw_weights: str = field(
        default="uniform",
        metadata={"help": f"How the categorical noise weighs its draws, one of {DRAW_WEIGHTS}."},
    )
    mixture_top_k: int | None = field(
        default=None,
        metadata={"help": "Entries a mixture keeps after the noise, by perturbed logit."},
    )
    latent_end: str = field(
        default="",
        metadata={
            "help": "Text of one token that ends the latent phase where it is likeliest, as "
            "</think>; default none."
        },
    )
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
    do_latent_sample: bool = field(
        default=True,
        metadata={"help": "Off: latent steps take the noise-free mixture, whatever noise says."},
    )
    do_discrete_sample: bool = field(
        default=True, metadata={"help": "Off: discrete steps take the likeliest id."}
    )
    max_prompt_length: int | None = field(
        default=None,
        metadata={"help": "Tokens of a training prompt at most; longer ones are refused."},
    )
    truncate_prompts: bool = field(
        default=False,
        metadata={"help": "Cut longer ones from the left to max_prompt_length instead."},
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
    rollout_engine: str = field(
        default="transformers",
        metadata={"help": "What samples completions: transformers, or an installed engine."},
    )
    cache_implementation: str = field(
        default="auto",
        metadata={
            "help": f"Key-value cache of the rollout, one of {CACHES}; auto is static where the "
            "rollout is compiled."
        },
    )
    compile_rollout: bool | None = field(
        default=None,
        metadata={
            "help": "Compile each step of the rollout into one graph, a CUDA graph on a GPU; "
            "default: on a GPU, for models that can be."
        },
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
        default="dapo",
        metadata={
            "help": f"Normalisation over tokens, one of {LOSS_TYPES}; cispo is dapo's, with ratios "
            "that are constants, at most epsilon_high."
        },
    )
    normalize_over: str = field(
        default="update",
        metadata={
            "help": "Whose tokens dapo and cispo count: the update's, or, as TRL does, the whole "
            "generation's, shared equally by its updates."
        },
    )
    importance_sampling_level: str = field(
        default="token",
        metadata={
            "help": "Whose ratio discrete tokens have: token, or sequence (GSPO): the exponential "
            "of the mean log-ratio of a completion's discrete tokens."
        },
    )
    top_entropy_quantile: float = field(
        default=1.0,
        metadata={
            "help": "Share of an update's discrete tokens, by the entropy they were sampled at, "
            "that the policy's term is of; the KL is of all."
        },
    )
    num_iterations: int = field(
        default=1, metadata={"help": "Passes over each rollout; above 1 the clipping acts."}
    )
    beta: float = field(default=0.0, metadata={"help": "Weight of the KL to the reference."})
    latent_kl: str = field(
        default="k3",
        metadata={
            "help": "KL on latent rows: 'k3', 'exact' over the kept ids, or 'score': k3 on the "
            "method's score."
        },
    )
    use_bias_correction_kl: bool = field(
        default=False,
        metadata={
            "help": "Multiply the KL of discrete tokens by their ratio, which makes its gradient "
            "unbiased off the policy (TRL's default)."
        },
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
    share_prompts: bool = field(
        default=True,
        metadata={
            "help": "May run each prompt of a micro-batch once for all of its samples, in every "
            "forward of training; where the model's cache cannot serve, the log says so."
        },
    )
    packing: bool = field(
        default=True,
        metadata={
            "help": "May lay the rows of a micro-batch end to end, without padding; where the "
            "model's attention cannot, the log says so. The cheaper of both ways is taken."
        },
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
            "help": "Skip updates whose loss or gradient is NaN or infinite (they count as "
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
        check_config(self)

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


def _with_method_defaults(init: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(init)
    def complete(self: LEPOConfig, *args: Any, **settings: Any) -> None:
        published = method_named(settings.get("method", "lepo")).defaults
        init(self, *args, **{**published, **settings})

    return complete


# Which settings were given is known here alone.
LEPOConfig.__init__ = _with_method_defaults(LEPOConfig.__init__)  # type: ignore[method-assign]
