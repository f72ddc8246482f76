"""``lepo eval``: accuracy, mean@k and pass@k of a model on tasks, with and without its latents."""

import time
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object
from rich.console import Console
from rich.progress import Progress

from lepo_kernels.cli.errors import UsageError
from lepo_kernels.cli.eval_options import evaluation_tasks
from lepo_kernels.cli.eval_parts import Evaluation, make_evaluations, what_decides
from lepo_kernels.cli.eval_results import (
    check_output,
    forget_peak_memory,
    peak_memory,
    result_of,
    show,
    write,
)
from lepo_kernels.cli.loading import load_for_inference
from lepo_kernels.cli.options import EvalOptions, EvaluationOptions, ModelOptions, TaskOptions
from lepo_kernels.cli.parsing import parse, peek
from lepo_kernels.cli.ranks import Ranks, join_ranks
from lepo_kernels.cli.saved_settings import announce, model_settings
from lepo_kernels.console import make_console, say, shows_progress
from lepo_kernels.report.run_lock import FolderInUseError
from lepo_kernels.rollout.engine import check_rollout_engine, make_rollout_engine
from lepo_kernels.trainer.evaluation_journal import (
    FinishedBatch,
    Journal,
    SettingsDifferError,
    as_json,
)
from lepo_kernels.trainer.evaluation_settings import check_evaluation_settings
from lepo_kernels.trainer.processes import first_process_decides, process_group_ends

SECONDS_BETWEEN_LINES = 60.0


def run(words: list[str]) -> None:
    """Evaluate, print tables, and write the files that were asked for.

    Raises:
        UsageError: an option is wrong, the model cannot be loaded, or samples of other settings
            are in the way.
        TaskError: the task cannot be loaded.
    """
    with process_group_ends():
        _run(words)


def _run(words: list[str]) -> None:
    kinds = (ModelOptions, TaskOptions, EvalOptions, EvaluationOptions)
    saved = model_settings(peek("eval", words, ("model", "task", "eval_task")))
    parsed = parse("eval", kinds, words, saved=saved)
    model_options, tasks, options, settings = parsed.options
    try:
        check_evaluation_settings(settings)
        check_rollout_engine(settings.rollout_engine)
    except (TypeError, ValueError) as error:
        raise UsageError(str(error)) from error
    check_output(options.output)
    ranks = join_ranks(settings.use_cpu)
    console = make_console(quiet=not ranks.is_first)
    announce(console, model_options.model, saved, parsed)
    chosen = evaluation_tasks(parsed, tasks, options, settings.seed)
    model, tokenizer = load_for_inference(model_options, settings.use_cpu, console)
    engine = make_rollout_engine(settings.rollout_engine, model)
    evaluations = make_evaluations(model, tokenizer, engine, chosen, options, settings)
    decides = what_decides(model_options.model, model, evaluations, options, settings)
    journal = None
    if options.output is not None:
        samples = Path(options.output).with_suffix(".samples")
        journal = Journal(samples, ranks.process_index)
    results = _evaluate(evaluations, settings, decides, journal, ranks, console, options.restart)
    if not ranks.is_first:
        return
    show(console, results)
    if journal is not None:
        found = {
            "model": model_options.model,
            "settings": parsed.given,
            "processes": ranks.world_size,
            "evaluations": results,
        }
        write(console, Path(options.output), found)
        journal.end(keep=False)


def _evaluate(
    evaluations: list[Evaluation],
    settings: Any,
    decides: dict[str, Any],
    journal: Journal | None,
    ranks: Ranks,
    console: Console,
    restart: bool,
) -> list[dict[str, Any]]:
    """Every evaluation's part of the JSON; on the first process, empty on the others."""
    finished: list[FinishedBatch] = []
    if journal is not None:
        finished = _begin(journal, decides, ranks, restart)
        if finished:
            done = sum(len(batch.records) for batch in finished)
            say(console, f"resumed: {done} samples are there already, in {journal.folder}")
    total = sum(len(batch) for evaluation in evaluations for batch in evaluation.batches)
    results = []
    try:
        with Progress(console=console, disable=not shows_progress(console)) as bar:
            shown = _Shown(console, bar, total, sum(len(batch.records) for batch in finished))
            for evaluation in evaluations:
                there = [batch for batch in finished if batch.evaluation == evaluation.name]
                results += _evaluate_one(evaluation, there, settings, journal, ranks, shown)
    except BaseException as error:
        if journal is not None and ranks.is_first:
            journal.end(keep=True)
        if journal is not None and isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt("the same command continues where it was") from None
        raise
    return results


def _begin(
    journal: Journal, decides: dict[str, Any], ranks: Ranks, restart: bool
) -> list[FinishedBatch]:
    """What an earlier call finished, on every process."""
    try:
        return first_process_decides(ranks, lambda: journal.begin(decides, restart=restart))
    except FolderInUseError as error:
        raise UsageError(str(error).replace("output_dir", "output", 1)) from error
    except SettingsDifferError as error:
        raise UsageError(str(error)) from error


def _evaluate_one(
    evaluation: Evaluation,
    finished: list[FinishedBatch],
    settings: Any,
    journal: Journal | None,
    ranks: Ranks,
    shown: "_Shown",
) -> list[dict[str, Any]]:
    """Decode this process's share of the batches, and put all shares together."""
    evaluator = evaluation.evaluator
    evaluator.step_progress = shown.steps
    there = {batch.batch for batch in finished}
    left = [batch for batch in evaluation.batches if batch.index not in there]
    mine = []
    forget_peak_memory()
    for batch in left[ranks.process_index :: ranks.world_size]:
        start = time.perf_counter()
        records = as_json(evaluator.evaluate(batch))
        seconds = time.perf_counter() - start
        mine.append(FinishedBatch(evaluation.name, batch.index, seconds, records))
        if journal is not None:
            journal.add(mine[-1])
        shown.completions(len(batch) * ranks.world_size)
    memory = [peak_memory(evaluator.device)]
    if ranks.world_size > 1:
        mine, memory = gather_object(mine), gather_object(memory)
    if not ranks.is_first:
        return []
    in_order = sorted([*finished, *mine], key=lambda batch: batch.batch)
    records = [record for batch in in_order for record in batch.records]
    seconds = sum(batch.seconds for batch in in_order)
    return [result_of(evaluation, records, settings.success_threshold, seconds, max(memory))]


class _Shown:
    """How far the call is: on the bar, or where none can move, in a line a minute."""

    def __init__(self, console: Console, bar: Progress, total: int, done: int) -> None:
        self.console = console
        self.bar = bar
        self.task = bar.add_task("evaluating", total=total, completed=done)
        self.done, self.total = done, total
        self.last_line = time.monotonic()

    def completions(self, more: int) -> None:
        """So many more are done."""
        self.done = min(self.done + more, self.total)
        self.bar.update(self.task, completed=self.done)

    def steps(self, done: int, total: int) -> None:
        """Decoding steps of the current completions."""
        text = f"step {done}/{total}"
        self.bar.update(self.task, description=f"evaluating, {text}")
        now = time.monotonic()
        if self.bar.disable and now - self.last_line >= SECONDS_BETWEEN_LINES:
            self.last_line = now
            say(self.console, f"evaluated {self.done}/{self.total}, {text}")
