"""The evaluations of one call of ``lepo eval``: each a task with a latent length."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from lepo_kernels.cli.errors import UsageError
from lepo_kernels.cli.eval_options import latent_lengths, listed
from lepo_kernels.cli.options import EvalOptions
from lepo_kernels.tasks import Task
from lepo_kernels.trainer.dataset_checks import check_dataset, check_prompts
from lepo_kernels.trainer.evaluation_ablations import make_ablations
from lepo_kernels.trainer.evaluation_batches import Batch, BatchEvaluator, batches_of
from lepo_kernels.trainer.generation import generation_config
from lepo_kernels.trainer.model_limits import limits_of
from lepo_kernels.trainer.model_settings import data_digest
from lepo_kernels.trainer.rewards import Rewards
from lepo_kernels.trainer.servable import check_policy

# Entries of each parameter that a digest of the weights looks at.
_PROBED = 64


@dataclass
class Evaluation:
    """One evaluation of a call.

    Attributes:
        name: of the task, with the latent length where there are several.
        task: the problems.
        latent_length: steps of the latent phase.
        evaluator: decodes a batch.
        batches: all of them.
    """

    name: str
    task: Task
    latent_length: int
    evaluator: BatchEvaluator = field(repr=False)
    batches: list[Batch] = field(repr=False)


def make_evaluations(
    model: Any,
    tokenizer: Any,
    engine: Any,
    tasks: Sequence[Task],
    options: EvalOptions,
    settings: Any,
) -> list[Evaluation]:
    """All evaluations of a call, checked.

    Args:
        model, tokenizer: what is evaluated.
        engine: samples with it.
        tasks: what it is evaluated on.
        options: which latent lengths and ablations.
        settings: an ``EvaluationOptions``.

    Raises:
        UsageError: the settings do not fit the model, a data set, or one another.
    """
    lengths = latent_lengths(options, settings.latent_length)
    kinds = listed("ablate", options.ablate)
    found = []
    for task in tasks:
        for length in lengths:
            name = task.name if len(lengths) == 1 else f"{task.name}, L={length}"
            # A sweep may begin at 0, where there is nothing to ablate.
            ablate = [] if length == 0 and any(lengths) else kinds
            chosen = replace(settings, latent_length=length)
            try:
                evaluator = _evaluator(model, tokenizer, engine, task, options, chosen, ablate)
            except (TypeError, ValueError) as error:
                raise UsageError(str(error)) from error
            batches = batches_of(
                range(len(task.eval_dataset)),
                num_samples=settings.eval_num_samples,
                greedy=settings.eval_greedy,
                batch_size=settings.per_device_eval_batch_size,
            )
            found.append(Evaluation(name, task, length, evaluator, batches))
    return found


def _evaluator(
    model: Any,
    tokenizer: Any,
    engine: Any,
    task: Task,
    options: EvalOptions,
    settings: Any,
    ablate: list[str],
) -> BatchEvaluator:
    config = generation_config(settings, model, tokenizer)
    rewards = Rewards(task.reward_funcs, settings.reward_weights, settings.reward_timeout)
    dataset = task.eval_dataset
    check_dataset(task.name, dataset, rewards)
    limits = limits_of(model, settings.max_completion_length)
    check_prompts(task.name, dataset, tokenizer, limits)
    check_policy(model, config, tokenizer, dataset, training=False)
    ablations = make_ablations(
        model,
        ablate,
        config,
        tokenizer,
        range(len(dataset)),
        blank=options.ablate_blank,
        seed=settings.seed,
    )
    return BatchEvaluator(
        engine,
        model.device,
        tokenizer,
        dataset,
        rewards,
        config,
        settings.eval_num_samples,
        settings.seed,
        ablations,
    )


def what_decides(
    model_name: str,
    model: Any,
    evaluations: Sequence[Evaluation],
    options: EvalOptions,
    settings: Any,
) -> dict[str, Any]:
    """By name all that decides the samples of a call: what a resume must have alike.

    The number of processes is not among them.
    """
    decides = {
        "model": model_name,
        "weights": weights_digest(model),
        "dtype": str(model.dtype),
        "device": model.device.type,
        "data": {e.task.name: data_digest(e.task.eval_dataset) for e in evaluations},
        "evaluations": [evaluation.name for evaluation in evaluations],
        "ablate": listed("ablate", options.ablate),
        "ablate_blank": options.ablate_blank,
    }
    return {**vars(settings), **decides}


def weights_digest(model: Any) -> str:
    """A short text that identifies a model's weights, by a few entries of each parameter.

    Args:
        model: a torch module; an update changes all of its trained parameters.
    """
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        flat = parameter.detach().reshape(-1)
        count = min(_PROBED, flat.numel())
        # Not linspace: beyond 2^24 float32 has no place for each entry.
        at = torch.arange(count, device=flat.device) * (flat.numel() - 1) // max(count - 1, 1)
        some = flat[at].double().tolist()
        digest.update(f"{name} {list(parameter.shape)} {some}\n".encode())
    return digest.hexdigest()[:12]
