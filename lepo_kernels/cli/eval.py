"""``lepo eval``: greedy accuracy, mean@k and pass@k of a model on a task."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from lepo_kernels.cli.errors import UsageError
from lepo_kernels.cli.loading import (
    config_of_run,
    evaluation_task,
    load_for_inference,
    task_options,
)
from lepo_kernels.cli.options import EvalOptions, EvaluationOptions, ModelOptions, TaskOptions
from lepo_kernels.cli.parsing import parse
from lepo_kernels.report.tables import evaluation_table
from lepo_kernels.trainer.evaluation import EvaluationResult, evaluate_policy
from lepo_kernels.trainer.generation import generation_config
from lepo_kernels.trainer.rewards import Rewards


def run(words: list[str]) -> None:
    """Evaluate, print a table, and write the JSON that was asked for.

    Raises:
        UsageError: an option is wrong, or the model cannot be loaded.
        TaskError: the task cannot be had.
    """
    parsed = parse(
        "eval",
        (ModelOptions, TaskOptions, EvalOptions, EvaluationOptions),
        words,
        file=config_of_run(words),
    )
    model_options, tasks, options, settings = parsed.options
    if settings.eval_num_samples < 1 and not settings.eval_greedy:
        raise UsageError("eval_num_samples: expected at least 1 when eval_greedy is off")
    console = Console()
    tasks = task_options(parsed, tasks)
    if "task" in parsed.spoken and "eval_task" not in parsed.spoken:
        tasks = replace(tasks, eval_task=None)
    task = evaluation_task(tasks, settings.seed)
    model, tokenizer = load_for_inference(model_options, settings.use_cpu, console)
    result = _evaluate(model, tokenizer, task, settings, console)
    console.print(evaluation_table({task.name: result.metrics}))
    if options.output is not None:
        output = Path(options.output)
        output.parent.mkdir(parents=True, exist_ok=True)
        found = {
            "model": model_options.model,
            "task": task.name,
            "problems": len(task.eval_dataset),
            "settings": parsed.given,
            "metrics": result.metrics,
            "completions": result.records,
        }
        output.write_text(json.dumps(found, indent=2, ensure_ascii=False), encoding="utf-8")
        console.print(f"written to {output}")


def _evaluate(
    model: Any, tokenizer: Any, task: Any, settings: Any, console: Console
) -> EvaluationResult:
    try:
        config = generation_config(settings, model, tokenizer)
        rewards = Rewards(task.reward_funcs, settings.reward_weights)
    except (TypeError, ValueError) as error:
        raise UsageError(str(error)) from error
    with Progress(console=console) as progress:
        bar = progress.add_task("evaluating", total=None)
        return evaluate_policy(
            model,
            tokenizer,
            task.eval_dataset,
            rewards,
            config,
            num_samples=settings.eval_num_samples,
            greedy=settings.eval_greedy,
            batch_size=settings.per_device_eval_batch_size,
            seed=settings.seed,
            success_threshold=settings.success_threshold,
            progress=lambda done, total: progress.update(bar, completed=done, total=total),
        )
