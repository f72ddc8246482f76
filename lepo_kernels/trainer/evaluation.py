"""Evaluating a policy: greedy accuracy, mean@k and the unbiased Pass@k."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lepo_kernels.rollout.config import LatentGenerationConfig
from lepo_kernels.rollout.engine import RolloutEngine, TransformersEngine
from lepo_kernels.trainer.dataset_checks import check_dataset, check_prompts
from lepo_kernels.trainer.evaluation_batches import BatchEvaluator, batches_of
from lepo_kernels.trainer.evaluation_metrics import summarise
from lepo_kernels.trainer.evaluation_settings import check_evaluation
from lepo_kernels.trainer.model_limits import limits_of
from lepo_kernels.trainer.rewards import RewardFunction, Rewards


@dataclass
class EvaluationResult:
    """What `evaluate_policy` returns.

    Attributes:
        metrics: of what was asked for: ``greedy_accuracy`` (share of solved problems),
            ``greedy_reward``, ``greedy_length``; ``mean@k`` (mean accuracy of k samples),
            ``reward@k`` and the unbiased ``pass@1`` ... ``pass@k``; and the mean over completions
            of what reward functions log with ``log_metric``.
        records: one dict per completion: ``problem``, ``draw`` (which of its completions),
            ``prompt``, ``completion``, ``reward`` (None where no function gave one), ``length``,
            ``greedy``, ``latent`` (per latent step its heaviest tokens and weights), what reward
            functions log with ``log_extra``, and ``metrics``, if they log any.
    """

    metrics: dict[str, float]
    records: list[dict[str, Any]]


def evaluate_policy(
    model: Any,
    processing_class: Any,
    dataset: Any,
    reward_funcs: RewardFunction | Sequence[RewardFunction] | Rewards,
    generation: LatentGenerationConfig,
    *,
    problems: Sequence[int] | None = None,
    num_samples: int = 8,
    greedy: bool = True,
    batch_size: int = 32,
    seed: int = 0,
    success_threshold: float = 0.5,
    progress: Callable[[int, int], None] | None = None,
    step_progress: Callable[[int, int], None] | None = None,
    engine: RolloutEngine | None = None,
) -> EvaluationResult:
    """Evaluate a policy on prompts with rewards.

    Greedy decoding takes the noise-free mixture at latent steps and the likeliest id after them;
    the ``num_samples`` other completions per problem are sampled as in training. The same call
    gives the same completions, whatever ``batch_size`` is, up to rounding.

    Args:
        model: a causal language model.
        processing_class: its tokenizer.
        dataset: rows with a column ``prompt``; the other columns go to the reward functions.
        reward_funcs: one or several reward functions, or a `Rewards` with weights.
        generation: how to sample.
        problems: which rows of the dataset; None takes all.
        num_samples: sampled completions per problem; 0 for none.
        greedy: whether to decode greedily, too.
        batch_size: completions decoded at once.
        seed: seed of the noise.
        success_threshold: a total reward of at least this counts as solved.
        progress: called with (completions done, completions in all).
        step_progress: called with (decoding steps done, at most) of the current batch; an exception
            that it raises ends the evaluation.
        engine: what samples with the model's weights; None decodes with the model itself.

    Raises:
        TypeError, ValueError: an argument is out of range, neither greedy nor sampled completions
            are asked for, or something is wrong with the dataset: see `check_dataset` and
            `check_prompts`.
        RewardError: see `Rewards`.
    """
    check_evaluation(num_samples, greedy, batch_size, success_threshold)
    rewards = reward_funcs if isinstance(reward_funcs, Rewards) else Rewards(reward_funcs)
    check_dataset("dataset", dataset, rewards)
    limits = limits_of(model, generation.max_new_tokens)
    check_prompts("dataset", dataset, processing_class, limits)
    if engine is None:
        engine = TransformersEngine(model)
    return evaluate_checked(
        engine,
        next(model.parameters()).device,
        processing_class,
        dataset,
        rewards,
        generation,
        problems=problems,
        num_samples=num_samples,
        greedy=greedy,
        batch_size=batch_size,
        seed=seed,
        success_threshold=success_threshold,
        progress=progress,
        step_progress=step_progress,
    )


def evaluate_checked(
    engine: RolloutEngine,
    device: torch.device,
    processing_class: Any,
    dataset: Any,
    rewards: Rewards,
    generation: LatentGenerationConfig,
    *,
    problems: Sequence[int] | None = None,
    num_samples: int,
    greedy: bool,
    batch_size: int,
    seed: int,
    success_threshold: float,
    progress: Callable[[int, int], None] | None = None,
    step_progress: Callable[[int, int], None] | None = None,
) -> EvaluationResult:
    """As `evaluate_policy`, of a dataset that has been checked.

    Raises:
        RewardError: see `Rewards`.
    """
    rows = range(len(dataset)) if problems is None else problems
    batches = batches_of(rows, num_samples=num_samples, greedy=greedy, batch_size=batch_size)
    evaluator = BatchEvaluator(
        engine,
        device,
        processing_class,
        dataset,
        rewards,
        generation,
        num_samples,
        seed,
        step_progress=step_progress,
    )
    total = sum(map(len, batches))
    records: list[dict[str, Any]] = []
    for batch in batches:
        records += evaluator.evaluate(batch)
        if progress is not None:
            progress(len(records), total)
    return EvaluationResult(summarise(records, success_threshold), records)
