"""What ``lepo eval`` shows and writes at its end."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from lepo_kernels import extras
from lepo_kernels.cli.errors import UsageError
from lepo_kernels.cli.eval_parts import Evaluation
from lepo_kernels.console import say
from lepo_kernels.report.evaluation_picture import plot_evaluations
from lepo_kernels.report.evaluation_tables import (
    ablation_rows,
    markdown_table,
    metric_rows,
    rich_table,
)
from lepo_kernels.report.json_text import json_text
from lepo_kernels.report.run_folder import replace_text
from lepo_kernels.trainer.evaluation_metrics import summarise
from lepo_kernels.trainer.evaluation_statistics import ablation_effects, intervals, spread

TABLE, PICTURE = ".md", ".png"


def check_output(output: str | None) -> None:
    """Check that the JSON, the table and the picture have different names.

    Raises:
        UsageError: they would not.
    """
    if output is not None and Path(output).suffix in (TABLE, PICTURE):
        raise UsageError(
            f"output: {output} would be overwritten: the table ({TABLE}) and the picture "
            f"({PICTURE}) go beside it; name a .json file"
        )


def result_of(
    evaluation: Evaluation,
    records: list[dict[str, Any]],
    success_threshold: float,
    seconds: float,
    peak_memory: int,
) -> dict[str, Any]:
    """An evaluation's part of the JSON.

    Args:
        evaluation: what was evaluated.
        records: one per completion.
        success_threshold: a total reward of at least this counts as solved.
        seconds: that its batches took, over all processes.
        peak_memory: bytes, of the process with the highest.
    """
    return {
        "name": evaluation.name,
        "task": evaluation.task.name,
        "latent_length": evaluation.latent_length,
        "problems": len(evaluation.task.eval_dataset),
        "metrics": summarise(records, success_threshold),
        "intervals": intervals(records, success_threshold),
        "spread": spread(records, success_threshold),
        "ablations": ablation_effects(records, success_threshold),
        "seconds": seconds,
        "peak_memory_bytes": peak_memory,
        "completions": records,
    }


def show(console: Console, results: Sequence[dict[str, Any]]) -> None:
    """Print the tables."""
    console.print(rich_table("Evaluation", metric_rows(results)))
    changes = ablation_rows(results)
    if changes:
        console.print(rich_table("Ablated latents", changes))


def write(console: Console, output: Path, found: dict[str, Any]) -> None:
    """Write the JSON, the table and, where matplotlib is there, the picture."""
    results = found["evaluations"]
    tables = [metric_rows(results), ablation_rows(results)]
    text = "\n".join(markdown_table(rows) for rows in tables if rows)
    replace_text(output.with_suffix(TABLE), text)
    written = [output, output.with_suffix(TABLE)]
    if extras.is_here("matplotlib"):
        plot_evaluations(results, output.with_suffix(PICTURE), title=str(found["model"]))
        written.append(output.with_suffix(PICTURE))
    replace_text(output, json_text(found, indent=2))
    say(console, f"written to {', '.join(map(str, written))}")


def forget_peak_memory() -> None:
    """Begin to measure anew, where the device can."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak_memory(device: torch.device) -> int:
    """Bytes: of the GPU since `forget_peak_memory`, else of the process; 0 where it is unknown."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if not extras.is_here("resource"):  # as on Windows
        return 0
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(most) * (1 if sys.platform == "darwin" else 1024)
