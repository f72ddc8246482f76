"""The checks of a `LEPOConfig` that need neither a model nor data.

Each range is stated once, where a setting is used first: those of sampling in
`LatentGenerationConfig`, those of the loss in `formulas.lepo_objective`, those of rewards in
`trainer.rewards`, those of evaluations in `trainer.evaluation_settings`. This file calls them.
"""

import math
from dataclasses import fields
from typing import Any

from lepo_kernels.formulas.latent_scores import latent_score
from lepo_kernels.formulas.loss_rows import LossSettings, check_settings
from lepo_kernels.methods import method_named
from lepo_kernels.rollout.engine import check_rollout_engine
from lepo_kernels.trainer.advantages import SCALE_REWARDS
from lepo_kernels.trainer.evaluation_settings import check_evaluation_settings
from lepo_kernels.trainer.rewards import check_timeout, check_weights
from lepo_kernels.trainer.sampling import check_sampling
from lepo_kernels.trainer.token_weights import (
    IMPORTANCE_SAMPLING_LEVELS,
    LOSS_TYPES,
    NORMALIZE_OVER,
    surrogate_of,
)
from lepo_kernels.validation import (
    check_choice,
    check_flag,
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


def check_config(args: Any) -> None:
    """Check the settings, each alone and all together.

    Args:
        args: a `LEPOConfig` whose other fields are complete.

    Raises:
        TypeError, ValueError: naming the settings.
    """
    _check_supported(args)
    _check_choices(args)
    _check_method(args)
    _check_duration(args)
    _check_ranges(args)
    _check_batches(args)


def _check_method(args: Any) -> None:
    """Refuse what would make another method of it."""
    method = method_named(args.method)
    if not method.trains:
        raise ValueError(
            f"method: {method.name!r} samples and does not train; take it for lepo generate, "
            "lepo eval or latent_generate"
        )
    method.check(args)


def _check_supported(args: Any) -> None:
    """Refuse inherited settings that would have no effect, or a wrong one."""
    for name, neutral in NOT_SUPPORTED.items():
        value = getattr(args, name, None)
        if value not in (None, *neutral):
            raise ValueError(f"{name}: has no meaning for LEPO; leave it out, got {value!r}")
    optimizer = str(getattr(args.optim, "value", args.optim))
    if "lomo" in optimizer or "layerwise" in optimizer:
        raise ValueError(
            f"optim: {optimizer} applies each gradient as soon as it is there, so that an "
            "update that is not finite could not be stopped"
        )
    if args.enable_jit_checkpoint:
        raise ValueError(
            "enable_jit_checkpoint: leave it out; on SIGTERM and SIGHUP LEPOTrainer saves a "
            "checkpoint by itself, in the middle of a rollout, too"
        )
    if args.metric_for_best_model in ("loss", "eval_loss"):
        raise ValueError(
            "metric_for_best_model: there is no evaluation loss; "
            "use eval_greedy_accuracy or eval_mean@k"
        )


def _check_choices(args: Any) -> None:
    check_choice("scale_rewards", args.scale_rewards, SCALE_REWARDS)
    check_choice("loss_type", args.loss_type, LOSS_TYPES)
    check_choice("normalize_over", args.normalize_over, NORMALIZE_OVER)
    check_choice(
        "importance_sampling_level", args.importance_sampling_level, IMPORTANCE_SAMPLING_LEVELS
    )
    check_flag("use_bias_correction_kl", args.use_bias_correction_kl)
    check_rollout_engine(args.rollout_engine)


def _check_duration(args: Any) -> None:
    """transformers takes zero updates for one, and a negative number for all epochs."""
    if args.max_steps == 0 or args.max_steps < -1:
        raise ValueError(
            "max_steps: expected at least 1, or -1 to train for num_train_epochs, got "
            f"{args.max_steps}; to evaluate without training use lepo eval, or "
            "LEPOTrainer.evaluate()"
        )
    if args.max_steps == -1:
        check_number("num_train_epochs", args.num_train_epochs, 0.0, low_included=False)


def _check_ranges(args: Any) -> None:
    for name, low in AT_LEAST.items():
        value = getattr(args, name)
        if value is not None:
            check_integer(name, value, low)
    if args.truncate_prompts and args.max_prompt_length is None:
        raise ValueError("truncate_prompts: needs max_prompt_length, to which prompts are cut")
    check_sampling(args)
    _check_samples_differ(args)
    upper = args.epsilon if args.epsilon_high is None else args.epsilon_high
    method = method_named(args.method)
    numbers = (args.beta, args.epsilon, upper, args.delta, args.latent_kl)
    of_method = (method.latent_score, method.latent_ratio)
    surrogate = surrogate_of(args.loss_type)
    check_settings(LossSettings(*numbers, *of_method, surrogate, args.use_bias_correction_kl))
    quantile = args.top_entropy_quantile
    check_number("top_entropy_quantile", quantile, 0.0, 1.0, low_included=False)
    if args.importance_sampling_level == "sequence" and latent_score(method.latent_score).slots:
        raise ValueError(
            f"importance_sampling_level: method={method.name!r} has a ratio in each slot, which no "
            "sequence has; take 'token'"
        )
    check_evaluation_settings(args)
    check_weights(args.reward_weights)
    check_timeout(args.reward_timeout)
    for name in ("sampling_logp_difference_warning", "sampling_logp_difference_error"):
        if getattr(args, name) is not None:
            check_positive_number(name, getattr(args, name))
    for setting in fields(args):
        value = getattr(args, setting.name)
        # transformers checks few of its own numbers, and NaN passes every comparison it makes.
        if isinstance(value, float) and math.isnan(value):
            raise ValueError(f"{setting.name}: expected a number, got nan")


def _check_samples_differ(args: Any) -> None:
    """A group of equal samples has no advantages: nothing would be trained."""
    if args.do_discrete_sample or (args.latent_length > 0 and args.do_latent_sample):
        return
    raise ValueError(
        "do_discrete_sample: off, and no latent step is noisy either (do_latent_sample, "
        "latent_length), so that the samples of a prompt would all be the same"
    )


def _check_batches(args: Any) -> None:
    assert args.steps_per_generation is not None
    if args.steps_per_generation % args.gradient_accumulation_steps:
        raise ValueError(
            f"steps_per_generation: expected a multiple of gradient_accumulation_steps = "
            f"{args.gradient_accumulation_steps}, got {args.steps_per_generation}"
        )
    if not args.disable_dropout and (args.beta > 0 or args.updates_per_rollout > 1):
        raise ValueError(
            "disable_dropout: must stay on with beta > 0 or several updates per rollout, which "
            "compare log-probabilities"
        )
    if args.rollout_batch_size is not None and args.rollout_batch_size < args.num_generations:
        raise ValueError(
            f"rollout_batch_size: expected at least a group of {args.num_generations}, "
            f"got {args.rollout_batch_size}"
        )
    if args.samples_per_rollout % args.num_generations:
        raise ValueError(
            "num_generations: a rollout of per_device_train_batch_size * steps_per_generation "
            f"= {args.samples_per_rollout} samples does not hold whole groups of "
            f"{args.num_generations}"
        )
    if args.updates_per_rollout > 1 and not method_named(args.method).off_policy:
        raise ValueError(
            f"method: the loss of {args.method!r} holds for one update per rollout, got "
            f"{args.updates_per_rollout} (num_iterations, steps_per_generation)"
        )
