"""``lepo eval``: greedy accuracy, mean@k and pass@k of a model on a task."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from lepo_kernels.cli.errors import UsageError
from lepo_kernels.cli.loading import evaluation_task, load_for_inference, task_options
from lepo_kernels.cli.options import EvalOptions, EvaluationOptions, ModelOptions, TaskOptions
from lepo_kernels.cli.parsing import parse, peek
from lepo_kernels.cli.saved_settings import announce, model_settings
from lepo_kernels.console import make_console, say, shows_progress
from lepo_kernels.report.json_text import json_text
from lepo_kernels.report.tables import evaluation_table
from lepo_kernels.rollout.engine import check_rollout_engine, make_rollout_engine
from lepo_kernels.trainer.dataset_checks import check_dataset, check_prompts
from lepo_kernels.trainer.evaluation import EvaluationResult, evaluate_checked
from lepo_kernels.trainer.evaluation_settings import check_evaluation_settings
from lepo_kernels.trainer.generation import generation_config
from lepo_kernels.trainer.model_limits import limits_of
from lepo_kernels.trainer.rewards import Rewards
from lepo_kernels.trainer.servable import check_policy

SECONDS_BETWEEN_LINES = 60.0


def run(words: list[str]) -> None:
    """Evaluate, print a table, and write the JSON that was asked for.

    Raises:
        UsageError: an option is wrong, or the model cannot be loaded.
        TaskError: the task cannot be loaded.
    """
    kinds = (ModelOptions, TaskOptions, EvalOptions, EvaluationOptions)
    saved = model_settings(peek("eval", words, ("model", "task", "eval_task")))
    parsed = parse("eval", kinds, words, saved=saved)
    model_options, tasks, options, settings = parsed.options
    try:
        check_evaluation_settings(settings)
        check_rollout_engine(settings.rollout_engine)
    except (TypeError, ValueError) as error:
        raise UsageError(str(error)) from error
    console = make_console()
    announce(console, model_options.model, saved, parsed)
    tasks = task_options(parsed, tasks)
    if "task" in parsed.cli_given and "eval_task" not in parsed.cli_given:
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
        output.write_text(json_text(found, indent=2), encoding="utf-8", errors="backslashreplace")
        say(console, f"written to {output}")


def _evaluate(
    model: Any, tokenizer: Any, task: Any, settings: Any, console: Console
) -> EvaluationResult:
    try:
        config = generation_config(settings, model, tokenizer)
        rewards = Rewards(task.reward_funcs, settings.reward_weights, settings.reward_timeout)
        check_dataset(task.name, task.eval_dataset, rewards)
        limits = limits_of(model, settings.max_completion_length)
        check_prompts(task.name, task.eval_dataset, tokenizer, limits)
        check_policy(model, config, tokenizer, task.eval_dataset, training=False)
    except (TypeError, ValueError) as error:
        raise UsageError(str(error)) from error
    with Progress(console=console, disable=not shows_progress(console)) as bar:
        shown = _Shown(console, bar)
        return evaluate_checked(
            make_rollout_engine(settings.rollout_engine, model),
            model.device,
            tokenizer,
            task.eval_dataset,
            rewards,
            config,
            num_samples=settings.eval_num_samples,
            greedy=settings.eval_greedy,
            batch_size=settings.per_device_eval_batch_size,
            seed=settings.seed,
            success_threshold=settings.success_threshold,
            progress=shown.completions,
            step_progress=shown.steps,
        )


class _Shown:
    """How far the evaluation is: on the bar, or where none can move, in a line a minute."""

    def __init__(self, console: Console, bar: Progress) -> None:
        self.console = console
        self.bar = bar
        self.task = bar.add_task("evaluating", total=None)
        self.done = "0"
        self.last_line = time.monotonic()

    def completions(self, done: int, total: int) -> None:
        self.done = f"{done}/{total}"
        self.bar.update(self.task, completed=done, total=total)

    def steps(self, done: int, total: int) -> None:
        """Decoding steps of the current completions."""
        text = f"step {done}/{total}"
        self.bar.update(self.task, description=f"evaluating, {text}")
        now = time.monotonic()
        if self.bar.disable and now - self.last_line >= SECONDS_BETWEEN_LINES:
            self.last_line = now
            say(self.console, f"evaluated {self.done}, {text}")
