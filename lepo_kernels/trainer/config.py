"""`LEPOConfig`: every setting of `LEPOTrainer`, on top of transformers' `TrainingArguments`."""

from dataclasses import dataclass, field
from typing import Any

from transformers import TrainingArguments

from lepo_kernels.ops.lepo_loss import LATENT_KL
from lepo_kernels.rollout.config import CACHES, LATENT_EOS, NOISES
from lepo_kernels.trainer.advantages import SCALE_REWARDS
from lepo_kernels.trainer.token_weights import LOSS_TYPES


@dataclass
class LEPOConfig(TrainingArguments):
    """Settings of `LEPOTrainer`.

    Names follow TRL's GRPO settings where the two methods share them. ``latent_length=0`` gives
    plain GRPO. Lengths are in tokens (columns of the completion).

    Raises:
        ValueError: a setting is out of range, or two settings contradict each other; the message
            names them. Raised on construction.
    """

    learning_rate: float = field(default=1e-6, metadata={"help": "Peak learning rate of AdamW."})
    remove_unused_columns: bool = field(
        default=False,
        metadata={
            "help": "Must stay off: the dataset's columns are given to the reward functions."
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
        metadata={"help": "Temperature of the Gumbel-softmax weights; other noises use 1."},
    )
    noise_scale: float = field(
        default=1.0,
        metadata={"help": "Strength of the gaussian, dirichlet and soft noises."},
    )
    noise_clamp: list[float] | None = field(
        default=None, metadata={"help": "Range LOW HIGH that Gumbel noise is clamped to."}
    )
    num_draws: int = field(default=3, metadata={"help": "Draws per step of the multiplex noise."})
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
        default=None, metadata={"help": "Refuse prompts longer than this."}
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
        super().__post_init__()
        if self.steps_per_generation is None:
            self.steps_per_generation = self.gradient_accumulation_steps
        self._check_ranges()
        self._check_batches()

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

    def _check_ranges(self) -> None:
        for name, choices in (
            ("noise", NOISES),
            ("latent_eos", LATENT_EOS),
            ("cache_implementation", CACHES),
            ("scale_rewards", SCALE_REWARDS),
            ("loss_type", LOSS_TYPES),
            ("latent_kl", LATENT_KL),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"{name}: expected one of {', '.join(choices)}, got {getattr(self, name)!r}"
                )
        for name, low in (
            ("latent_length", 0),
            ("num_generations", 2),
            ("num_iterations", 1),
            ("num_draws", 1),
            ("cold_stop_steps", 1),
            ("max_completion_length", 1),
            ("eval_num_samples", 0),
        ):
            if getattr(self, name) < low:
                raise ValueError(f"{name}: expected at least {low}, got {getattr(self, name)}")
        for name, above in (("temperature", 0.0), ("tau", 0.0), ("epsilon", 0.0)):
            if not getattr(self, name) > above:
                raise ValueError(f"{name}: expected more than {above}, got {getattr(self, name)}")
        if self.beta < 0:
            raise ValueError(f"beta: expected at least 0, got {self.beta}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p: expected a number in (0, 1], got {self.top_p}")
        upper = 1 + (self.epsilon if self.epsilon_high is None else self.epsilon_high)
        if self.delta is not None and self.delta <= upper:
            raise ValueError(
                f"delta: expected more than 1 + epsilon_high = {upper}, got {self.delta}"
            )
        if self.latent_length >= self.max_completion_length:
            raise ValueError(
                f"latent_length: {self.latent_length} leaves no room for an answer within "
                f"max_completion_length = {self.max_completion_length}"
            )
        if self.remove_unused_columns:
            raise ValueError("remove_unused_columns: must be off; the rewards need the columns")

    def _check_batches(self) -> None:
        assert self.steps_per_generation is not None
        if self.steps_per_generation % self.gradient_accumulation_steps:
            raise ValueError(
                f"steps_per_generation: expected a multiple of gradient_accumulation_steps = "
                f"{self.gradient_accumulation_steps}, got {self.steps_per_generation}"
            )
        if self.samples_per_rollout % self.num_generations:
            raise ValueError(
                "num_generations: a rollout of per_device_train_batch_size * steps_per_generation "
                f"= {self.samples_per_rollout} samples does not hold whole groups of "
                f"{self.num_generations}"
            )
