"""The tables at the end of ``lepo train``: accuracies and completions, before and after."""

from typing import Any

from rich.console import Console

from lepo_kernels.report.run_folder import RunFolder, read_rows
from lepo_kernels.report.tables import completions_table, evaluation_table
from lepo_kernels.tasks import Task

# What the last table shows of a completion; a line without is a damaged one.
_SHOWN_OF_RECORD = (("problem", int), ("completion", str), ("reward", int | float | None))


def show_results(console: Console, folder: RunFolder, task: Task, rows: int) -> None:
    """Print the first and the last evaluation, and completions of the same problems in both.

    Args:
        console: where to print.
        folder: the run's.
        task: what was evaluated.
        rows: completions to show at most.
    """
    evaluations = [log for log in folder.metrics() if "eval_runtime" in log]
    if not evaluations:
        return
    first, last = evaluations[0], evaluations[-1]
    titles = {f"step {log['step']}": log for log in (first, last)}
    console.print(
        evaluation_table(
            {
                title: {
                    name.removeprefix("eval_"): value
                    for name, value in log.items()
                    if name.startswith("eval_")
                    and name != "eval_runtime"
                    and isinstance(value, int | float)
                }
                for title, log in titles.items()
            }
        )
    )
    samples = {title: _sample_of_each_problem(folder, log["step"]) for title, log in titles.items()}
    problems = [
        index
        for index in range(min(rows, len(task.eval_dataset)))
        if all(index in by_problem for by_problem in samples.values())
    ]
    if not problems:
        return
    questions = [task.eval_dataset[index]["prompt"][-1]["content"] for index in problems]
    columns = {
        title: [by_problem[index] for index in problems] for title, by_problem in samples.items()
    }
    console.print(completions_table(questions, columns))


def _sample_of_each_problem(folder: RunFolder, step: int) -> dict[int, dict[str, Any]]:
    """By problem a completion of the evaluation at a step, the greedy one if there is one."""
    file = folder.folder / "evaluations.jsonl"
    found: dict[int, dict[str, Any]] = {}
    for record in read_rows(file) if file.exists() else ():
        is_whole = all(isinstance(record.get(name), kind) for name, kind in _SHOWN_OF_RECORD)
        if record["step"] == step and is_whole:
            found.setdefault(record["problem"], record)
    return found
